// nearest_points: merges a block of points into each query's list of the k nearest, squared distances in float64.
//
// The block is packed once; the queries go through in tiles that stay in cache, swept with a group of points at a time
// that does too. The register tile writes a few rows of distances, which are scanned at once for those that may be
// among the k smallest: no queries x points matrix exists. Those few are measured again from float64 differences, and
// only that decides. Traffic: queries and lists once, the packed points once a tile of queries from L2 or beyond.
#include "nearest.h"

#include <torch/csrc/stable/library.h>

namespace alkernels {
namespace {

template <typename T>
void nearest(const Rows& queries, const Rows& points, const double* shift, Metric metric, int64_t first_point,
             int64_t k, double* values, int64_t* indices) {
  const auto& simd = distance_tile<T>();
  const PackedBlock<T> block(points, metric, shift);
  const double share = error_share<T>(queries, metric);
  const Blocking by = blocking<T>(queries);
  std::vector<double> largest;  // squared length of each group: one far point blurs no other group's distances
  for (int64_t first = 0; first < points.count; first += by.group) {
    const T* length = block.rows().squared_length + first;
    largest.push_back(
        static_cast<double>(*std::max_element(length, length + std::min(by.group, points.count - first))));
  }
  const int64_t tile_rows = NearestList<T>::tile_rows(by, k);
  const int64_t ld = (std::min(by.group, points.count) + simd.lanes - 1) / simd.lanes * simd.lanes;
  parallel_tasks((queries.count + tile_rows - 1) / tile_rows, [&](const auto& next) {
    PackedTile<T> tile(queries, metric, shift, tile_rows);
    PackedTile<double> exact(queries, metric, nullptr, 1);
    std::vector<NearestList<T>> lists(static_cast<size_t>(tile_rows));
    std::vector<T> matrix(static_cast<size_t>(simd.rows * ld));
    std::vector<int32_t> hits(static_cast<size_t>(ld));
    for (int64_t task; (task = next()) >= 0;) {
      const int64_t begin = task * tile_rows, count = std::min(tile_rows, queries.count - begin);
      const PackedRows<T>& rows = tile.fill(begin, count);
      for (int64_t r = 0; r < count; ++r)
        lists[static_cast<size_t>(r)].begin(k, first_point, values + (begin + r) * k, indices + (begin + r) * k);
      int64_t filled = -1;
      const auto exactly = [&](int64_t r) {
        return [&, r](int64_t j) {
          if (filled != begin + r) exact.fill(begin + r, 1);
          filled = begin + r;
          return exact_distance(metric, exact.rows(), 0, block.exact(), j);
        };
      };
      for (int64_t first = 0; first < points.count; first += by.group) {
        const int64_t width = std::min(by.group, points.count - first);
        const double length = largest[static_cast<size_t>(first / by.group)];
        for (int64_t row = 0; row < count; row += simd.rows) {
          const int64_t last = std::min(count, row + simd.rows);
          simd.matrix(rows, row, last, block.centers(), first, first + width, matrix.data() - row * ld - first, ld);
          for (int64_t r = row; r < last; ++r) {
            const double error = share * (static_cast<double>(rows.squared_length[r]) + length) + kTinySquare;
            lists[static_cast<size_t>(r)].screen(matrix.data() + (r - row) * ld, width, first, error, hits.data(),
                                                 exactly(r));
          }
        }
      }
      for (int64_t r = 0; r < count; ++r) lists[static_cast<size_t>(r)].finish(exactly(r));
    }
  });
}

void nearest_points_cpu(Tensor queries, Tensor points, std::optional<Tensor> shift, int64_t metric_code,
                        int64_t first_point, bool wide, Tensor values, Tensor indices) {
  constexpr const char* kOp = "nearest_points";
  const Metric metric = metric_of(metric_code, kOp);
  const Rows left = rows_of(queries, std::nullopt, metric, kOp, "queries");
  const Rows right = rows_of(points, std::nullopt, metric, kOp, "points");
  check_alike(left, right, kOp, "points");
  check_lists(values, indices, left.count, kOp);
  const int64_t k = values.size(1);
  if (left.count == 0 || right.count == 0 || k == 0) return;
  (wide ? nearest<double> : nearest<float>)(left, right, shift_of(shift, left, kOp), metric, first_point, k,
                                            values.mutable_data_ptr<double>(), indices.mutable_data_ptr<int64_t>());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(alkernels, CPU, m) { m.impl("nearest_points", TORCH_BOX(&nearest_points_cpu)); }

}  // namespace alkernels
