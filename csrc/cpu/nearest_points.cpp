// nearest_points: merges a block of points into each query's list of the k nearest, squared distances in float64.
//
// The block is packed once; the queries go through in tiles that stay in cache, swept with a group of points at a time
// that does too. The register tile writes a few rows of distances, which are scanned at once for those that may be
// among the k smallest: no queries x points matrix exists. Those few are measured again from float64 differences, and
// only that decides. Traffic: queries and lists once, the packed points once a tile of queries from L2 or beyond.
#include "nearest.h"

#include "device.h"

namespace alkernels::cpu {
namespace {

// A thread's queries at work (merge_nearest).
template <typename T>
class QueryTile {
 public:
  QueryTile(const Rows& queries, const PackedBlock<T>& block, const double* shift, Metric metric, int64_t group,
            const std::vector<double>& largest, int64_t capacity)
      : block_(block),
        metric_(metric),
        share_(error_share<T>(queries, metric)),
        group_(group),
        largest_(largest),
        tile_(queries, metric, shift, capacity),
        row_(queries, metric, nullptr, 1) {}

  void fill(int64_t begin, int64_t count) {
    begin_ = begin;
    tile_.fill(begin, count);
  }

  void matrix(int64_t first, int64_t last, int64_t begin, int64_t end, T* out, int64_t ld) const {
    distance_tile<T>().matrix(tile_.rows(), first, last, block_.centers(), begin, end, out, ld);
  }

  double error(int64_t r, int64_t begin) const {
    const double length = static_cast<double>(tile_.rows().squared_length[r]);
    return share_ * (length + largest_[static_cast<size_t>(begin / group_)]) + kTinySquare;
  }

  double exact(int64_t r, int64_t j) {
    if (filled_ != begin_ + r) row_.fill(begin_ + r, 1);
    filled_ = begin_ + r;
    return exact_distance(metric_, row_.rows(), 0, block_.exact(), j);
  }

 private:
  const PackedBlock<T>& block_;
  const Metric metric_;
  const double share_;
  const int64_t group_;
  const std::vector<double>& largest_;
  PackedTile<T> tile_;
  PackedTile<double> row_;
  int64_t begin_ = 0, filled_ = -1;
};

template <typename T>
void nearest(const Rows& queries, const Rows& points, const double* shift, Metric metric, int64_t first_point,
             int64_t k, double* values, int64_t* indices) {
  const PackedBlock<T> block(points, metric, shift);
  const Blocking by = blocking<T>(queries);
  std::vector<double> largest;  // squared length of each group: one far point blurs no other group's distances
  for (int64_t first = 0; first < points.count; first += by.group) {
    const T* length = block.rows().squared_length + first;
    largest.push_back(
        static_cast<double>(*std::max_element(length, length + std::min(by.group, points.count - first))));
  }
  merge_nearest<T>(queries.count, points.count, by, k, first_point, values, indices, [&](int64_t capacity) {
    return QueryTile<T>(queries, block, shift, metric, by.group, largest, capacity);
  });
}

}  // namespace

void nearest_points(const Rows& queries, const Rows& points, const double* shift, Metric metric, int64_t first_point,
                    bool wide, const Lists& lists, const Device&) {
  if (queries.count == 0 || points.count == 0 || lists.k == 0) return;
  (wide ? nearest<double> : nearest<float>)(queries, points, shift, metric, first_point, lists.k, lists.values,
                                            lists.indices);
}

}  // namespace alkernels::cpu
