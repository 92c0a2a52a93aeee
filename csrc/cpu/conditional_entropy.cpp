// conditional_entropy: out[n] = -sum_m mass[m] sum_c q log q, q[m, n, c] = sum_k weights[m, k] probs[n, k, c].
//
// A matrix product of the weights [m, K] with the probabilities as K x (n C) columns, whose register tile takes q log q
// on the spot (simd/row_sums.in.cpp): nothing of size m x n x C exists. The weights are packed once a call; the threads
// share out the columns, a few panels at a time that stay in L1 while the weights come from L2 or beyond. Traffic: the
// probabilities once, the packed weights once for each kColumns columns.
//
// With weights = the posterior over K draws given each of m label configurations, and mass = their probabilities, this
// is the entropy of a candidate's label given the labels of a batch (alkernels/ops/joint_entropy.py).
#include "device.h"
#include "metric_rows.h"
#include "simd/row_sums.h"

namespace alkernels::cpu {
namespace {

constexpr int64_t kColumns = 256;           // of probabilities that a thread sweeps the weights with at a time
constexpr int64_t kGroupBytes = 256 << 10;  // of weights that they are swept with before the next panel

// panel[k][j] = probs[n, k, c] for columns first + j = n * classes + c, zeros past the last
template <typename S, typename T>
void pack_panel(const Draws& probs, int64_t first, int64_t lanes, T* panel) {
  const int64_t end = std::min(first + lanes, probs.count * probs.classes);
  if (end < first + lanes) std::fill_n(panel, probs.draws * lanes, T(0));
  for (int64_t column = first; column < end;) {
    const int64_t n = column / probs.classes, c = column % probs.classes;
    const int64_t count = std::min(probs.classes - c, end - column);
    const S* from = static_cast<const S*>(probs.data) + n * probs.stride[0] + c * probs.stride[2];
    for (int64_t k = 0; k < probs.draws; ++k) {
      const S* x = from + k * probs.stride[1];
      T* to = panel + k * lanes + (column - first);
      if (probs.stride[2] == 1) {
        for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(x[i]);
      } else {
        for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(x[i * probs.stride[2]]);
      }
    }
    column += count;
  }
}

template <typename T>
void entropies(const Draws& probs, const Rows& weights, const double* mass, double* out) {
  const auto& simd = distance_tile<T>();
  const int64_t rows = weights.count, columns = probs.count * probs.classes;

  constexpr int64_t kRowsATask = 256;
  PackedTile<T> tile(weights, Metric::kEuclidean, nullptr, rows);
  std::vector<T> masses(static_cast<size_t>(rows));
  parallel_tasks((rows + kRowsATask - 1) / kRowsATask, [&](const auto& next) {
    for (int64_t task; (task = next()) >= 0;) {
      const int64_t begin = task * kRowsATask, end = std::min(rows, begin + kRowsATask);
      tile.fill(begin, end - begin, begin);
      std::copy(mass + begin, mass + end, masses.begin() + begin);
    }
  });
  const int64_t row_bytes = probs.draws * static_cast<int64_t>(sizeof(T));
  const int64_t group = std::max<int64_t>(kGroupBytes / row_bytes / simd.rows, 1) * simd.rows;

  // A candidate's columns are summed by one thread, in order.
  const int64_t candidates = std::max<int64_t>(1, kColumns / probs.classes);
  const int64_t width = (std::min(candidates * probs.classes, kColumns) + simd.panel - 1) / simd.panel * simd.panel;
  parallel_tasks((probs.count + candidates - 1) / candidates, [&](const auto& next) {
    std::vector<T> packed(static_cast<size_t>(width * probs.draws));
    std::vector<double> sums(static_cast<size_t>(width));
    for (int64_t task; (task = next()) >= 0;) {
      const int64_t last = std::min(columns, (task + 1) * candidates * probs.classes);
      for (int64_t first = task * candidates * probs.classes; first < last; first += width) {
        const int64_t count = std::min(width, last - first);
        PackedCenters<T> panels;
        panels.count = count;
        panels.factor[0] = packed.data();
        panels.width[0] = probs.draws;
        for (int64_t j = 0; j < count; j += simd.panel) {
          const int64_t lanes = count - j <= simd.lanes ? simd.lanes : simd.panel;
          T* panel = packed.data() + j * probs.draws;
          if (probs.wide) {
            pack_panel<double>(probs, first + j, lanes, panel);
          } else {
            pack_panel<float>(probs, first + j, lanes, panel);
          }
        }
        std::fill(sums.begin(), sums.end(), 0.0);
        for (int64_t row = 0; row < rows; row += group) {
          for (int64_t j = 0; j < count; j += simd.panel) {
            row_sums<T>().entropy(tile.rows(), row, std::min(rows, row + group), masses.data(), panels, j,
                                  std::min(count, j + simd.panel), sums.data());
          }
        }
        for (int64_t j = 0; j < count; ++j) out[(first + j) / probs.classes] += sums[static_cast<size_t>(j)];
      }
    }
  });
}

}  // namespace

void conditional_entropy(const Draws& probs, const Rows& weights, const double* mass, bool wide, double* out,
                         const Device&) {
  std::fill_n(out, probs.count, 0.0);
  if (probs.count == 0 || weights.count == 0) return;
  (wide ? entropies<double> : entropies<float>)(probs, weights, mass, out);
}

}  // namespace alkernels::cpu
