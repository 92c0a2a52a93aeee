// All squared distances inside a small block of rows, for the sequential rule that is played out in it.
#pragma once

#include "metric_rows.h"

namespace alkernels {

template <typename T>
class BlockDistances {
 public:
  BlockDistances(const Rows& rows, Metric metric, const double* shift)
      : count_(rows.count),
        metric_(metric),
        share_(error_share<T>(rows, metric)),
        block_(rows, metric, shift),
        matrix_(static_cast<size_t>(rows.count * rows.count)) {
    constexpr int64_t kRowsATask = 24;
    const auto& simd = distance_tile<T>();
    parallel_tasks((count_ + kRowsATask - 1) / kRowsATask, [&](const auto& next) {
      for (int64_t task; (task = next()) >= 0;) {
        simd.matrix(block_.rows(), task * kRowsATask, std::min(count_, (task + 1) * kRowsATask), block_.centers(), 0,
                    count_, matrix_.data(), count_);
      }
    });
  }

  // d2[i] = min(d2[i], distance from row i to row j); see lower_distances.cpp for `level`.
  void lower(int64_t j, double level, double* d2) const {
    const PackedRows<T>& rows = block_.rows();
    const T* row = matrix_.data() + j * count_;
    const double norm = static_cast<double>(rows.squared_length[j]);
    const double allowed = kTolerance * level;
    const bool usable = norm < kLargestNorm<T>;
    const auto known = [&](int64_t i) {
      return usable && static_cast<double>(rows.squared_length[i]) < kLargestNorm<T>;
    };
    const auto bound = [&](int64_t i) {
      return share_ * (norm + static_cast<double>(rows.squared_length[i])) + kTinySquare;
    };
    constexpr int64_t kStep = 16;  // few rows change at a pick: look at many at once, in a loop without branches
    for (int64_t begin = 0; begin < count_; begin += kStep) {
      const int64_t end = std::min(begin + kStep, count_);
      int changes = 0;
      for (int64_t i = begin; i < end; ++i) {
        const int open = d2[i] > 0, far = static_cast<double>(row[i]) >= d2[i] + bound(i), sure = known(i);
        changes |= open & (1 - (far & sure));
      }
      if (!changes) continue;
      for (int64_t i = begin; i < end; ++i) {
        if (d2[i] <= 0) continue;  // picked, or at a pick already
        double value = std::max(static_cast<double>(row[i]), 0.0);
        if (known(i) && value >= d2[i] + bound(i)) continue;
        if (!(known(i) && bound(i) <= allowed)) value = exact_distance(metric_, block_.exact(), i, block_.exact(), j);
        d2[i] = std::min(d2[i], value);
      }
    }
  }

 private:
  const int64_t count_;
  const Metric metric_;
  const double share_;
  const PackedBlock<T> block_;
  std::vector<T> matrix_;
};

}  // namespace alkernels
