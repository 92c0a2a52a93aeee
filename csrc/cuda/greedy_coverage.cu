// The two steps of greedy coverage that touch every row: similarities come out of the product tile and are used up on
// the spot, so that no matrix of them exists.
//
// coverage_gains: sum_i weights[i] max(0, s(i, j) - covered[i]) for a block of candidates j. The rows are packed up to
// 512 MB at a time; a block of threads takes 128 candidates and a group of 256 rows, 128 at a time, and adds up in
// float64. Traffic: the rows once, and their packed copy once for each 128 candidates.
//
// raise_covered: a block of threads takes 128 rows and all centres, and keeps each row's largest similarity.
//
// In float32 gains are upper bounds: squared distances are lowered, similarities and weights raised by what rounding
// may have done to them. raise_covered takes float64 products, and the same arithmetic as the exact gains.
//
// Where even float64 products may lose a squared distance beside the bandwidth (`refine`: rows far apart, a narrow
// kernel), a thread measures the few pairs that may be in range from differences.
#include "column_sums.cuh"

namespace alkernels::cuda {
namespace {

constexpr int64_t kPackedBytes = 512 << 20;
constexpr int64_t kMostGroups = 1 << 14;   // of rows that are packed at a time
constexpr int64_t kColumnsAtATime = 1024;  // candidates whose sums, one a group, are held
constexpr double kDoubt = 1e-10;           // of the bandwidth's square: products that lose more are not trusted

Metric metric_for(Similarity kind) { return kind == Similarity::kCosine ? Metric::kCosine : Metric::kEuclidean; }

template <Similarity kKind, typename T>
__device__ __forceinline__ T similarity(const SimilarityOf<T>& to, T d2) {
  if (kKind == Similarity::kCosine) return (T(1) - T(0.5) * d2) * to.factor + to.slack;
  if (d2 < 0) d2 = 0;
  if (kKind == Similarity::kRbf) return exp(-d2 * to.range) * to.factor + to.slack;
  return d2 < to.range ? T(1) : T(0);
}

// What to measure from differences, if anything.
struct Refine {
  bool on;
  Rows rows, columns;  // as the caller has them
  double share, square, reach;

