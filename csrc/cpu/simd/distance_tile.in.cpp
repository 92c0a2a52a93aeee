// Compiled once per instruction set: ALKERNELS_ISA names the namespace, ALKERNELS_VECTOR_BYTES the register width,
// ALKERNELS_ROWS x ALKERNELS_VECTORS the register tile.
//
// The micro-kernel holds ROWS x (VECTORS * lanes) running inner products in registers: each step of the
// feature loop loads VECTORS vectors of interleaved centres, broadcasts one feature of each row and issues
// ROWS * VECTORS fused multiply-adds. The minimum over centres is taken from the registers, so the N x s
// matrix of products never exists. Written in the compilers' vector extensions, so that one text serves
// SSE2/NEON, AVX2 and AVX-512; no standard-library code in here, or a copy compiled for AVX-512 could be the
// one that the linker keeps for all.
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

template <typename T>
constexpr T infinity() {
  return static_cast<T>(__builtin_inf());
}

// ---- one pair ----

template <typename T, bool kDifference>
T pair(const T* x, const T* y, int64_t count) {
  using V = typename Simd<T>::V;
  constexpr int L = kLanes<T>;
  V sum[4] = {};
  int64_t c = 0;
  for (; c + 4 * L <= count; c += 4 * L) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) {
      const V a = load<T>(x + c + u * L), b = load<T>(y + c + u * L);
      if constexpr (kDifference) {
        sum[u] += (a - b) * (a - b);
      } else {
        sum[u] += a * b;
      }
    }
  }
  for (; c < count; c += L) {
    const V a = load<T>(x + c), b = load<T>(y + c);
    if constexpr (kDifference) {
      sum[0] += (a - b) * (a - b);
    } else {
      sum[0] += a * b;
    }
  }
  const V total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  return fold<T, ALKERNELS_VECTOR_BYTES>(total, [](auto a, auto b) { return a + b; });
}

// ---- widening ----

inline float from_bits(uint32_t bits) {
  float f;
  __builtin_memcpy(&f, &bits, sizeof(f));
  return f;
}

struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat x) { return from_bits(static_cast<uint32_t>(x.bits) << 16); }
inline float widen(Half x) {
  // Put exponent and mantissa in place and let one exact multiplication re-bias, subnormals included.
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  const uint32_t special = (x.bits & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  const float scaled = from_bits(magnitude) * 0x1p112f;
  uint32_t bits;
  __builtin_memcpy(&bits, &scaled, sizeof(bits));
  if (special) bits = magnitude | special;
  return from_bits(bits | (static_cast<uint32_t>(x.bits & 0x8000u) << 16));
}

// Sums of 16 vectors in T, those in float64: like the products' sums, short.
template <typename T>
__attribute__((always_inline)) inline T squared_length(const T* x, int64_t count) {
  constexpr int L = kLanes<T>;
  double total = 0;
  for (int64_t begin = 0; begin < count; begin += 16 * L) {
    const int64_t end = begin + 16 * L < count ? begin + 16 * L : count;
    typename Simd<T>::V even = {}, odd = {};
    int64_t c = begin;
    for (; c + 2 * L <= end; c += 2 * L) {
      const auto a = load<T>(x + c), b = load<T>(x + c + L);
      even += a * a;
      odd += b * b;
    }
    if (c < end) {
      const auto a = load<T>(x + c);
      even += a * a;
    }
    total += static_cast<double>(fold<T, ALKERNELS_VECTOR_BYTES>(even + odd, [](auto a, auto b) { return a + b; }));
  }
  return static_cast<T>(total);
}

template <typename T, typename S>
inline typename Simd<T>::V widen_vector(const S* x) {
  if constexpr (sizeof(S) == sizeof(T)) {
    return load<T>(reinterpret_cast<const T*>(x));
  } else {
    T wide[kLanes<T>];
    for (int l = 0; l < kLanes<T>; ++l) wide[l] = static_cast<T>(widen(x[l]));
    return load<T>(wide);
  }
}

template <typename S, typename T>
void pack_as(const RowSource& source, int64_t begin, int64_t count, int64_t ahead, const T* shift, T* out,
             int64_t stride, T* squared_norm) {
  constexpr int L = kLanes<T>;
  const S* base = static_cast<const S*>(source.data) + begin * source.row_stride;
  const int64_t width = source.width;
  if (source.column_stride == 1) {
    for (int64_t r = 0; r < count; ++r) {
      const S* x = base + r * source.row_stride;
      const S* later = x + ahead * source.row_stride;
      for (int64_t c = 0; c < width; c += 64 / static_cast<int64_t>(sizeof(S))) __builtin_prefetch(later + c, 0, 2);
      T* o = out + r * stride;
      int64_t c = 0;
      for (; c + L <= width; c += L) store<T>(o + c, widen_vector<T>(x + c) - load<T>(shift + c));
      for (; c < width; ++c) o[c] = static_cast<T>(widen(x[c])) - shift[c];
      for (; c < stride; ++c) o[c] = T(0);
      squared_norm[r] = squared_length(o, stride);
    }
    return;
  }
  // Strided columns, a transposed pool for instance: a few columns at a time, each read along the rows.
  constexpr int64_t kColumns = 16;
  for (int64_t first = 0; first < width; first += kColumns) {
    const int64_t last = first + kColumns < width ? first + kColumns : width;
    for (int64_t r = 0; r < count; ++r) {
      const S* x = base + r * source.row_stride;
      for (int64_t c = first; c < last; ++c) {
        out[r * stride + c] = static_cast<T>(widen(x[c * source.column_stride])) - shift[c];
      }
    }
  }
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t c = width; c < stride; ++c) out[r * stride + c] = T(0);
    squared_norm[r] = squared_length(out + r * stride, stride);
  }
}

