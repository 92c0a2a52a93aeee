// distance_tile.h, compiled once per instruction set.
#include "register_tile.h"
#include "vector_math.h"

namespace alkernels {
namespace ALKERNELS_ISA {
namespace {

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

template <typename T>
void log(int64_t count, T* x) {
  for (int64_t i = 0; i < count; i += kLanes<T>) store<T>(x + i, log_of<T>(load<T>(x + i)));
}

// ---- distances ----

// Calls use(r, v, n_j - 2 * product) for each vector of a panel of NV vectors that begins at centre `first`.
template <typename T, int NV, typename Use>
__attribute__((always_inline)) inline void panel_distances(const PackedRows<T>& rows, const PackedCenters<T>& centers,
                                                           const int64_t (&index)[kRows], int64_t first, Use use) {
  typename Simd<T>::V norm[NV];
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) norm[v] = load<T>(centers.squared_norm + first + v * kLanes<T>);
  panel_products<T, NV>(rows, centers, index, first,
                        [&](int r, int v, typename Simd<T>::V product)
                            __attribute__((always_inline)) { use(r, v, norm[v] - T(2) * product); });
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
void matrix(const PackedRows<T>& rows, int64_t row_begin, int64_t row_end, const PackedCenters<T>& centers,
            int64_t begin, int64_t end, T* out, int64_t ld) {
  using V = typename Simd<T>::V;
  constexpr int L = kLanes<T>;
  for (int64_t block = row_begin; block < row_end; block += kRows) {
    int64_t index[kRows];
    for (int r = 0; r < kRows; ++r) index[r] = block + r < row_end ? block + r : row_end - 1;
    const auto write = [&](int64_t first) {
      return [&, first](int r, int v, V d) __attribute__((always_inline)) {
        const V full = d + rows.squared_norm[index[r]];
        T* to = out + index[r] * ld + first + v * L;
        const int64_t room = end - (first + v * L);
        if (room >= L) {
          store<T>(to, full);
        } else {
          for (int64_t l = 0; l < room; ++l) to[l] = full[l];
        }
      };
    };
    for_panels<T>(
        begin, end, centers.count,
        [&](int64_t first) { panel_distances<T, kVectors>(rows, centers, index, first, write(first)); },
        [&](int64_t first) { panel_distances<T, 1>(rows, centers, index, first, write(first)); });
  }
}

template <typename T>
int64_t at_most(const T* values, int64_t count, T limit, int32_t* hits) {
  using I = typename Simd<T>::I;
  constexpr int L = kLanes<T>, kStep = 8 * L;
  int64_t n = 0, i = 0;
  for (; i + kStep <= count; i += kStep) {
    I any = {};
#pragma GCC unroll 8
    for (int u = 0; u < 8; ++u) any |= load<T>(values + i + u * L) <= limit;
    if (!fold<typename Simd<T>::Int, ALKERNELS_VECTOR_BYTES>(any, [](auto a, auto b) { return a | b; })) continue;
    for (int64_t j = i; j < i + kStep; ++j) {
      hits[n] = static_cast<int32_t>(j);
      n += values[j] <= limit;
    }
  }
  for (; i < count; ++i) {
    hits[n] = static_cast<int32_t>(i);
    n += values[i] <= limit;
  }
  return n;
}

}  // namespace

#define ALKERNELS_TILE(T)                                               \
  {kRows,          kVectors * kLanes<T>, kLanes<T>,  pack<T>,   log<T>, \
   pair<T, false>, pair<T, true>,        minimum<T>, matrix<T>, at_most<T>}
const DistanceTile<float> tile_f32 = ALKERNELS_TILE(float);
const DistanceTile<double> tile_f64 = ALKERNELS_TILE(double);

}  // namespace ALKERNELS_ISA
}  // namespace alkernels
