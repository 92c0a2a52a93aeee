// The k smallest of many values a row, screened in T and decided in float64: behind nearest neighbours and smallest
// divergences.
#pragma once

#include "../common/candidate.h"
#include "metric_rows.h"

namespace alkernels {

// One row's list. Values arrive in T, each known to some error; those that may be among the k smallest wait in a buffer
// that is cut back when full, and are measured in float64 at the end (or once they have become too many to wait). Ties
// go to the lower index.
template <typename T>
class NearestList {
 public:
  // Rows of a tile that leave a thread's lists room in some 16 MB.
  static int64_t tile_rows(const Blocking& by, int64_t k) {
    const int64_t simd_rows = distance_tile<T>().rows, entries = k + kMostWaiting + kMostAtATime;
    const int64_t bytes = entries * static_cast<int64_t>(sizeof(Found) + sizeof(Candidate));
    return std::clamp((int64_t{16} << 20) / bytes / simd_rows * simd_rows, simd_rows, by.tile_rows);
  }

  // values and indices: the k smallest so far in order, +inf and -1 where there are fewer. Columns are numbered from
  // first_index.
  void begin(int64_t k, int64_t first_index, double* values, int64_t* indices) {
    k_ = k;
    first_index_ = first_index;
    values_ = values;
    indices_ = indices;
    limit_ = static_cast<size_t>(2 * k + 16);
    found_.clear();
    ceiling_ = values[k - 1];
  }

  // d: the values of columns first, first + 1, ..., each within `error` of the truth, exact(column); `hits` has room
  // for `count`.
  template <typename Exact>
  void screen(const T* d, int64_t count, int64_t first, double error, int32_t* hits, const Exact& exact) {
    for (int64_t begin = 0; begin < count;) {
      // a few to begin with, so that the first cut lowers the ceiling before the many come; and never so many that a
      // screen that lets all through would fill the memory
      const int64_t most = std::isinf(ceiling_) ? static_cast<int64_t>(limit_) : kMostAtATime;
      const int64_t some = std::min(count - begin, most);
      const int64_t n = distance_tile<T>().at_most(d + begin, some, up(ceiling_ + error), hits);
      for (int64_t i = 0; i < n; ++i)
        found_.push_back({static_cast<double>(d[begin + hits[i]]), error, first + begin + hits[i]});
      if (found_.size() >= limit_) cut();
      if (static_cast<int64_t>(found_.size()) > kMostWaiting + k_) measure(exact);
      begin += some;
    }
  }

  template <typename Exact>
  void finish(const Exact& exact) {
    if (found_.size() > static_cast<size_t>(k_)) cut();
    measure(exact);
  }

 private:
  static constexpr int64_t kMostWaiting = 512;
  static constexpr int64_t kMostAtATime = 1024;

  struct Found {
    double value, error;
    int64_t column;
  };

  static T up(double x) {
    const T t = static_cast<T>(x);
    return static_cast<double>(t) < x ? std::nextafter(t, std::numeric_limits<T>::infinity()) : t;
  }

  // Drops what k others are certainly below.
  void cut() {
    const auto kth = found_.begin() + (k_ - 1);
    std::nth_element(found_.begin(), kth, found_.end(),
                     [](const Found& a, const Found& b) { return a.value + a.error < b.value + b.error; });
    ceiling_ = std::min(ceiling_, kth->value + kth->error);
    found_.erase(
        std::remove_if(found_.begin(), found_.end(), [&](const Found& f) { return f.value - f.error > ceiling_; }),
        found_.end());
    limit_ = std::max(limit_, 2 * found_.size());
  }

  // Merges what waits into the list.
  template <typename Exact>
  void measure(const Exact& exact) {
    best_.clear();
    for (int64_t i = 0; i < k_ && indices_[i] >= 0; ++i) best_.push_back({-values_[i], indices_[i]});
    const Candidate last{-values_[k_ - 1], indices_[k_ - 1] < 0 ? INT64_MAX : indices_[k_ - 1]};
    for (const Found& f : found_) {
      const Candidate candidate{-exact(f.column), first_index_ + f.column};
      if (before(candidate, last)) best_.push_back(candidate);
    }
    const size_t kept = std::min(best_.size(), static_cast<size_t>(k_));
    std::partial_sort(best_.begin(), best_.begin() + static_cast<int64_t>(kept), best_.end(), before);
    for (size_t i = 0; i < kept; ++i) {
      values_[i] = -best_[i].value;
      indices_[i] = best_[i].index;
    }
    ceiling_ = std::min(ceiling_, values_[k_ - 1]);
    found_.clear();
    limit_ = static_cast<size_t>(2 * k_ + 16);
  }

  int64_t k_ = 0, first_index_ = 0;
  double* values_ = nullptr;
  int64_t* indices_ = nullptr;
  double ceiling_ = 0;  // the k smallest are at most this
  size_t limit_ = 0;
  std::vector<Found> found_;
  std::vector<Candidate> best_;
};

// Merges all columns into each row's list: rows go through in tiles that stay in cache, swept with a group of columns
// at a time that does too. make_tile(capacity) gives a thread its tile, which has
//   fill(begin, count)                            takes in rows [begin, begin + count)
//   matrix(first, last, begin, end, out, ld)      out[r * ld + j] = values of its rows [first, last), columns [begin,
//   end) error(r, begin)                               bounds the errors of row r in the group of columns from `begin`
//   exact(r, j)                                   the truth
template <typename T, typename MakeTile>
void merge_nearest(int64_t rows, int64_t columns, const Blocking& by, int64_t k, int64_t first_index, double* values,
                   int64_t* indices, const MakeTile& make_tile) {
  const auto& simd = distance_tile<T>();
  const int64_t tile_rows = NearestList<T>::tile_rows(by, k);
  const int64_t ld = (std::min(by.group, columns) + simd.lanes - 1) / simd.lanes * simd.lanes;
  parallel_tasks((rows + tile_rows - 1) / tile_rows, [&](const auto& next) {
    auto tile = make_tile(tile_rows);
    std::vector<NearestList<T>> lists(static_cast<size_t>(tile_rows));
    std::vector<T> matrix(static_cast<size_t>(simd.rows * ld));
    std::vector<int32_t> hits(static_cast<size_t>(ld));
    const auto exact = [&](int64_t r) { return [&tile, r](int64_t j) { return tile.exact(r, j); }; };
    for (int64_t task; (task = next()) >= 0;) {
      const int64_t begin = task * tile_rows, count = std::min(tile_rows, rows - begin);
      tile.fill(begin, count);
      for (int64_t r = 0; r < count; ++r)
        lists[static_cast<size_t>(r)].begin(k, first_index, values + (begin + r) * k, indices + (begin + r) * k);
      for (int64_t first = 0; first < columns; first += by.group) {
        const int64_t last = std::min(columns, first + by.group);
        for (int64_t row = 0; row < count; row += simd.rows) {
          const int64_t end = std::min(count, row + simd.rows);
          tile.matrix(row, end, first, last, matrix.data() - row * ld - first, ld);
          for (int64_t r = row; r < end; ++r)
            lists[static_cast<size_t>(r)].screen(matrix.data() + (r - row) * ld, last - first, first,
                                                 tile.error(r, first), hits.data(), exact(r));
        }
      }
      for (int64_t r = 0; r < count; ++r) lists[static_cast<size_t>(r)].finish(exact(r));
    }
  });
}

}  // namespace alkernels