template <typename T>
void pack(const RowSource& source, int64_t begin, int64_t count, int64_t ahead, const T* shift, T* out, int64_t stride,
          T* squared_norm) {
  switch (source.element) {
    case Element::kFloat16:
      return pack_as<Half>(source, begin, count, ahead, shift, out, stride, squared_norm);
    case Element::kBFloat16:
      return pack_as<BFloat>(source, begin, count, ahead, shift, out, stride, squared_norm);
    case Element::kFloat32:
      return pack_as<float>(source, begin, count, ahead, shift, out, stride, squared_norm);
    case Element::kFloat64:
      return pack_as<double>(source, begin, count, ahead, shift, out, stride, squared_norm);
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

// Calls use(r, v, n_j - 2 * product) for each vector of a panel of NV vectors that begins at centre `first`.
template <typename T, int NV, typename Use>
__attribute__((always_inline)) inline void panel_distances(const PackedRows<T>& rows, const PackedCenters<T>& centers,
                                                           const int64_t (&index)[kRows], int64_t first, Use use) {
  using V = typename Simd<T>::V;
  constexpr int L = kLanes<T>;
  const auto factor = [&](int f, V(&out)[kRows][NV]) __attribute__((always_inline)) {
    const T* row[kRows];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) row[r] = rows.factor[f] + index[r] * rows.stride[f];
    products<T, NV>(row, centers.factor[f] + first * centers.width[f], rows.width[f], out);
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
  V norm[NV];
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) norm[v] = load<T>(centers.squared_norm + first + v * L);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) use(r, v, norm[v] - T(2) * acc[r][v]);
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

template <typename T, bool kNearest>
void minimum_of(const PackedRows<T>& rows, int64_t row_begin, int64_t row_end, const PackedCenters<T>& centers,
                int64_t begin, int64_t end, T* best, int64_t* nearest) {
  using V = typename Simd<T>::V;
  using I = typename Simd<T>::I;
  using Int = typename Simd<T>::Int;
  constexpr int L = kLanes<T>;
  for (int64_t block = row_begin; block < row_end; block += kRows) {
    int64_t index[kRows];  // past the end: the last row again, its result unused
    for (int r = 0; r < kRows; ++r) index[r] = block + r < row_end ? block + r : row_end - 1;
    V low[kRows];
    I where[kRows];  // vector number: centre = where * lanes + lane
    for (int r = 0; r < kRows; ++r) {
      low[r] = V{} + infinity<T>();
      if constexpr (kNearest) where[r] = I{};
    }
    const auto lower = [&](int64_t first) {
      return [&, first](int r, int v, V d) __attribute__((always_inline)) {
        if constexpr (kNearest) {
          const I closer = d < low[r];
          low[r] = closer ? d : low[r];
          where[r] = closer ? I{} + static_cast<Int>(first / L + v) : where[r];
        } else {
          static_cast<void>(first);
          low[r] = d < low[r] ? d : low[r];
        }
      };
    };
    for_panels<T>(
        begin, end, centers.count,
        [&](int64_t first) { panel_distances<T, kVectors>(rows, centers, index, first, lower(first)); },
        [&](int64_t first) { panel_distances<T, 1>(rows, centers, index, first, lower(first)); });
    for (int r = 0; r < kRows && block + r < row_end; ++r) {
      const T value = fold<T, ALKERNELS_VECTOR_BYTES>(low[r], [](auto a, auto b) { return b < a ? b : a; });
      int64_t center = 0;
      if constexpr (kNearest) {
        center = INT64_MAX;
        for (int l = 0; l < L; ++l) {
          const int64_t other = static_cast<int64_t>(where[r][l]) * L + l;
          if (low[r][l] == value && other < center) center = other;
        }
      }
      if (value < best[block + r]) {
        best[block + r] = value;
        if constexpr (kNearest) nearest[block + r] = center;
      }
    }
  }
}

template <typename T>
void minimum(const PackedRows<T>& rows, int64_t row_begin, int64_t row_end, const PackedCenters<T>& centers,
             int64_t begin, int64_t end, T* best, int64_t* nearest) {
  if (nearest) {
    minimum_of<T, true>(rows, row_begin, row_end, centers, begin, end, best, nearest);
  } else {
    minimum_of<T, false>(rows, row_begin, row_end, centers, begin, end, best, nearest);
  }
}

template <typename T>
void matrix(const PackedRows<T>& rows, int64_t row_begin, int64_t row_end, const PackedCenters<T>& centers, T* out,
            int64_t ld) {
  using V = typename Simd<T>::V;
  constexpr int L = kLanes<T>;
  for (int64_t block = row_begin; block < row_end; block += kRows) {
    int64_t index[kRows];
    for (int r = 0; r < kRows; ++r) index[r] = block + r < row_end ? block + r : row_end - 1;
    const auto write = [&](int64_t first) {
      return [&, first](int r, int v, V d) __attribute__((always_inline)) {
        const V full = d + rows.squared_norm[index[r]];
        T* to = out + index[r] * ld + first + v * L;
        const int64_t room = centers.count - (first + v * L);
        if (room >= L) {
          store<T>(to, full);
        } else {
          for (int64_t l = 0; l < room; ++l) to[l] = full[l];
        }
      };
    };
    for_panels<T>(
        0, centers.count, centers.count,
        [&](int64_t first) { panel_distances<T, kVectors>(rows, centers, index, first, write(first)); },
        [&](int64_t first) { panel_distances<T, 1>(rows, centers, index, first, write(first)); });
  }
}

}  // namespace

#define ALKERNELS_TILE(T) \
  {kRows, kVectors * kLanes<T>, kLanes<T>, pack<T>, pair<T, false>, pair<T, true>, minimum<T>, matrix<T>}
const DistanceTile<float> tile_f32 = ALKERNELS_TILE(float);
const DistanceTile<double> tile_f64 = ALKERNELS_TILE(double);

}  // namespace ALKERNELS_ISA
}  // namespace alkernels
