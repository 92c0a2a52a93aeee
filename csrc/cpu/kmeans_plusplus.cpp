// The two steps of a block of k-means++ (D^2) seeding that are not a distance tile (../../README.md, "How it works").
//
// draw_by_weight: rows drawn with probability d2[i] / sum d2, one for each uniform. Sums of fixed chunks of rows in
// float64, then a search among the chunks and inside one: the same draw for any number of threads. Reads d2 once.
//
// kmeans_plusplus_block: proposals drawn from stale weights, accepted in order with probability (weight now) / (stale
// weight). An accepted row is distributed exactly as one drawn from the weights of that moment.
#include "block_distances.h"
#include "device.h"

namespace alkernels::cpu {
namespace {

constexpr int64_t kWindow = 32;  // the pass ends when fewer than a third of so many proposals were accepted

template <typename T>
int64_t accept_in_block(const Rows& rows, const double* shift, Metric metric, const double* value, const int64_t* index,
                        const double* uniform, int64_t limit, double level, int64_t* picks, double* scores) {
  const int64_t count = rows.count;
  const BlockDistances<T> distances(rows, metric, shift);
  std::vector<double> now(value, value + count);
  std::vector<bool> accepted(static_cast<size_t>(count), false);
  int64_t made = 0, recent = 0;
  for (int64_t i = 0; i < count && made < limit; ++i) {
    const double weight = now[static_cast<size_t>(i)];
    if (uniform[i] * value[i] < weight) {
      picks[made] = i;
      scores[made] = weight;
      ++made;
      ++recent;
      accepted[static_cast<size_t>(i)] = true;
      distances.lower(i, level, now.data());
      for (int64_t j = 0; j < count; ++j) {
        if (index[j] == index[i]) now[static_cast<size_t>(j)] = 0;
      }
    }
    if (i >= kWindow && accepted[static_cast<size_t>(i - kWindow)]) --recent;
    if (i + 1 >= kWindow && 3 * recent < kWindow) break;
  }
  return made;
}

}  // namespace

void draw_by_weight(const double* weight, int64_t n, const double* uniforms, int64_t draws, int64_t* indices,
                    double* total, const Device&) {
  constexpr int64_t kChunk = 4096;
  const int64_t chunks = (n + kChunk - 1) / kChunk;
  std::vector<double> before(static_cast<size_t>(chunks + 1), 0.0);  // weight in front of each chunk
  parallel_tasks(chunks, [&](const auto& next) {
    for (int64_t c; (c = next()) >= 0;) {
      double sum = 0;
      for (int64_t i = c * kChunk; i < std::min(n, (c + 1) * kChunk); ++i) sum += std::max(weight[i], 0.0);
      before[static_cast<size_t>(c + 1)] = sum;
    }
  });
  for (size_t c = 1; c < before.size(); ++c) before[c] += before[c - 1];
  *total = before.back();
  for (int64_t q = 0; q < draws; ++q) {
    indices[q] = -1;
    if (!(before.back() > 0)) continue;
    const double target = uniforms[q] * before.back();
    const auto at = std::upper_bound(before.begin() + 1, before.end() - 1, target) - before.begin() - 1;
    double sum = before[static_cast<size_t>(at)];
    for (int64_t i = at * kChunk; i < std::min(n, (at + 1) * kChunk); ++i) {
      if (weight[i] <= 0) continue;
      indices[q] = i;  // rounding may leave the target past the chunk's end: then its last row of any weight
      sum += weight[i];
      if (sum > target) break;
    }
    // ... or in a last chunk without any: then the last row of any weight in front of it
    for (int64_t i = at * kChunk; indices[q] < 0 && i > 0; --i) {
      if (weight[i - 1] > 0) indices[q] = i - 1;
    }
  }
}

void kmeans_plusplus_block(const Rows& rows, const double* shift, Metric metric, const double* values,
                           const int64_t* indices, const double* uniforms, const double* level, int64_t limit,
                           int64_t* picks, double* scores, const Device&) {
  const auto run = rows.wide ? accept_in_block<double> : accept_in_block<float>;
  const int64_t made = run(rows, shift, metric, values, indices, uniforms, limit, *level, picks, scores);
  std::fill(picks + made, picks + rows.count, -1);
  std::fill(scores + made, scores + rows.count, 0.0);
}

}  // namespace alkernels::cpu
