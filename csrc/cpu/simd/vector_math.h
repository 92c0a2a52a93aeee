// Logarithm and exponential of vectors, for the files beside it that are compiled once per instruction set.
#pragma once

#include "register_tile.h"

namespace alkernels {
namespace ALKERNELS_ISA {
namespace {

template <typename T>
struct Bits;
template <>
struct Bits<float> {
  static constexpr uint32_t kRootHalf = 0x3f3504f3u, kBias = 127, kMagic = 0x4b000000u;
  static constexpr int kMantissa = 23, kTerms = 5, kDegree = 7;
  static constexpr float kRound = 0x1.8p23f, kLowest = -87.0f, kLn2High = 0x1.63p-1f, kLn2Low = -0x1.bd0106p-13f;
  typedef uint32_t U __attribute__((vector_size(ALKERNELS_VECTOR_BYTES)));
};
template <>
struct Bits<double> {
  static constexpr uint64_t kRootHalf = 0x3fe6a09e667f3bcdu, kBias = 1023, kMagic = 0x4330000000000000u;
  static constexpr int kMantissa = 52, kTerms = 11, kDegree = 13;
  static constexpr double kRound = 0x1.8p52, kLowest = -708.0, kLn2High = 0x1.62e42fee00000p-1,
                          kLn2Low = 0x1.a39ef35793c76p-33;
  typedef uint64_t U __attribute__((vector_size(ALKERNELS_VECTOR_BYTES)));
};

// log x for positive normal x, to a few units in the last place; finite for 0 and subnormals, NaN for none.
// x = 2^e m with sqrt(1/2) <= m < sqrt(2), and log m = 2 (s + s^3/3 + s^5/5 + ...), s = (m - 1) / (m + 1).
template <typename T>
__attribute__((always_inline)) inline typename Simd<T>::V log_of(typename Simd<T>::V x) {
  using V = typename Simd<T>::V;
  using B = Bits<T>;
  using U = typename B::U;
  U bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  const U exponent = (bits - B::kRootHalf + (B::kBias << B::kMantissa)) >> B::kMantissa;  // e + bias
  const U mantissa = bits - (exponent << B::kMantissa) + (B::kBias << B::kMantissa);
  const U counted = exponent | B::kMagic;  // as a float: 2^mantissa bits + e + bias
  V m, e;
  __builtin_memcpy(&m, &mantissa, sizeof(m));
  __builtin_memcpy(&e, &counted, sizeof(e));
  e -= static_cast<T>(uint64_t{1} << B::kMantissa) + static_cast<T>(B::kBias);
  const V s = (m - T(1)) / (m + T(1)), t = s * s;
  V series = V{} + T(1) / (2 * B::kTerms - 1);
#pragma GCC unroll 16
  for (int i = B::kTerms - 2; i > 0; --i) series = series * t + T(1) / (2 * i + 1);
  return e * T(0.693147180559945309417) + (T(2) * s + T(2) * s * t * series);
}

constexpr double one_over_factorial(int n) { return n < 2 ? 1.0 : one_over_factorial(n - 1) / n; }

// exp x for x <= 0, to a few units in the last place; 0 below the logarithm of the smallest normal number.
// x = n log 2 + r with |r| <= log(2) / 2, and exp r by its Taylor series.
template <typename T>
__attribute__((always_inline)) inline typename Simd<T>::V exp_of(typename Simd<T>::V x) {
  using V = typename Simd<T>::V;
  using B = Bits<T>;
  using U = typename B::U;
  const V low = V{} + B::kLowest, safe = x > low ? x : low;
  const V shifted = safe * T(1.44269504088896340736) + B::kRound;  // its last bits are n
  const V n = shifted - B::kRound;
  const V r = (safe - n * B::kLn2High) - n * B::kLn2Low;
  V series = V{} + static_cast<T>(one_over_factorial(B::kDegree));
#pragma GCC unroll 16
  for (int i = B::kDegree - 1; i >= 0; --i) series = series * r + static_cast<T>(one_over_factorial(i));
  U bits;
  __builtin_memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits + B::kBias) << B::kMantissa;  // the magic number's own last bits are zeros
  V scale;
  __builtin_memcpy(&scale, &bits, sizeof(scale));
  return x > low ? series * scale : V{};
}

}  // namespace
}  // namespace ALKERNELS_ISA
}  // namespace alkernels
