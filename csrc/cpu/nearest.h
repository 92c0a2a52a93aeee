// The k smallest of many values a row, screened in T and decided in float64: behind nearest neighbours and smallest
// divergences.
#pragma once

#include "../common/candidate.h"
#include "metric_rows.h"

namespace alkernels {

// One row's list. Values arrive in T, each within `error` of the truth; those that may be among the k smallest wait in
// a buffer that is cut back when full, and are measured in float64 at the end. Ties go to the lower index.
template <typename T>
class NearestList {
 public:
  // values and indices: the k smallest so far in order, +inf and -1 where there are fewer.
  void begin(int64_t k, double error, double* values, int64_t* indices) {
    k_ = k;
    error_ = error;
    values_ = values;
    indices_ = indices;
    limit_ = static_cast<size_t>(2 * k + 16);
    found_.clear();
    ceiling_ = up(values[k - 1] + error);
  }

  // d: the values of columns first, first + 1, ...; `hits` has room for `count`.
  void screen(const T* d, int64_t count, int64_t first, int32_t* hits) {
    for (int64_t begin = 0; begin < count;) {
      // a few to begin with, so that the first cut lowers the ceiling before the many come
      const int64_t some = std::isinf(ceiling_) ? std::min(count - begin, static_cast<int64_t>(limit_)) : count - begin;
      const int64_t n = distance_tile<T>().at_most(d + begin, some, ceiling_, hits);
      for (int64_t i = 0; i < n; ++i) found_.push_back({d[begin + hits[i]], first + begin + hits[i]});
      if (found_.size() >= limit_) cut();
      begin += some;
    }
  }

  // exact(column) is the truth; the column's index is first + column.
  template <typename Exact>
  void finish(int64_t first, const Exact& exact) {
    if (found_.size() > static_cast<size_t>(k_)) cut();
    best_.clear();
    for (int64_t i = 0; i < k_ && indices_[i] >= 0; ++i) best_.push_back({-values_[i], indices_[i]});
    for (const Found& f : found_) {
      const Candidate candidate{-exact(f.column), first + f.column};
      if (before(candidate, {-values_[k_ - 1], indices_[k_ - 1] < 0 ? INT64_MAX : indices_[k_ - 1]}))
        best_.push_back(candidate);
    }
    const size_t kept = std::min(best_.size(), static_cast<size_t>(k_));
    std::partial_sort(best_.begin(), best_.begin() + static_cast<int64_t>(kept), best_.end(), before);
    for (size_t i = 0; i < kept; ++i) {
      values_[i] = -best_[i].value;
      indices_[i] = best_[i].index;
    }
  }

 private:
  struct Found {
    T value;
    int64_t column;
  };

  static T up(double x) {
    const T t = static_cast<T>(x);
    return static_cast<double>(t) < x ? std::nextafter(t, std::numeric_limits<T>::infinity()) : t;
  }

  // Keeps what the k-th smallest leaves a chance: two values closer than twice the error may be in either order.
  void cut() {
    const auto kth = found_.begin() + (k_ - 1);
    std::nth_element(found_.begin(), kth, found_.end(),
                     [](const Found& a, const Found& b) { return a.value < b.value; });
    ceiling_ = std::min(ceiling_, up(static_cast<double>(kth->value) + 2 * error_));
    found_.erase(std::remove_if(found_.begin(), found_.end(), [&](const Found& f) { return f.value > ceiling_; }),
                 found_.end());
    limit_ = std::max(limit_, 2 * found_.size());
  }

  int64_t k_ = 0;
  double error_ = 0;
  double* values_ = nullptr;
  int64_t* indices_ = nullptr;
  T ceiling_ = 0;
  size_t limit_ = 0;
  std::vector<Found> found_;
  std::vector<Candidate> best_;
};

}  // namespace alkernels
