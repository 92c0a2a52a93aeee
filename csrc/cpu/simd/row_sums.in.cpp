// row_sums.h, compiled once per instruction set.
#include "row_sums.h"

#include "register_tile.h"

namespace alkernels {
namespace ALKERNELS_ISA {
namespace {

// ---- logarithm ----

template <typename T>
struct Bits;
template <>
struct Bits<float> {
  static constexpr uint32_t kRootHalf = 0x3f3504f3u, kBias = 127, kMagic = 0x4b000000u;
  static constexpr int kMantissa = 23, kTerms = 5;
  typedef uint32_t U __attribute__((vector_size(ALKERNELS_VECTOR_BYTES)));
};
template <>
struct Bits<double> {
  static constexpr uint64_t kRootHalf = 0x3fe6a09e667f3bcdu, kBias = 1023, kMagic = 0x4330000000000000u;
  static constexpr int kMantissa = 52, kTerms = 11;
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

// ---- sums ----

// The double-width twin of a vector of floats.
template <typename T>
struct Wide {
  typedef double V __attribute__((vector_size(ALKERNELS_VECTOR_BYTES * 8 / sizeof(T))));
};

template <typename T>
__attribute__((always_inline)) inline void add_wide(double* sums, typename Simd<T>::V v) {
  typename Wide<T>::V total;
  __builtin_memcpy(&total, sums, sizeof(total));
  total += __builtin_convertvector(v, typename Wide<T>::V);
  __builtin_memcpy(sums, &total, sizeof(total));
}

// sums[j] += sum over the rows of term(row number in the tile, product); `prepare(index)` readies a tile's row
// constants, which are to be 0 for the rows that pad the last tile.
template <typename T, typename Term>
__attribute__((always_inline)) inline void sum_terms(const PackedRows<T>& rows, int64_t row_begin, int64_t row_end,
                                                     const T* weight, const PackedCenters<T>& columns, int64_t begin,
                                                     int64_t end, double* sums, Term term) {
  using V = typename Simd<T>::V;
  constexpr int L = kLanes<T>;
  for (int64_t block = row_begin; block < row_end; block += kRows) {
    int64_t index[kRows];  // past the end: the last row again, with weight 0
    T w[kRows];
    for (int r = 0; r < kRows; ++r) {
      const bool inside = block + r < row_end;
      index[r] = inside ? block + r : row_end - 1;
      w[r] = inside ? weight[index[r]] : T(0);
    }
    const auto panel = [&]<int NV>(int64_t first, V(&sum)[NV]) __attribute__((always_inline)) {
      panel_products<T, NV>(rows, columns, index, first, [&](int r, int v, V product) __attribute__((always_inline)) {
        sum[v] += w[r] * term(index[r], first + v * L, product);
      });
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) add_wide<T>(sums + first + v * L, sum[v]);
    };
    for_panels<T>(
        begin, end, columns.count,
        [&](int64_t first) {
          V sum[kVectors] = {};
          panel(first, sum);
        },
        [&](int64_t first) {
          V sum[1] = {};
          panel(first, sum);
        });
  }
}

template <typename T>
void entropy(const PackedRows<T>& rows, int64_t row_begin, int64_t row_end, const T* mass,
             const PackedCenters<T>& columns, int64_t begin, int64_t end, double* sums) {
  using V = typename Simd<T>::V;
  sum_terms<T>(rows, row_begin, row_end, mass, columns, begin, end, sums,
               [](int64_t, int64_t, V q) __attribute__((always_inline)) { return -q * log_of<T>(q); });
}

}  // namespace

const RowSums<float> sums_f32 = {entropy<float>};
const RowSums<double> sums_f64 = {entropy<double>};

}  // namespace ALKERNELS_ISA
}  // namespace alkernels
