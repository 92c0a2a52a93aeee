// Sums over rows of a function of the product tile's products: what BatchBALD's entropies and a coverage's gains are
// made of. A block of threads sums a group of rows for a tile of columns; the groups' sums are added afterwards, in an
// order that depends on nothing but their number, so that a column's sum is the same bits whichever columns it is
// computed beside.
#pragma once

#include "product_tile.cuh"

namespace alkernels::cuda {

constexpr int64_t kGroupRows = 256;

// Each thread's share of each of the tile's columns. A thread touches its own only, until all are added.
template <typename Tile>
using Shares = double[Tile::kSide][Tile::kColumns];

template <typename Tile>
__device__ void add_shares(const Shares<Tile>& shares, int64_t column0, int64_t columns, double* __restrict__ out) {
  __syncthreads();
  const int column = static_cast<int>(threadIdx.x);
  if (column >= Tile::kColumns || column0 + column >= columns) return;
  double sum = 0;
  for (int t = 0; t < Tile::kSide; ++t) sum += shares[t][column];
  out[column0 + column] = sum;
}

// out[n] += sums of its columns, `each` of them, over all groups. By a warp.
static __global__ void __launch_bounds__(kThreads)
    add_groups_kernel(const double* __restrict__ sums, int64_t groups, int64_t columns, int64_t each, int64_t count,
                      double* __restrict__ out) {
  const int64_t n = blockIdx.x * static_cast<int64_t>(kThreads / kWarp) + threadIdx.x / kWarp;
  if (n >= count) return;
  double sum = 0;
  for (int64_t t = lane(); t < groups * each; t += kWarp) sum += sums[t / each * columns + n * each + t % each];
  sum = warp_sum(sum);
  if (lane() == 0) out[n] += sum;
}

}  // namespace alkernels::cuda
