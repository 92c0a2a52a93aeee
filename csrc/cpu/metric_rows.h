// Rows packed for a metric, shared by the CPU ops: widened, shifted or scaled as the metric asks, and the bound on
// what rounding may do to the distances that come of them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#include "../common/check.h"
#include "simd/distance_tile.h"

namespace alkernels {

// Some consecutive rows, packed. Owns its memory; fill() may be called again for other rows.
template <typename T>
class PackedTile {
 public:
  PackedTile(const Rows& rows, Metric metric, const double* shift, int64_t capacity)
      : rows_(rows), metric_(metric), capacity_(capacity), squared_norm_(static_cast<size_t>(capacity)) {
    const int64_t lanes = distance_tile<T>().lanes;
    packed_.factors = rows.factors;
    for (int f = 0; f < rows.factors; ++f) {
      packed_.width[f] = rows.factor[f].width * (metric == Metric::kSymmetricKl ? 2 : 1);
      packed_.stride[f] = (packed_.width[f] + lanes - 1) / lanes * lanes;
      memory_[f].reset(new T[static_cast<size_t>(capacity * packed_.stride[f])]);  // pages are touched by fill()
      packed_.factor[f] = memory_[f].get();
    }
    packed_.squared_norm = squared_norm_.data();
    packed_.squared_length = packed_.squared_norm;
    if (metric == Metric::kSymmetricKl) {
      squared_length_.resize(static_cast<size_t>(capacity));
      packed_.squared_length = squared_length_.data();
    }
    if (rows.factors == 2) second_norm_.resize(static_cast<size_t>(capacity));
    shift_.resize(static_cast<size_t>(std::max(packed_.stride[0], packed_.stride[1])));
    if (shift) std::copy_n(shift, rows.factor[0].width, shift_.begin());
  }
  PackedTile(const PackedTile&) = delete;
  PackedTile& operator=(const PackedTile&) = delete;

  // Packs source rows [begin, begin + count) as rows at, at + 1, ... of the tile.
  const PackedRows<T>& fill(int64_t begin, int64_t count, int64_t at = 0) {
    const auto& tile = distance_tile<T>();
    for (int f = 0; f < rows_.factors; ++f) {
      T* norms = (f == 0 ? squared_norm_.data() : second_norm_.data()) + at;
      tile.pack(rows_.factor[f], begin, count, capacity_, shift_.data(), packed_.factor[f] + at * packed_.stride[f],
                packed_.stride[f], norms);
    }
    for (int64_t r = 0; r < count; ++r) {
      const auto to = static_cast<size_t>(at + r);
      if (rows_.factors == 2)
        squared_norm_[to] = usable(0, at + r) && usable(1, at + r) ? squared_norm_[to] * second_norm_[to]
                                                                   : std::numeric_limits<T>::quiet_NaN();
      if (metric_ == Metric::kCosine) scale_to_unit(begin + r, at + r);
      if (metric_ == Metric::kSymmetricKl) append_logarithms(at + r);
    }
    return packed_;
  }

  // Makes row r of another tile row `at` of this one.
  void copy(const PackedRows<T>& other, int64_t r, int64_t at) {
    for (int f = 0; f < packed_.factors; ++f) {
      const int64_t stride = packed_.stride[f];
      std::copy_n(other.factor[f] + r * stride, stride, packed_.factor[f] + at * stride);
    }
    packed_.squared_norm[at] = other.squared_norm[r];
    packed_.squared_length[at] = other.squared_length[r];
  }

  const PackedRows<T>& rows() const { return packed_; }

 private:
  // Whether a factor's squared norm kept its digits: no under- or overflow hides behind the product of two.
  bool usable(int f, int64_t r) const {
    const T norm = (f == 0 ? squared_norm_ : second_norm_)[static_cast<size_t>(r)];
    if (norm > std::numeric_limits<T>::min() * T(1e8) && norm < std::numeric_limits<T>::max() / T(1e8)) return true;
    const T* row = packed_.factor[f] + r * packed_.stride[f];
    return std::all_of(row, row + packed_.width[f], [](T x) { return x == 0; });
  }

