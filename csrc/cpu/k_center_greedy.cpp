// The two steps of a block of k-center greedy that are not a distance tile (../../README.md, "How it works").
//
// top_candidates: the m rows farthest from their centres, in order. One scan of d2 on all threads; each keeps the best
// it has seen in a buffer of 2m that is cut back to m when full, so that almost every row costs one comparison.
//
// k_center_block: the sequential rule inside those m rows, on their m x m squared distances. A pick stands while no row
// outside can beat it and its distance is above the level to which distances are known.
#include "../common/candidate.h"
#include "block_distances.h"
#include "device.h"

namespace alkernels::cpu {
namespace {

void keep_best(std::vector<Candidate>& v, int64_t m) {
  if (static_cast<int64_t>(v.size()) <= m) return;
  std::nth_element(v.begin(), v.begin() + (m - 1), v.end(), before);
  v.resize(static_cast<size_t>(m));
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

}  // namespace

void top_candidates(const double* d2, int64_t n, int64_t m, double* values, int64_t* indices, const Device&) {
  constexpr int64_t kChunk = 1 << 15;
  std::vector<Candidate> best;
  std::mutex merging;
  parallel_tasks((n + kChunk - 1) / kChunk, [&](const auto& next) {
    std::vector<Candidate> mine;
    mine.reserve(static_cast<size_t>(2 * m));
    double floor = std::numeric_limits<double>::quiet_NaN();  // nothing below it can be among the best m; none yet
    for (int64_t task; (task = next()) >= 0;) {
      for (int64_t i = task * kChunk; i < std::min(n, (task + 1) * kChunk); ++i) {
        if (d2[i] <= floor) continue;  // a tie: this thread has seen m with lower indices
        mine.push_back({d2[i], i});
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
  for (int64_t i = 0; i < m; ++i) {
    values[i] = best[static_cast<size_t>(i)].value;
    indices[i] = best[static_cast<size_t>(i)].index;
  }
}

void k_center_block(const Rows& rows, const double* shift, Metric metric, const double* values, const int64_t* indices,
                    const double* bound, const double* level, int64_t limit, int64_t* picks, double* scores,
                    const Device&) {
  const int64_t m = rows.count;
  const auto run = rows.wide ? greedy_in_block<double> : greedy_in_block<float>;
  const int64_t made =
      m == 0 ? 0 : run(rows, shift, metric, values, indices, *bound, *level, std::min(limit, m), picks, scores);
  std::fill(picks + made, picks + m, -1);
  std::fill(scores + made, scores + m, 0.0);
}

}  // namespace alkernels::cpu
