// conditional_entropy: out[n] = -sum_m mass[m] sum_c q log q, q[m, n, c] = sum_k weights[m, k] probs[n, k, c].
//
// A matrix product of the weights [m, K] with the probabilities as K x (n C) columns. A block of threads takes 128
// columns and a group of 256 rows, 128 at a time: the product tile leaves the q in registers, where q log q is taken
// and added up in float64. Nothing of size m x n x C exists. Traffic: the probabilities once a group, the weights once
// a tile of columns from L2, 8 bytes a group and column for the sums.
//
// With weights = the posterior over K draws given each of m label configurations, and mass = their probabilities, this
// is the entropy of a candidate's label given the labels of a batch (alkernels/ops/joint_entropy.py).
#include "column_sums.cuh"

namespace alkernels::cuda {
namespace {

constexpr int64_t kSums = 4 << 20;  // of columns, one a group, that are held at a time

// Column n * classes + c of the tile's right side: neighbours in memory are neighbouring classes.
template <typename T>
struct DrawColumns {
  static constexpr bool kAcross = true;

  Draws probs;

  struct Column {
    const Draws& probs;
    int64_t first;  // element of the first draw; negative: past the last column

    __device__ __forceinline__ void operator()(int k, T (&out)[4]) const {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        out[i] = 0;
        if (first < 0 || k + i >= probs.draws) continue;
        const int64_t at = first + (k + i) * probs.stride[1];
        out[i] = probs.wide ? static_cast<T>(static_cast<const double*>(probs.data)[at])
                            : static_cast<T>(static_cast<const float*>(probs.data)[at]);
      }
    }
  };

  __device__ __forceinline__ Column at(int64_t column) const {
    const int64_t n = column / probs.classes, c = column % probs.classes;
    return {probs, n < probs.count ? n * probs.stride[0] + c * probs.stride[2] : -1};
  }
};

template <typename T, int kEach>
__global__ void __launch_bounds__(kThreads, 2)
    entropy_kernel(const RowLoader<T> weights, const double* __restrict__ mass, const DrawColumns<T> probs,
                   int64_t columns, double* __restrict__ sums) {
  using Tile = ProductTile<T, kEach, kEach>;
  ALK_DYNAMIC_SHARED(memory);
  Tile tile(memory);
  const int64_t column0 = blockIdx.x * static_cast<int64_t>(Tile::kColumns);
  const int64_t first = blockIdx.y * kGroupRows, rows = weights.source.rows;
  const int count = static_cast<int>(rows - first < kGroupRows ? rows - first : kGroupRows);
  ALK_SHARED(Shares<Tile>, shares, );
#pragma unroll
  for (int c = 0; c < kEach; ++c) shares[Tile::ty()][Tile::column(c)] = 0;
  ALK_SHARED(T, masses, [Tile::kRows]);
  for (int row0 = 0; row0 < count; row0 += Tile::kRows) {
    __syncthreads();  // the last rows' masses are done with
    const int own = static_cast<int>(threadIdx.x);
    if (own < Tile::kRows) masses[own] = row0 + own < count ? static_cast<T>(mass[first + row0 + own]) : T(0);
    typename Tile::Products q;
    Squares unused;
    tile.template multiply<false>(weights, first + row0, probs, column0, weights.source.width, 0, q, unused);
#pragma unroll
    for (int c = 0; c < kEach; ++c) {
      T of_rows = 0;
#pragma unroll
      for (int r = 0; r < kEach; ++r) of_rows -= q[r][c] == 0 ? T(0) : masses[Tile::row(r)] * (q[r][c] * log(q[r][c]));
      shares[Tile::ty()][Tile::column(c)] += static_cast<double>(of_rows);
    }
  }
  add_shares<Tile>(shares, column0, columns, sums + blockIdx.y * columns);
}

template <typename T, int kEach>
void entropies(const Draws& probs, const Rows& weights, const double* mass, double* out, const Device& device) {
  using Tile = ProductTile<T, kEach, kEach>;
  const auto shared = Tile::shared_bytes(&weights.factor[0].width, 1);
  Tile::allow_shared(entropy_kernel<T, kEach>, 1);
  const int64_t groups = (weights.count + kGroupRows - 1) / kGroupRows;
  const int64_t some =
      std::min(probs.count, std::max<int64_t>(1, kSums / std::max<int64_t>(1, groups) / probs.classes));
  double* sums = device.scratch<double>(groups * some * probs.classes);
  check(cudaMemsetAsync(out, 0, static_cast<size_t>(probs.count) * sizeof(double), device.stream));
  if (groups == 0) return;
  for (int64_t begin = 0; begin < probs.count; begin += some) {
    Draws part = probs;
    part.count = std::min(some, probs.count - begin);
    part.data = static_cast<const char*>(probs.data) + begin * probs.stride[0] * (probs.wide ? 8 : 4);
    const int64_t columns = part.count * probs.classes;
    ALK_LAUNCH((entropy_kernel<T, kEach>), dim3(blocks_for(columns, Tile::kColumns), static_cast<unsigned>(groups)),
               kThreads, shared, device.stream, loader<T>(weights.factor[0]), mass, DrawColumns<T>{part}, columns,
               sums);
    ALK_LAUNCH(add_groups_kernel, blocks_for(part.count, kThreads / kWarp), kThreads, 0, device.stream, sums, groups,
               columns, probs.classes, part.count, out + begin);
  }
}

}  // namespace

void conditional_entropy(const Draws& probs, const Rows& weights, const double* mass, bool wide, double* out,
                         const Device& device) {
  if (probs.count == 0) return;
  if (wide) {
    entropies<double, 4>(probs, weights, mass, out, device);
  } else {
    entropies<float, 8>(probs, weights, mass, out, device);
  }
  check(cudaGetLastError());
}

}  // namespace alkernels::cuda