  // Scales row r to length one. A row of zeros stays one and counts as orthogonal to everything: its squared norm
  // of 1 makes its squared distance to any unit vector 2, a cosine distance of 1.
  void scale_to_unit(int64_t source_row, int64_t r) {
    const T norm = squared_norm_[static_cast<size_t>(r)];
    squared_norm_[static_cast<size_t>(r)] = 1;
    T* row = packed_.factor[0] + r * packed_.stride[0];
    const int64_t width = packed_.width[0];
    if (norm > T(1e-30) && norm < T(1e30)) {
      const T scale = T(1) / std::sqrt(norm);
      for (int64_t c = 0; c < width; ++c) row[c] *= scale;
      return;
    }
    // The square under- or overflows in T: once more in float64, from the largest element on.
    const auto& wide = distance_tile<double>();
    const int64_t stride = (width + wide.lanes - 1) / wide.lanes * wide.lanes;
    std::vector<double> x(static_cast<size_t>(stride)), zeros(static_cast<size_t>(stride));
    double wide_norm = 0;
    wide.pack(rows_.factor[0], source_row, 1, 0, zeros.data(), x.data(), stride, &wide_norm);
    if (!std::isfinite(wide_norm)) {  // the caller finds out what is wrong with the row
      squared_norm_[static_cast<size_t>(r)] = std::numeric_limits<T>::quiet_NaN();
      std::fill_n(row, width, std::numeric_limits<T>::quiet_NaN());
      return;
    }
    double largest = 0;
    for (const double v : x) largest = std::max(largest, std::abs(v));
    if (largest > 0) {
      for (double& v : x) v /= largest;
    }
    const double length = std::sqrt(wide.dot(x.data(), x.data(), stride));
    for (int64_t c = 0; c < width; ++c) row[c] = length > 0 ? static_cast<T>(x[static_cast<size_t>(c)] / length) : T(0);
  }

  // Makes a row p of symmetric KL (p, log p) / 2. Several threads may fill rows of one tile: nothing is shared.
  void append_logarithms(int64_t r) {
    constexpr int64_t kChunk = 64;  // a multiple of every instruction set's lanes
    T* p = packed_.factor[0] + r * packed_.stride[0];
    const int64_t classes = packed_.width[0] / 2;
    T norm = 0, length = 0, logs[kChunk];
    for (int64_t begin = 0; begin < classes; begin += kChunk) {
      const int64_t count = std::min(kChunk, classes - begin);
      std::fill(std::copy_n(p + begin, count, logs), logs + kChunk, T(1));
      distance_tile<T>().log(kChunk, logs);
      for (int64_t i = 0; i < count; ++i) {
        T &x = p[begin + i], log = logs[i];
        if (!(x >= std::numeric_limits<T>::min())) log = x > 0 ? std::log(x) : static_cast<T>(kLogOfZero);
        norm += x * log / 2;
        x /= 2;
        log /= 2;
        p[classes + begin + i] = log;
        length += x * x + log * log;
      }
    }
    squared_norm_[static_cast<size_t>(r)] = norm;
    squared_length_[static_cast<size_t>(r)] = length;
  }

