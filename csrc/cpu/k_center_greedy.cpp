// The two steps of a block of k-center greedy that are not a distance tile (../../README.md, "How it works").
//
// top_candidates: the m rows farthest from their centres, in order. One scan of d2 on all threads; each keeps the best
// it has seen in a buffer of 2m that is cut back to m when full, so that almost every row costs one comparison.
//
// k_center_block: the sequential rule inside those m rows, on their m x m squared distances. A pick stands while no row
// outside can beat it and its distance is above the level to which distances are known.
#include <torch/csrc/stable/library.h>

#include "../common/candidate.h"
#include "block_distances.h"

namespace alkernels {
namespace {

void keep_best(std::vector<Candidate>& v, int64_t m) {
  if (static_cast<int64_t>(v.size()) <= m) return;
  std::nth_element(v.begin(), v.begin() + (m - 1), v.end(), before);
  v.resize(static_cast<size_t>(m));
}

std::tuple<Tensor, Tensor> top_candidates_cpu(Tensor d2, int64_t m) {
  constexpr const char* kOp = "top_candidates";
  constexpr int64_t kChunk = 1 << 15;
  const int64_t n = d2.numel();
  check_vector(d2, ScalarType::Double, n, kOp, "d2");
  STD_TORCH_CHECK(m >= 1 && m <= n, kOp, ": m must be between 1 and ", n, " (elements of d2), got ", m);
  const double* value = d2.const_data_ptr<double>();
  std::vector<Candidate> best;
  std::mutex merging;
  parallel_tasks((n + kChunk - 1) / kChunk, [&](const auto& next) {
    std::vector<Candidate> mine;
    mine.reserve(static_cast<size_t>(2 * m));
    double floor = std::numeric_limits<double>::quiet_NaN();  // nothing below it can be among the best m; none yet
    for (int64_t task; (task = next()) >= 0;) {
      for (int64_t i = task * kChunk; i < std::min(n, (task + 1) * kChunk); ++i) {
        if (value[i] <= floor) continue;  // a tie: this thread has seen m with lower indices
        mine.push_back({value[i], i});
        if (static_cast<int64_t>(mine.size()) == 2 * m) {
          keep_best(mine, m);
          floor = mine.back().value;  // nth_element leaves the m-th there
        }
      }
    }
    keep_best(mine, m);
    const std::lock_guard<std::mutex> lock(merging);
    best.insert(best.end(), mine.begin(), mine.end());
  });
  keep_best(best, m);
  std::sort(best.begin(), best.end(), before);
  Tensor values = torch::stable::new_empty(d2, {m});
  Tensor indices = torch::stable::new_empty(d2, {m}, ScalarType::Long);
  for (int64_t i = 0; i < m; ++i) {
    values.mutable_data_ptr<double>()[i] = best[static_cast<size_t>(i)].value;
    indices.mutable_data_ptr<int64_t>()[i] = best[static_cast<size_t>(i)].index;
  }
  return {values, indices};
}

// No row outside the m candidates exceeds `bound`, and an outside row equal to it has a higher index than each
// candidate that started at `bound`: hence the rule for ties.
template <typename T>
int64_t greedy_in_block(const Rows& rows, const double* shift, Metric metric, const double* value, const int64_t* index,
                        double bound, double level, int64_t limit, int64_t* picks, double* scores) {
  const int64_t m = rows.count;
  const BlockDistances<T> distances(rows, metric, shift);
  std::vector<double> d2(value, value + m);
  int64_t last_tie = -1;
  for (int64_t i = 0; i < m; ++i) {
    if (value[i] == bound) last_tie = std::max(last_tie, index[i]);
  }
  int64_t best = 0;  // the candidates come in order
  int64_t made = 0;
  while (made < limit && best >= 0) {
    const Candidate pick{d2[static_cast<size_t>(best)], index[best]};
    if (pick.value < level || pick.value < bound || (pick.value == bound && pick.index > last_tie)) break;
    picks[made] = best;
    scores[made] = pick.value;
    ++made;
    distances.lower(best, std::max(bound, level), d2.data());
    d2[static_cast<size_t>(best)] = -1;
    best = -1;
    for (int64_t i = 0; i < m; ++i) {
      const double d = d2[static_cast<size_t>(i)];
      if (d >= 0 && (best < 0 || before({d, index[i]}, {d2[static_cast<size_t>(best)], index[best]}))) best = i;
    }
  }
  return made;
}

std::tuple<Tensor, Tensor> k_center_block_cpu(Tensor rows, std::optional<Tensor> rows2, std::optional<Tensor> shift,
                                              int64_t metric_code, Tensor values, Tensor indices, double bound,
                                              double level, int64_t limit) {
  constexpr const char* kOp = "k_center_block";
  const Metric metric = metric_of(metric_code, kOp);
  const Rows candidates = rows_of(rows, rows2, metric, kOp, "rows");
  const int64_t m = candidates.count;
  check_vector(values, ScalarType::Double, m, kOp, "values");
  check_vector(indices, ScalarType::Long, m, kOp, "indices");
  Tensor picks = torch::stable::new_empty(indices, {m});
  Tensor scores = torch::stable::new_empty(values, {m});
  int64_t* pick = picks.mutable_data_ptr<int64_t>();
  double* score = scores.mutable_data_ptr<double>();
  int64_t made = 0;
  if (m > 0) {
    const auto run = candidates.wide ? greedy_in_block<double> : greedy_in_block<float>;
    made = run(candidates, shift_of(shift, candidates, kOp), metric, values.const_data_ptr<double>(),
               indices.const_data_ptr<int64_t>(), bound, level, std::min(limit, m), pick, score);
  }
  std::fill(pick + made, pick + m, -1);
  std::fill(score + made, score + m, 0.0);
  return {picks, scores};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(alkernels, CPU, m) {
  m.impl("top_candidates", TORCH_BOX(&top_candidates_cpu));
  m.impl("k_center_block", TORCH_BOX(&k_center_block_cpu));
}

}  // namespace alkernels
