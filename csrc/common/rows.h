// Rows as callers pass them and what their metrics mean, for every device.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "host_device.h"

namespace alkernels {

enum class Metric : int64_t { kEuclidean = 0, kCosine = 1, kOuter = 2, kSymmetricKl = 3 };

enum class Element { kFloat16, kBFloat16, kFloat32, kFloat64 };

// Rows as they lie in the caller's memory. Strides are in elements.
struct RowSource {
  const void* data = nullptr;
  Element element = Element::kFloat32;
  int64_t rows = 0;
  int64_t width = 0;
  int64_t row_stride = 0;
  int64_t column_stride = 0;
};

constexpr int kMaxFactors = 2;

// A pool, a labelled set or a block of centres as the caller passes it: one tensor, or two for outer products.
struct Rows {
  RowSource factor[kMaxFactors];
  int factors = 1;
  int64_t count = 0;
  bool wide = false;  // any float64: compute in float64

  ALK_HOST_DEVICE int64_t width() const { return factor[0].width + (factors == 2 ? factor[1].width : 0); }
};

// Stands for the logarithm of a probability of zero. Its square, and so a row's squared length, is infinite: such rows
// are measured one by one.
constexpr double kLogOfZero = -1e300;

// Squares below this have lost digits to underflow in float32.
constexpr double kTinySquare = 1e-36;

// A product form n_i + n_j - 2 * product is off by at most a share of n_i + n_j (each device's own, from how it sums).
// For the nearest of all centres, given that it is at most sqrt(d2) away: by the triangle inequality its norm is then
// at most |x| + sqrt(d2), however large the norms of others are.
ALK_HOST_DEVICE inline double error_bound(double share, double norm, double d2, double largest_norm) {
  const double reached = norm + d2 + 2 * sqrt(norm * d2);
  return share * (norm + (reached < largest_norm ? reached : largest_norm)) + kTinySquare;
}

// Whether error_bound holds: symmetric KL has no triangle.
ALK_HOST_DEVICE inline bool has_triangle(Metric metric) { return metric != Metric::kSymmetricKl; }

// Norms up to this leave room for sums and products in T; rows or centres beyond it are measured in float64.
template <typename T>
constexpr double kLargestNorm = static_cast<double>(std::numeric_limits<T>::max()) / 8;

// A distance computed in T is good enough where its error bound is below this share of the largest squared distance:
// errors E <= 1e-5 * max d2 keep every pick's distance within 1e-5 of the best.
constexpr double kTolerance = 1e-5;

}  // namespace alkernels