  const Rows rows_;
  const Metric metric_;
  const int64_t capacity_;
  std::vector<T> shift_;  // zeros where the metric has none
  std::unique_ptr<T[]> memory_[kMaxFactors];
  std::vector<T> squared_norm_, second_norm_, squared_length_;
  PackedRows<T> packed_;
};

// How a pass over rows is blocked: a tile of packed rows is swept with a group of packed columns, each a share of L2.
struct Blocking {
  int64_t tile_rows;  // a multiple of the register tile's rows
  int64_t group;      // a multiple of its panel
};

template <typename T>
Blocking blocking(const Rows& rows) {
  constexpr int64_t kTileBytes = 128 << 10, kGroupBytes = 256 << 10, kMaxTileRows = 256;
  const auto& simd = distance_tile<T>();
  const int64_t row_bytes = rows.width() * static_cast<int64_t>(sizeof(T));
  return {std::clamp(kTileBytes / row_bytes, simd.rows, kMaxTileRows) / simd.rows * simd.rows,
          std::max<int64_t>(kGroupBytes / row_bytes / simd.panel, 1) * simd.panel};
}

// Runs worker(next) on torch's threads; each call of next() hands out one of [0, tasks), or -1 at the end.
template <typename Worker>
void parallel_tasks(int64_t tasks, const Worker& worker) {
  std::atomic<int64_t> counter{0};
  const auto next = [&]() -> int64_t {
    const int64_t task = counter.fetch_add(1, std::memory_order_relaxed);
    return task < tasks ? task : -1;
  };
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), tasks);
  if (threads <= 1) {
    worker(next);
    return;
  }
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) worker(next);
  });
}

// A block of centres: interleaved for the register tile and, once somebody asks, row by row in float64 for
// exact_distance.
template <typename T>
class PackedBlock {
 public:
  PackedBlock(const Rows& rows, Metric metric, const double* shift)
      : tile_(rows, metric, shift, rows.count), exact_(rows, metric, nullptr, rows.count) {
    const auto& simd = distance_tile<T>();
    const PackedRows<T>& plain = tile_.rows();
    const int64_t full = rows.count / simd.panel * simd.panel;
    const int64_t rest = rows.count - full;
    const int64_t last = rest == 0 ? 0 : rest <= simd.lanes ? simd.lanes : simd.panel;
    const int64_t padded = full + last;
    centers_.count = rows.count;
    centers_.factors = rows.factors;
    for (int f = 0; f < rows.factors; ++f) {
      interleaved_[f].assign(static_cast<size_t>(padded * plain.width[f]), T(0));
      centers_.factor[f] = interleaved_[f].data();
      centers_.width[f] = plain.width[f];
    }
    parallel_tasks((padded + simd.panel - 1) / simd.panel, [&](const auto& next) {
      for (int64_t task; (task = next()) >= 0;) {
        const int64_t first = task * simd.panel, lanes = first < full ? simd.panel : last;
        const int64_t count = std::min(lanes, rows.count - first);
        tile_.fill(first, count, first);
        for (int f = 0; f < rows.factors; ++f) {
          interleave(plain.factor[f] + first * plain.stride[f], plain.stride[f], count, plain.width[f], lanes,
                     interleaved_[f].data() + first * plain.width[f]);
        }
        if (metric == Metric::kSymmetricKl) {  // (log q, q), to meet (p, log p)
          T* panel = interleaved_[0].data() + first * plain.width[0];
          std::swap_ranges(panel, panel + plain.width[0] / 2 * lanes, panel + plain.width[0] / 2 * lanes);
        }
      }
    });
    squared_norm_.assign(static_cast<size_t>(padded), std::numeric_limits<T>::infinity());
    std::copy_n(plain.squared_norm, rows.count, squared_norm_.begin());
    centers_.squared_norm = squared_norm_.data();
    for (int64_t j = 0; j < rows.count; ++j) {
      const T length = plain.squared_length[j];
      largest_ = std::isnan(length) ? std::numeric_limits<T>::infinity() : std::max(largest_, length);
    }
  }

  const PackedCenters<T>& centers() const { return centers_; }
  const PackedRows<T>& rows() const { return tile_.rows(); }
  T largest_squared_length() const { return largest_; }

  const PackedRows<double>& exact() const {
    std::call_once(exact_once_, [this] { exact_.fill(0, centers_.count); });
    return exact_.rows();
  }

