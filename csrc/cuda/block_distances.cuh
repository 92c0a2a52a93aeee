// All squared distances inside a small block of rows, for the sequential rule that one block of threads plays out in
// it.
#pragma once

#include "product_matrix.cuh"

namespace alkernels::cuda {

constexpr int kPlayers = 256;  // threads that share out the rows of a block
constexpr int kNear = 1024;    // rows whose distances shared memory holds

template <typename T>
struct BlockDistances {
  Rows rows;  // as the caller has them
  Metric metric;
  int64_t count;
  double share;
  const double* length;
  const T* matrix;

  // d2[i] = min(d2[i], distance from row i to row j); see lower_distances.cu for `level`. By all lanes of a warp, each
  // with an i of its own; what products do not tell is measured by the warp together, one row at a time, or if rows are
  // narrow by each lane for itself.
  __device__ void lower(int64_t i, int64_t j, double level, double* d2) const {
    const bool inside = i < count;
    double value = 0, now = 0;
    bool open = false, measure = false;
    if (inside) {
      now = d2[i];
      value = fmax(static_cast<double>(matrix[j * count + i]), 0.0);
      const bool known = length[i] < kLargestNorm<T> && length[j] < kLargestNorm<T>;
      const double bound = share * (length[i] + length[j]) + kTinySquare;
      open = now > 0 && !(known && value >= now + bound);  // picked rows and rows at a pick stay
      measure = open && !(known && bound <= kTolerance * level);
    }
    if (measure && rows.width() <= kNarrow) {
      value = exact_distance<1>(metric, rows, i, rows, j);
      measure = false;
    }
    for (unsigned left = __ballot_sync(kAllLanes, measure); left; left &= left - 1) {
      const int turn = __ffs(static_cast<int>(left)) - 1;
      const double exact = exact_distance(metric, rows, __shfl_sync(kAllLanes, i, turn), rows, j);
      if (lane() == turn) value = exact;
    }
    if (open && value < now) d2[i] = value;
  }
};

template <typename T>
BlockDistances<T> block_distances(const Rows& rows, Metric metric, const double* shift_at, const Device& device) {
  const T* shift = padded_shift<T>(shift_at, rows.factor[0].width, device);
  Packed<T> packed = new_packed<T>(rows, metric, rows.count, device);
  pack(rows, metric, shift, false, packed, device);
  Packed<T> columns = packed;
  if (metric == Metric::kSymmetricKl) {
    columns = new_packed<T>(rows, metric, rows.count, device);
    pack(rows, metric, shift, true, columns, device);
  }
  T* matrix = device.scratch<T>(rows.count * rows.count);
  product_matrix(packed, columns, matrix, rows.count, device);
  return {rows, metric, rows.count, error_share<T>(rows, metric), packed.length, matrix};
}

}  // namespace alkernels::cuda
