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
  double unused = 0;
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
  const auto launch = [&](auto kernel, int64_t tile_rows, int64_t tile_columns, int64_t shared) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
    ALK_LAUNCH(kernel, dim3(blocks_for(columns.count, tile_columns), blocks_for(rows.count, tile_rows)), kThreads, shared,
               device.stream, rows, columns, out, ld);
  };
  if constexpr (sizeof(T) == 8) {
    using Tile = ProductTile<T, 4, 4>;
    launch(product_matrix_kernel<T, 4, 4>, Tile::kRows, Tile::kColumns, Tile::shared_bytes(rows.width, rows.factors));
  } else if (rows.factors == 2) {
    using Tile = ProductTile<T, 8, 4>;
    launch(product_matrix_kernel<T, 8, 4>, Tile::kRows, Tile::kColumns, Tile::shared_bytes(rows.width, rows.factors));
  } else {
    using Tile = ProductTile<T, 8, 8>;
    launch(product_matrix_kernel<T, 8, 8>, Tile::kRows, Tile::kColumns, Tile::shared_bytes(rows.width, rows.factors));
  }
}

}  // namespace alkernels::cuda
