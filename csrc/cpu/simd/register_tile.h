// The register tile, for the files beside it that are compiled once per instruction set: ALKERNELS_ISA names the
// namespace, ALKERNELS_VECTOR_BYTES the register width, ALKERNELS_ROWS x ALKERNELS_VECTORS the tile.
//
// The micro-kernel holds ROWS x (VECTORS * lanes) running inner products in registers: each step of the
// feature loop loads VECTORS vectors of interleaved columns, broadcasts one feature of each row and issues
// ROWS * VECTORS fused multiply-adds. What is wanted of the products (a minimum, a sum, the products themselves) is
// taken from the registers, so that they need not exist in memory. Written in the compilers' vector extensions, so that
// one text serves SSE2/NEON, AVX2 and AVX-512; no standard-library code in here, or a copy compiled for AVX-512 could
// be the one that the linker keeps for all.
#pragma once

#include <cstddef>
#include <cstdint>

#include "distance_tile.h"

namespace alkernels {
namespace ALKERNELS_ISA {
namespace {

constexpr int kRows = ALKERNELS_ROWS;
constexpr int kVectors = ALKERNELS_VECTORS;

// Inner products are summed in runs of kRun features, the runs in spans of kSpan, and the spans: shorter sums, less
// rounding. Rows of up to kNarrow features are one run, which keeps all sums in registers.
constexpr int64_t kNarrow = 64;
constexpr int64_t kRun = 32;
constexpr int64_t kSpan = 512;

template <typename T>
struct Simd;
template <>
struct Simd<float> {
  typedef float V __attribute__((vector_size(ALKERNELS_VECTOR_BYTES)));
  typedef int32_t I __attribute__((vector_size(ALKERNELS_VECTOR_BYTES)));
  using Int = int32_t;
};
template <>
struct Simd<double> {
  typedef double V __attribute__((vector_size(ALKERNELS_VECTOR_BYTES)));
  typedef int64_t I __attribute__((vector_size(ALKERNELS_VECTOR_BYTES)));
  using Int = int64_t;
};

template <typename T>
constexpr int kLanes = ALKERNELS_VECTOR_BYTES / sizeof(T);

template <typename T>
inline typename Simd<T>::V load(const T* p) {
  typename Simd<T>::V v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

template <typename T>
inline void store(T* p, typename Simd<T>::V v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

// Combines the lanes of a vector by halves: combine(low half, high half), down to one.
template <typename T, int Bytes>
struct Vector {
  typedef T Type __attribute__((vector_size(Bytes)));
};
template <typename T, int Bytes, typename Combine>
__attribute__((always_inline)) inline T fold(typename Vector<T, Bytes>::Type v, Combine combine) {
  if constexpr (Bytes == 2 * sizeof(T)) {
    return combine(v[0], v[1]);
  } else {
    typename Vector<T, Bytes / 2>::Type low, high;
    __builtin_memcpy(&low, &v, Bytes / 2);
    __builtin_memcpy(&high, reinterpret_cast<const char*>(&v) + Bytes / 2, Bytes / 2);
    return fold<T, Bytes / 2>(combine(low, high), combine);
  }
}

// ---- the register tile ----

// acc[r][v] = sum of row[r][c] * centre (v, lane)[c] over features [begin, end)
template <typename T, int NV>
__attribute__((always_inline)) inline void run_of_products(const T* const (&row)[kRows], const T* panel, int64_t begin,
                                                           int64_t end, typename Simd<T>::V (&acc)[kRows][NV]) {
  using V = typename Simd<T>::V;
  constexpr int L = kLanes<T>;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[r][v] = V{};
  }
  for (int64_t c = begin; c < end; ++c) {
    V b[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) b[v] = load<T>(panel + (c * NV + v) * L);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const T a = row[r][c];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[r][v] += a * b[v];
    }
  }
}

template <typename T, int NV>
__attribute__((always_inline)) inline void add_to(typename Simd<T>::V (&acc)[kRows][NV],
                                                  const typename Simd<T>::V (&more)[kRows][NV]) {
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[r][v] += more[r][v];
  }
}

template <typename T, int NV>
__attribute__((always_inline)) inline void span_of_products(const T* const (&row)[kRows], const T* panel, int64_t begin,
                                                            int64_t end, typename Simd<T>::V (&acc)[kRows][NV]) {
  run_of_products<T, NV>(row, panel, begin, end < begin + kRun ? end : begin + kRun, acc);
  for (int64_t c = begin + kRun; c < end; c += kRun) {
    typename Simd<T>::V run[kRows][NV];
    run_of_products<T, NV>(row, panel, c, end < c + kRun ? end : c + kRun, run);
    add_to<T, NV>(acc, run);
  }
}

// The same for wide rows, a span at a time. Not inlined: it would cost narrow rows their registers.
template <typename T, int NV>
__attribute__((noinline)) void wide_products(const T* const (&row)[kRows], const T* panel, int64_t width,
                                             typename Simd<T>::V (&acc)[kRows][NV]) {
  span_of_products<T, NV>(row, panel, 0, kSpan, acc);
  for (int64_t c = kSpan; c < width; c += kSpan) {
    typename Simd<T>::V span[kRows][NV];
    span_of_products<T, NV>(row, panel, c, width < c + kSpan ? width : c + kSpan, span);
    add_to<T, NV>(acc, span);
  }
}

// acc[r][v] = <row r, centre (v, lane)> over one factor
template <typename T, int NV>
__attribute__((always_inline)) inline void products(const T* const (&row)[kRows], const T* panel, int64_t width,
                                                    typename Simd<T>::V (&acc)[kRows][NV]) {
  if (width <= kNarrow) {
    run_of_products<T, NV>(row, panel, 0, width, acc);
  } else if (width > kSpan) {
    wide_products<T, NV>(row, panel, width, acc);
  } else {
    span_of_products<T, NV>(row, panel, 0, width, acc);
  }
}

// Calls use(r, v, product) for each vector of a panel of NV vectors that begins at column `first`: the products of all
// factors' inner products with the rows `index`.
template <typename T, int NV, typename Use>
__attribute__((always_inline)) inline void panel_products(const PackedRows<T>& rows, const PackedCenters<T>& columns,
                                                          const int64_t (&index)[kRows], int64_t first, Use use) {
  using V = typename Simd<T>::V;
  const auto factor = [&](int f, V(&out)[kRows][NV]) __attribute__((always_inline)) {
    const T* row[kRows];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) row[r] = rows.factor[f] + index[r] * rows.stride[f];
    products<T, NV>(row, columns.factor[f] + first * columns.width[f], rows.width[f], out);
  };
  V acc[kRows][NV];
  factor(0, acc);
  if (rows.factors == 2) {
    V other[kRows][NV];
    factor(1, other);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[r][v] *= other[r][v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) use(r, v, acc[r][v]);
  }
}

// Walks panels [begin, end): full ones of kVectors vectors, a last one of a single vector where that is enough.
template <typename T, typename Full, typename Tail>
__attribute__((always_inline)) inline void for_panels(int64_t begin, int64_t end, int64_t count, Full full, Tail tail) {
  constexpr int64_t kPanel = kVectors * kLanes<T>;
  for (int64_t first = begin; first < end; first += kPanel) {
    if (kVectors > 1 && count - first <= kLanes<T>) {
      tail(first);
    } else {
      full(first);
    }
  }
}

}  // namespace
}  // namespace ALKERNELS_ISA
}  // namespace alkernels