  __device__ double operator()(double d2, double n_i, double n_j, int64_t i, int64_t j) const {
    const double error = share * (n_i + n_j);
    if (error <= kDoubt * square || d2 - error > reach) return d2;
    double sum = 0;
    for (int64_t k = 0; k < rows.factor[0].width; ++k) {
      const double d = read<double>(rows.factor[0], i, k) - read<double>(columns.factor[0], j, k);
      sum += d * d;
    }
    return sum;
  }
};

// x in T, not below it or not above it.
__device__ inline float not_below(float, double x) {
  const float t = static_cast<float>(x);
  return static_cast<double>(t) < x ? nextafterf(t, INFINITY) : t;
}
__device__ inline double not_below(double, double x) { return x; }

template <typename T, int kEach, Similarity kKind>
__global__ void __launch_bounds__(kThreads, 2)
    gains_kernel(const Packed<T> rows, const double* __restrict__ weights, const double* __restrict__ covered,
                 const Packed<T> columns, const SimilarityOf<T> to, double lowered, const Refine refine,
                 double* __restrict__ sums) {
  using Tile = ProductTile<T, kEach, kEach>;
  ALK_DYNAMIC_SHARED(memory);
  Tile tile(memory);
  const int64_t column0 = blockIdx.x * static_cast<int64_t>(Tile::kColumns);
  const int64_t first = blockIdx.y * kGroupRows;
  const int count = static_cast<int>(rows.count - first < kGroupRows ? rows.count - first : kGroupRows);
  // d2 = n_i + n_j - 2 <x, c> is off by at most share * (n_i + n_j): taken off the norms, it becomes a lower bound
  const auto norm = [&](double n) {
    return sizeof(T) == 4 ? static_cast<T>(n * lowered - kTinySquare) : static_cast<T>(n);
  };
  ALK_SHARED(Shares<Tile>, shares, );
#pragma unroll
  for (int c = 0; c < kEach; ++c) shares[Tile::ty()][Tile::column(c)] = 0;
  ALK_SHARED(T, n_i, [Tile::kRows]);
  ALK_SHARED(T, weight, [Tile::kRows]);
  ALK_SHARED(T, level, [Tile::kRows]);
  for (int row0 = 0; row0 < count; row0 += Tile::kRows) {
    __syncthreads();  // the last rows' are done with
    const int own = static_cast<int>(threadIdx.x);
    if (own < Tile::kRows) {
      const int64_t i = first + row0 + own;
      const bool inside = row0 + own < count;
      n_i[own] = inside ? norm(rows.norm[i]) : T(0);
      weight[own] = inside ? not_below(T(), weights[i]) : T(0);
      level[own] = inside ? -not_below(T(), -covered[i]) : T(0);
    }
    typename Tile::Products product;
    Squares unused;
    tile.template multiply<false>(PackedLoader<T>(rows, 0), first + row0, PackedLoader<T>(columns, 0), column0,
                                  rows.width[0], 0, product, unused);
#pragma unroll
    for (int c = 0; c < kEach; ++c) {
      const int64_t j = column0 + Tile::column(c);
      const T n_j = j < columns.count ? norm(columns.norm[j]) : T(0);
      T of_rows = 0;
#pragma unroll
      for (int r = 0; r < kEach; ++r) {
        const int row = Tile::row(r);
        T d2 = (n_j - 2 * product[r][c]) + n_i[row];
        if constexpr (sizeof(T) == 8 && kKind != Similarity::kCosine) {
          if (refine.on && row0 + row < count && j < columns.count)
            d2 = refine(d2, n_i[row], n_j, first + row0 + row, j);
        }
        const T gain = similarity<kKind>(to, d2) - level[row];
        of_rows += weight[row] * (gain > 0 ? gain : T(0));
      }
      shares[Tile::ty()][Tile::column(c)] += static_cast<double>(of_rows);
    }
  }
  add_shares<Tile>(shares, column0, columns.count, sums + blockIdx.y * columns.count);
}

// What float32 drops of a term altogether is below its smallest normal number, weights being 2 at most.
__global__ void __launch_bounds__(kThreads)
    raise_bounds_kernel(double* __restrict__ gains, int64_t count, double rows) {
  const int64_t j = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (j < count) gains[j] = gains[j] * (1 + 2 * kRounding) + 1e-37 * rows;
}

template <Similarity kKind>
__global__ void __launch_bounds__(kThreads, 2)
    raise_kernel(const Packed<double> rows, const Packed<double> centers, const SimilarityOf<double> to,
                 const Refine refine, double* __restrict__ covered) {
  using Tile = ProductTile<double, 4, 4>;
  ALK_DYNAMIC_SHARED(memory);
  Tile tile(memory);
  const int64_t row0 = blockIdx.x * static_cast<int64_t>(Tile::kRows);
  for (int64_t column0 = 0; column0 < centers.count; column0 += Tile::kColumns) {
    typename Tile::Products product;
    Squares unused;
    tile.template multiply<false>(PackedLoader<double>(rows, 0), row0, PackedLoader<double>(centers, 0), column0,
                                  rows.width[0], 0, product, unused);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int64_t i = row0 + Tile::row(r);
      double best = -INFINITY;
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int64_t j = column0 + Tile::column(c);
        if (i >= rows.count || j >= centers.count) continue;
        double d2 = (centers.norm[j] - 2 * product[r][c]) + rows.norm[i];
        if (kKind != Similarity::kCosine && refine.on) d2 = refine(d2, rows.norm[i], centers.norm[j], i, j);
        best = fmax(best, similarity<kKind>(to, d2));
      }
      for (int step = Tile::kSide / 2; step > 0; step /= 2) best = fmax(best, __shfl_xor_sync(kAllLanes, best, step));
      // one thread sees all of a row's tiles
      if (Tile::tx() == 0 && i < rows.count && best > covered[i]) covered[i] = best;
    }
  }
}

// Rows that are packed at a time: whole groups.
template <typename T>
int64_t rows_at_a_time(const Rows& rows) {
  const int64_t fit = kPackedBytes / (rows.width() * static_cast<int64_t>(sizeof(T))) / kGroupRows;
  return std::clamp<int64_t>(fit, 1, kMostGroups) * kGroupRows;
}

Refine refinement(bool on, const Rows& rows, const Rows& columns, Similarity kind, double bandwidth) {
  const double square = bandwidth * bandwidth;
  return {on,      rows,
          columns, error_share<double>(rows, Metric::kEuclidean),
          square,  kind == Similarity::kRbf ? 750 * square : square};
}

