// Sums over rows of a function of the register tile's products: what BatchBALD's entropies and a
// coverage's gains are made of.
//
//     sums[j] += sum_r f_r(<row r, column j>)
//
// Products and f in T; every register tile's share of a sum is added in float64. A column's sum is the same bits
// whichever columns it is computed beside.
//
// row_sums.in.cpp implements this header and is compiled once per instruction set; distance_tile.cpp picks one.
#pragma once

#include "../../common/similarity.h"
#include "distance_tile.h"

namespace alkernels {

template <typename T>
struct RowSums {
  // f_r(q) = -mass[r] * q log q, and 0 at q = 0. Columns [begin, end); begin is a multiple of the tile's panel.
  void (*entropy)(const PackedRows<T>& rows, int64_t row_begin, int64_t row_end, const T* mass,
                  const PackedCenters<T>& columns, int64_t begin, int64_t end, double* sums);
  // f_r(product) = weight[r] * max(0, s(r, j) - covered[r])
  void (*coverage)(const PackedRows<T>& rows, int64_t row_begin, int64_t row_end, const T* weight, const T* covered,
                   const SimilarityOf<T>& similarity, const PackedCenters<T>& columns, int64_t begin, int64_t end,
                   double* sums);
  // d2[i] becomes the similarity, in place: the same bits that a coverage's gains are made of. count is a multiple of
  // the tile's lanes.
  void (*similarities)(const SimilarityOf<T>& similarity, int64_t count, T* d2);
};

template <typename T>
const RowSums<T>& row_sums();

namespace portable {
extern const RowSums<float> sums_f32;
extern const RowSums<double> sums_f64;
}  // namespace portable
#ifdef ALKERNELS_X86
namespace avx2 {
extern const RowSums<float> sums_f32;
extern const RowSums<double> sums_f64;
}  // namespace avx2
namespace avx512 {
extern const RowSums<float> sums_f32;
extern const RowSums<double> sums_f64;
}  // namespace avx512
#endif

}  // namespace alkernels
