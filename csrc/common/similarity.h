// Similarities of greedy coverage as functions of a squared distance, for every device.
#pragma once

#include <cstdint>

#include "rows.h"

namespace alkernels {

enum class Similarity : int64_t { kCosine = 0, kRbf = 1, kTophat = 2 };

// A similarity as a function of the squared distance d2 (cosine: of rows of length one, a row of zeros at d2 = 2 from
// all). Exact with factor 1 and slack 0; chosen a little larger, it bounds the similarity from above.
template <typename T>
struct SimilarityOf {
  Similarity kind;
  T range;   // rbf: 1 / h^2; tophat: h^2
  T factor;  // the result is (what the definition says) * factor + slack
  T slack;
};

// What float32 adds to a similarity beyond the error of d2: the roundings of its own arithmetic.
constexpr double kRounding = 1e-6;

template <typename T>
inline SimilarityOf<T> exactly(Similarity kind, double bandwidth) {
  const double square = bandwidth * bandwidth;
  return {kind, static_cast<T>(kind == Similarity::kRbf ? 1 / square : square), T(1), T(0)};
}

// Not below the truth, given squared distances that are not above it.
inline SimilarityOf<float> at_least(Similarity kind, double bandwidth) {
  const double square = bandwidth * bandwidth;
  const float up = static_cast<float>(1 + kRounding);
  if (kind == Similarity::kRbf) return {kind, static_cast<float>((1 - kRounding) / square), up, 0.0f};
  return {kind, static_cast<float>(square * (1 + kRounding)), 1.0f, static_cast<float>(kRounding)};
}

}  // namespace alkernels