template <typename T, int kEach, Similarity kKind>
void gains(const Rows& pool, const double* weights, const double* covered, const Rows& candidates,
           const double* shift_at, double bandwidth, bool refine, double* out, const Device& device) {
  using Tile = ProductTile<T, kEach, kEach>;
  const Metric metric = metric_for(kKind);
  const T* shift = padded_shift<T>(shift_at, pool.factor[0].width, device);
  SimilarityOf<T> to;
  if constexpr (sizeof(T) == 4) {
    to = at_least(kKind, bandwidth);
  } else {
    to = exactly<T>(kKind, bandwidth);
  }
  const double lowered = 1 - error_share<T>(pool, metric);
  const auto shared = Tile::shared_bytes(&pool.factor[0].width, 1);
  Tile::allow_shared(gains_kernel<T, kEach, kKind>, 1);
  check(cudaMemsetAsync(out, 0, static_cast<size_t>(candidates.count) * sizeof(double), device.stream));

  const int64_t some = std::min(candidates.count, kColumnsAtATime), some_rows = rows_at_a_time<T>(pool);
  Packed<T> columns = new_packed<T>(candidates, metric, some, device);
  Packed<T> rows = new_packed<T>(pool, metric, std::min(some_rows, pool.count), device);
  const int64_t most_groups = (std::min(some_rows, pool.count) + kGroupRows - 1) / kGroupRows;
  double* sums = device.scratch<double>(most_groups * some);
  for (int64_t first = 0; first < candidates.count; first += some) {
    const Rows column_part = slice(candidates, first, std::min(some, candidates.count - first));
    pack(column_part, metric, shift, true, columns, device);
    for (int64_t begin = 0; begin < pool.count; begin += some_rows) {
      const Rows part = slice(pool, begin, std::min(some_rows, pool.count - begin));
      pack(part, metric, shift, false, rows, device);
      const int64_t groups = (part.count + kGroupRows - 1) / kGroupRows;
      ALK_LAUNCH((gains_kernel<T, kEach, kKind>),
                 dim3(blocks_for(columns.count, Tile::kColumns), static_cast<unsigned>(groups)), kThreads, shared,
                 device.stream, rows, weights + begin, covered + begin, columns, to, lowered,
                 refinement(refine, part, column_part, kKind, bandwidth), sums);
      ALK_LAUNCH(add_groups_kernel, blocks_for(columns.count, kThreads / kWarp), kThreads, 0, device.stream, sums,
                 groups, columns.count, int64_t{1}, columns.count, out + first);
    }
  }
  if constexpr (sizeof(T) == 4)
    ALK_LAUNCH(raise_bounds_kernel, blocks_for(candidates.count, kThreads), kThreads, 0, device.stream, out,
               candidates.count, static_cast<double>(pool.count));
}

template <Similarity kKind>
void raise(const Rows& pool, const Rows& center_rows, const double* shift_at, double bandwidth, bool refine,
           double* covered, const Device& device) {
  using Tile = ProductTile<double, 4, 4>;
  const Metric metric = metric_for(kKind);
  const double* shift = padded_shift<double>(shift_at, pool.factor[0].width, device);
  Packed<double> centers = new_packed<double>(center_rows, metric, center_rows.count, device);
  pack(center_rows, metric, shift, true, centers, device);
  const auto shared = Tile::shared_bytes(&pool.factor[0].width, 1);
  Tile::allow_shared(raise_kernel<kKind>, 1);
  const int64_t some = rows_at_a_time<double>(pool);
  Packed<double> rows = new_packed<double>(pool, metric, std::min(some, pool.count), device);
  for (int64_t begin = 0; begin < pool.count; begin += some) {
    const Rows part = slice(pool, begin, std::min(some, pool.count - begin));
    pack(part, metric, shift, false, rows, device);
    ALK_LAUNCH(raise_kernel<kKind>, blocks_for(part.count, Tile::kRows), kThreads, shared, device.stream, rows, centers,
               exactly<double>(kKind, bandwidth), refinement(refine, part, center_rows, kKind, bandwidth),
               covered + begin);
  }
}

// Calls with the similarity as a constant.
template <typename Call>
void for_kind(Similarity kind, const Call& call) {
  switch (kind) {
    case Similarity::kCosine:
      return call(std::integral_constant<Similarity, Similarity::kCosine>());
    case Similarity::kRbf:
      return call(std::integral_constant<Similarity, Similarity::kRbf>());
    case Similarity::kTophat:
      return call(std::integral_constant<Similarity, Similarity::kTophat>());
  }
}

}  // namespace

void coverage_gains(const Rows& rows, const double* weights, const double* covered, const Rows& candidates,
                    const double* shift, Similarity kind, double bandwidth, bool exact, bool refine, double* out,
                    const Device& device) {
  if (candidates.count == 0) return;
  if (rows.count == 0) {
    check(cudaMemsetAsync(out, 0, static_cast<size_t>(candidates.count) * sizeof(double), device.stream));
    return;
  }
  for_kind(kind, [&](auto k) {
    constexpr Similarity kKind = decltype(k)::value;
    (exact ? gains<double, 4, kKind> : gains<float, 8, kKind>)(rows, weights, covered, candidates, shift, bandwidth,
                                                               refine, out, device);
  });
  check(cudaGetLastError());
}

void raise_covered(const Rows& pool, const Rows& centers, const double* shift, Similarity kind, double bandwidth,
                   bool refine, double* covered, const Device& device) {
  if (pool.count == 0 || centers.count == 0) return;
  for_kind(kind, [&](auto k) { raise<decltype(k)::value>(pool, centers, shift, bandwidth, refine, covered, device); });
  check(cudaGetLastError());
}

}  // namespace alkernels::cuda
