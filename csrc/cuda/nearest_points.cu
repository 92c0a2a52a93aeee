// nearest_points: merges a block of points into each query's list of the k nearest, squared distances in float64.
//
// Queries and points are packed some 64 MB at a time; the product tile writes the product form of some queries and 2048
// points to a matrix that stays in L2 (product_matrix.cuh), which is scanned at once for those that may be among the k
// smallest. Those few are measured again from float64 differences, and only that decides (nearest.cuh). Traffic: the
// points once, the queries and lists once for each 64 MB of points, 8 bytes a pair from L2.
#include "nearest.cuh"

namespace alkernels::cuda {
namespace {

template <typename T>
struct Distances {
  Rows queries, points;
  Metric metric;
  double share;
  const double* length;   // of the queries
  const double* largest;  // length of each kScreened points: one far point blurs no other group's distances

  __device__ T value(int64_t, int64_t, T product) const { return product; }
  __device__ double error(int64_t row, int64_t first) const {
    return share * (length[row] + largest[first / kScreened]) + kTinySquare;
  }
  __device__ double exact(int64_t row, int64_t column) const {
    return exact_distance(metric, queries, row, points, column);
  }
};

template <typename T>
void nearest(const Rows& queries, const Rows& points, const double* shift_at, Metric metric, int64_t first_point,
             const Lists& lists, const Device& device) {
  const T* shift = padded_shift<T>(shift_at, queries.factor[0].width, device);
  const int64_t row_bytes = queries.width() * static_cast<int64_t>(sizeof(T));
  const int64_t some = std::max<int64_t>(kScreened, kPackedBytes / row_bytes / kScreened * kScreened);
  Packed<T> left = new_packed<T>(queries, metric, std::min(some, queries.count), device);
  Packed<T> right = new_packed<T>(points, metric, std::min(some, points.count), device);
  double* largest = device.scratch<double>(screened_groups(std::min(some, points.count)));
  const MergeSpace<T> space(std::min(some, queries.count), lists.k, device);
  for (int64_t first = 0; first < points.count; first += some) {
    const Rows columns = slice(points, first, std::min(some, points.count - first));
    pack(columns, metric, shift, true, right, device);
    largest_of(right.length, right.count, largest, device);
    for (int64_t begin = 0; begin < queries.count; begin += some) {
      const Rows rows = slice(queries, begin, std::min(some, queries.count - begin));
      pack(rows, metric, shift, false, left, device);
      const Distances<T> distances{rows, columns, metric, error_share<T>(queries, metric), left.length, largest};
      merge_nearest(left, right, distances, first_point + first,
                    {lists.k, lists.values + begin * lists.k, lists.indices + begin * lists.k}, space, device);
    }
  }
}

}  // namespace

void nearest_points(const Rows& queries, const Rows& points, const double* shift, Metric metric, int64_t first_point,
                    bool wide, const Lists& lists, const Device& device) {
  if (queries.count == 0 || points.count == 0 || lists.k == 0) return;
  (wide ? nearest<double> : nearest<float>)(queries, points, shift, metric, first_point, lists, device);
  check(cudaGetLastError());
}

}  // namespace alkernels::cuda