 private:
  // panel[c][j] = rows[j][c], a few features at a time so that the lines written stay in L1
  static void interleave(const T* rows, int64_t stride, int64_t count, int64_t width, int64_t lanes, T* panel) {
    constexpr int64_t kFeatures = 16;
    for (int64_t begin = 0; begin < width; begin += kFeatures) {
      const int64_t end = std::min(begin + kFeatures, width);
      for (int64_t j = 0; j < count; ++j) {
        for (int64_t c = begin; c < end; ++c) panel[c * lanes + j] = rows[j * stride + c];
      }
    }
  }

  PackedTile<T> tile_;
  mutable PackedTile<double> exact_;
  mutable std::once_flag exact_once_;
  std::vector<T> interleaved_[kMaxFactors];
  std::vector<T> squared_norm_;
  PackedCenters<T> centers_;
  T largest_ = 0;
};

// The squared distance of two rows from float64 differences of their raw features: no shift, no large numbers
// subtracted.
inline double exact_distance(Metric metric, const PackedRows<double>& x, int64_t i, const PackedRows<double>& c,
                             int64_t j) {
  const auto& tile = distance_tile<double>();
  const double* a = x.factor[0] + i * x.stride[0];
  const double* b = c.factor[0] + j * c.stride[0];
  if (metric == Metric::kOuter) {
    const double* h = x.factor[1] + i * x.stride[1];
    const double* g = c.factor[1] + j * c.stride[1];
    // a ⊗ h - b ⊗ g = u ⊗ h + b ⊗ v with u = a - b, v = h - g
    double uu = 0, ub = 0, bb = 0, vv = 0, vh = 0, hh = 0;
    for (int64_t k = 0; k < x.width[0]; ++k) {
      const double u = a[k] - b[k];
      uu += u * u;
      ub += u * b[k];
      bb += b[k] * b[k];
    }
    for (int64_t k = 0; k < x.width[1]; ++k) {
      const double v = h[k] - g[k];
      vv += v * v;
      vh += v * h[k];
      hh += h[k] * h[k];
    }
    const double d = uu * hh + bb * vv + 2 * ub * vh;
    return d < 0 ? 0 : d;  // NaN stays NaN
  }
  if (metric == Metric::kSymmetricKl) {
    const int64_t classes = x.width[0] / 2;
    double sum = 0;  // no term is negative: nothing cancels
    int apart = 0;   // classes that one rules out and the other allows
    for (int64_t k = 0; k < classes; ++k) {
      sum += (a[k] - b[k]) * (a[classes + k] - b[classes + k]);
      apart |= (a[classes + k] < kLogOfZero / 4) ^ (b[classes + k] < kLogOfZero / 4);
    }
    return apart ? std::numeric_limits<double>::infinity() : 2 * sum;
  }
  if (metric == Metric::kCosine) {
    if (tile.dot(a, a, x.stride[0]) == 0 || tile.dot(b, b, x.stride[0]) == 0) return 2;
    if (std::isnan(x.squared_norm[i] + c.squared_norm[j])) return std::numeric_limits<double>::quiet_NaN();
  }
  return tile.squared_difference(a, b, x.stride[0]);
}

// How far n_i + n_j - 2 * product may be from the truth when computed in T, as a share of n_i + n_j: multiples of the
// unit rounding error, above what the worst data gave (all summands of one sign and size, where roundings add up along
// a run of 32 features, a span of 16 runs and the spans). tests/test_error_bound.py holds it against float64.
template <typename T>
double error_share(const Rows& rows, Metric metric) {
  double multiples = 0;
  for (int f = 0; f < rows.factors; ++f) {
    const auto width = static_cast<double>(rows.factor[f].width * (metric == Metric::kSymmetricKl ? 2 : 1));
    multiples += 6 + (width <= 64 ? width : 32.0) / 5 + std::min(width, 512.0) / 128 + width / 1024;
  }
  return multiples * static_cast<double>(std::numeric_limits<T>::epsilon()) / 2;
}

}  // namespace alkernels
