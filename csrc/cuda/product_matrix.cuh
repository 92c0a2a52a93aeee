// All values n_i + n_j - 2 * product of some packed rows and columns, written out: for blocks that are played out or
// searched next.
#pragma once

#include "product_tile.cuh"

namespace alkernels::cuda {

// A block of threads writes one tile. Traffic: rows and columns once a tile, the matrix once.
template <typename T, int kRowsEach, int kColumnsEach>
__global__ void __launch_bounds__(kThreads, 2)
    product_matrix_kernel(const Packed<T> rows, const Packed<T> columns, T* __restrict__ out, int64_t ld) {
  using Tile = ProductTile<T, kRowsEach, kColumnsEach>;
  ALK_DYNAMIC_SHARED(memory);
  Tile tile(memory);
  const int64_t row0 = blockIdx.y * static_cast<int64_t>(Tile::kRows);
  const int64_t column0 = blockIdx.x * static_cast<int64_t>(Tile::kColumns);
  typename Tile::Products product;
  Squares unused;
  tile.template multiply<false>(PackedLoader<T>(rows, 0), row0, PackedLoader<T>(columns, 0), column0, rows.width[0], 0,
                                product, unused);
  if (rows.factors == 2) {
    tile.put_by(product);
    tile.template multiply<false>(PackedLoader<T>(rows, 1), row0, PackedLoader<T>(columns, 1), column0, rows.width[1],
                                  1, product, unused);
    tile.times_put_by(product);
  }
#pragma unroll
  for (int r = 0; r < kRowsEach; ++r) {
    const int64_t i = row0 + Tile::row(r);
    if (i >= rows.count) continue;
    const T n_i = static_cast<T>(rows.norm[i]);
#pragma unroll
    for (int c = 0; c < kColumnsEach; ++c) {
      const int64_t j = column0 + Tile::column(c);
      if (j < columns.count) out[i * ld + j] = n_i + (static_cast<T>(columns.norm[j]) - 2 * product[r][c]);
    }
  }
}

// At most kMaxMatrixRows rows, as far as a grid goes.
constexpr int64_t kMaxMatrixRows = 65535 * 64;

template <typename T>
void product_matrix(const Packed<T>& rows, const Packed<T>& columns, T* out, int64_t ld, const Device& device) {
  if (rows.count == 0 || columns.count == 0) return;
  for_tile<T>(rows.factors, [&](auto tile) {
    using Tile = typename decltype(tile)::Type;
    const auto kernel = product_matrix_kernel<T, tile.kRowsEach, tile.kColumnsEach>;
    Tile::allow_shared(kernel, tile.kMostFactors);
    ALK_LAUNCH(kernel, dim3(blocks_for(columns.count, Tile::kColumns), blocks_for(rows.count, Tile::kRows)), kThreads,
               Tile::shared_bytes(rows.width, rows.factors), device.stream, rows, columns, out, ld);
  });
}

}  // namespace alkernels::cuda
