// row_sums.h, compiled once per instruction set.
#include "row_sums.h"

#include "register_tile.h"
#include "vector_math.h"

namespace alkernels {
namespace ALKERNELS_ISA {
namespace {

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

template <typename T, Similarity kKind>
__attribute__((always_inline)) inline typename Simd<T>::V similarity_of(const SimilarityOf<T>& to,
                                                                        typename Simd<T>::V d2) {
  using V = typename Simd<T>::V;
  if constexpr (kKind == Similarity::kCosine) {
    return (T(1) - T(0.5) * d2) * to.factor + to.slack;
  } else {
    d2 = d2 > V{} ? d2 : V{};
    if constexpr (kKind == Similarity::kRbf) return exp_of<T>(-d2 * to.range) * to.factor + to.slack;
    return d2 < V{} + to.range ? V{} + T(1) : V{};
  }
}

template <typename T, Similarity kKind>
void coverage_by(const PackedRows<T>& rows, int64_t row_begin, int64_t row_end, const T* weight, const T* covered,
                 const SimilarityOf<T>& similarity, const PackedCenters<T>& columns, int64_t begin, int64_t end,
                 double* sums) {
  using V = typename Simd<T>::V;
  sum_terms<T>(rows, row_begin, row_end, weight, columns, begin, end, sums,
               [&](int64_t r, int64_t j, V product) __attribute__((always_inline)) {
                 const V d2 = (load<T>(columns.squared_norm + j) - T(2) * product) + rows.squared_norm[r];
                 const V gain = similarity_of<T, kKind>(similarity, d2) - covered[r];
                 return gain > V{} ? gain : V{};
               });
}

template <typename T>
void coverage(const PackedRows<T>& rows, int64_t row_begin, int64_t row_end, const T* weight, const T* covered,
              const SimilarityOf<T>& similarity, const PackedCenters<T>& columns, int64_t begin, int64_t end,
              double* sums) {
  switch (similarity.kind) {
    case Similarity::kCosine:
      return coverage_by<T, Similarity::kCosine>(rows, row_begin, row_end, weight, covered, similarity, columns, begin,
                                                 end, sums);
    case Similarity::kRbf:
      return coverage_by<T, Similarity::kRbf>(rows, row_begin, row_end, weight, covered, similarity, columns, begin,
                                              end, sums);
    case Similarity::kTophat:
      return coverage_by<T, Similarity::kTophat>(rows, row_begin, row_end, weight, covered, similarity, columns, begin,
                                                 end, sums);
  }
}

template <typename T>
void similarities(const SimilarityOf<T>& similarity, int64_t count, T* d2) {
  for (int64_t i = 0; i < count; i += kLanes<T>) {
    const auto v = load<T>(d2 + i);
    switch (similarity.kind) {
      case Similarity::kCosine:
        store<T>(d2 + i, similarity_of<T, Similarity::kCosine>(similarity, v));
        break;
      case Similarity::kRbf:
        store<T>(d2 + i, similarity_of<T, Similarity::kRbf>(similarity, v));
        break;
      case Similarity::kTophat:
        store<T>(d2 + i, similarity_of<T, Similarity::kTophat>(similarity, v));
        break;
    }
  }
}

}  // namespace

const RowSums<float> sums_f32 = {entropy<float>, coverage<float>, similarities<float>};
const RowSums<double> sums_f64 = {entropy<double>, coverage<double>, similarities<double>};

}  // namespace ALKERNELS_ISA
}  // namespace alkernels
