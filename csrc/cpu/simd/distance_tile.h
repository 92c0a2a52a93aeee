// The one thing a metric supplies: squared distances from a tile of rows to a block of centres.
//
// Every metric here is a product of one or two inner products ("factors"),
//
//     d2(i, j) = n_i + n_j - 2 * prod_f <x_i^f, c_j^f>,
//
// with one factor for Euclidean (rows shifted by a common point) and cosine (rows scaled to length one)
// and two for outer products a ⊗ h. So a metric is a way to pack rows, and the rest is written once.
//
// Symmetric KL, sum (p - q) (log p - log q) / 2, has the form too, with x = (p, log p) / 2, c = (log q, q) / 2 and
// n = sum p log p / 2; it stands for d2 itself, and n is no squared length.
//
// distance_tile.in.cpp implements this header and is compiled once per instruction set;
// distance_tile.cpp picks one at run time.
#pragma once

#include <cstdint>

#include "../../common/rows.h"

namespace alkernels {

// Packed rows: for each factor a row-major [rows, stride] array, zero-padded from width to stride, and n of each row:
// the squared length of its product of factors, but for symmetric KL. Rounding errors go with the squared length.
template <typename T>
struct PackedRows {
  int factors = 1;
  T* factor[kMaxFactors] = {};
  int64_t width[kMaxFactors] = {};
  int64_t stride[kMaxFactors] = {};
  T* squared_norm = nullptr;
  T* squared_length = nullptr;
};

// A block of centres, interleaved for the register tile: for each factor, panels of `panel` centres laid out
// [width][panel], the last panel `lanes` wide if that is enough. squared_norm is +inf in the padding.
template <typename T>
struct PackedCenters {
  int64_t count = 0;
  int factors = 1;
  const T* factor[kMaxFactors] = {};
  int64_t width[kMaxFactors] = {};
  const T* squared_norm = nullptr;
};

template <typename T>
struct DistanceTile {
  int64_t rows;   // rows of the register tile
  int64_t panel;  // centres of the register tile
  int64_t lanes;  // centres of one vector register

  // out[r, :] = source[begin + r, :] - shift, zero-padded to stride; asks for the rows `ahead` further on, so that
  // reading them overlaps with the arithmetic on these. shift has `stride` elements. squared_norm[r] = |out[r, :]|^2.
  void (*pack)(const RowSource& source, int64_t begin, int64_t count, int64_t ahead, const T* shift, T* out,
               int64_t stride, T* squared_norm);
  // x[i] = log x[i] for positive normal x; count is a multiple of `lanes`
  void (*log)(int64_t count, T* x);
  // sum of x[i] * y[i] over `count` padded elements
  T (*dot)(const T* x, const T* y, int64_t count);
  // sum of (x[i] - y[i])^2 over `count` padded elements
  T (*squared_difference)(const T* x, const T* y, int64_t count);
  // best[r] = min over centres [begin, end) of n_j - 2 * product, lowered in place; `nearest` (may be null)
  // follows with the index of the first centre that attains it. begin is a multiple of `panel`.
  void (*minimum)(const PackedRows<T>& rows, int64_t row_begin, int64_t row_end, const PackedCenters<T>& centers,
                  int64_t begin, int64_t end, T* best, int64_t* nearest);
  // out[r * ld + j] = n_r + n_j - 2 * product for centres [begin, end); begin is a multiple of `panel`.
  void (*matrix)(const PackedRows<T>& rows, int64_t row_begin, int64_t row_end, const PackedCenters<T>& centers,
                 int64_t begin, int64_t end, T* out, int64_t ld);
  // Writes the positions of values <= limit to `hits`, in order; returns how many.
  int64_t (*at_most)(const T* values, int64_t count, T limit, int32_t* hits);
};

// The implementation for this machine's instruction set (ATEN_CPU_CAPABILITY=default|avx2|avx512 overrides).
template <typename T>
const DistanceTile<T>& distance_tile();

const char* cpu_capability();

namespace portable {
extern const DistanceTile<float> tile_f32;
extern const DistanceTile<double> tile_f64;
}  // namespace portable
#ifdef ALKERNELS_X86
namespace avx2 {
extern const DistanceTile<float> tile_f32;
extern const DistanceTile<double> tile_f64;
}  // namespace avx2
namespace avx512 {
extern const DistanceTile<float> tile_f32;
extern const DistanceTile<double> tile_f64;
}  // namespace avx512
#endif

}  // namespace alkernels
