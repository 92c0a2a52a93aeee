// lower_distances: d2[i] = min(d2[i], squared distance from row i to each centre of a block), one pass over the rows.
//
// lower_kernel: a block of threads takes 128 rows and all centres, 128 at a time: the product tile (product_tile.cuh)
// leaves 8 x 8 products in a thread's registers, of which it keeps the minimum for each of its rows; 16 threads then
// agree on a row's. The rows' norms come out of the first tile's loads. Traffic: the rows once for each 128 centres, as
// many packed centres from L2, 16 bytes of state a row. Nothing of size rows x centres exists.
//
// The product form n_i + n_j - 2<x, c> loses digits where a distance is small beside the norms; error[i] bounds what it
// lost. Rows whose bound would exceed kTolerance * level go to a list, and refine_kernel measures their few centres
// that may be the nearest again in float64: a block of threads takes a row, reads all packed centres once for the
// product form with float64 sums, some lanes a centre, and the centres that it leaves from the caller's memory. The
// caller chooses the level (alkernels/ops/running_distances.py).
//
// Symmetric KL has logarithms in its products: its rows are packed in float64 first, some 64 MB at a time.
#include "product_tile.cuh"

namespace alkernels::cuda {
namespace {

constexpr int64_t kPackedBytes = 64 << 20;
constexpr int kRefineThreads = 128;
constexpr int64_t kRefineCenters = 1024;  // product forms of a row that shared memory holds

template <typename T>
struct Lowering {
  Rows rows;     // as the caller has them
  Rows centers;  // likewise
  Metric metric;
  RowLoader<T> left[kMaxFactors];  // rows for products
  const double* norm;              // of the rows; null: the squares of what the loader gives
  const double* length;
  Packed<T> block;  // packed centres
  double share, allowed;
  double refined_share;  // where sums are float64: what rounding the rows and centres to T leaves
  int64_t first_center;
  State state;
  int64_t* refined;  // rows to be refined
  unsigned long long* refined_count;
};

// The largest squared length of all centres, infinite where one is NaN. By a block, all of whose threads get it.
template <typename T, int kThreadsHere>
__device__ double largest_length(const Packed<T>& block) {
  ALK_SHARED(double, largest, [kThreadsHere / kWarp]);
  double mine = 0;
  for (int64_t j = threadIdx.x; j < block.count; j += kThreadsHere) {
    const double length = block.length[j];
    mine = isnan(length) ? INFINITY : fmax(mine, length);
  }
  for (int step = kWarp / 2; step > 0; step /= 2) mine = fmax(mine, __shfl_xor_sync(kAllLanes, mine, step));
  if (lane() == 0) largest[threadIdx.x / kWarp] = mine;
  __syncthreads();
  for (int w = 0; w < kThreadsHere / kWarp; ++w) mine = fmax(mine, largest[w]);
  __syncthreads();
  return mine;
}

// A row's feature as products take it.
template <typename T>
__device__ inline T element(const Lowering<T>& p, int f, int64_t row, int64_t k) {
  const T x = read<T>(p.left[f].source, row, k);
  return p.left[f].shift ? x - p.left[f].shift[k] : x;
}

// Multiplies a row's norm by a factor's. NaN: products do not tell, measure the row.
template <typename T>
__device__ inline void take_in(Metric metric, const Squares& squares, double& norm) {
  const bool sound = metric == Metric::kOuter    ? usable<T>(squares.sum, squares.any)
                     : metric == Metric::kCosine ? (squares.sum > 1e-30 && squares.sum < 1e30) || !squares.any
                                                 : true;
  norm *= sound ? squares.sum : NAN;
}

// What the norm of a row makes of its products: n_i, which is its squared length, and the factor of the products.
__device__ inline void row_constants(Metric metric, double norm, double& n, double& scale) {
  n = norm;
  scale = 1;
  if (metric == Metric::kCosine) {  // rows of length one, but for rows of zeros
    n = isnan(norm) ? norm : 1;
    scale = norm > 0 ? 1 / sqrt(norm) : 0;
  }
}

template <typename T, int kRowsEach, int kColumnsEach>
__global__ void __launch_bounds__(kThreads, 2) lower_kernel(const Lowering<T> p) {
  using Tile = ProductTile<T, kRowsEach, kColumnsEach>;
  ALK_DYNAMIC_SHARED(memory);
  ALK_SHARED(double, norms, [Tile::kRows]);
  ALK_SHARED(T, row_scale, [Tile::kRows]);
  ALK_SHARED(T, row_best, [Tile::kRows]);
  ALK_SHARED(int, row_nearest, [Tile::kRows]);
  Tile tile(memory);
  const int64_t row0 = blockIdx.x * static_cast<int64_t>(Tile::kRows);
  const double largest = largest_length<T, kThreads>(p.block);

  for (int64_t column0 = 0; column0 < p.block.count; column0 += Tile::kColumns) {
    typename Tile::Products product;
    double norm = 1;
    const auto multiply = [&](int f) {
      const PackedLoader<T> columns(p.block, f);
      Squares squares;
      if (column0 == 0 && !p.norm) {
        tile.template multiply<true>(p.left[f], row0, columns, column0, p.block.width[f], f, product, squares);
        for (int step = 1; step < Tile::kLoaders; step *= 2) {
          squares.sum += __shfl_xor_sync(kAllLanes, squares.sum, step);
          squares.any |= static_cast<bool>(__shfl_xor_sync(kAllLanes, static_cast<int>(squares.any), step));
        }
        take_in<T>(p.metric, squares, norm);
      } else {
        tile.template multiply<false>(p.left[f], row0, columns, column0, p.block.width[f], f, product, squares);
      }
    };
    multiply(0);
    if (p.block.factors == 2) {
      tile.put_by(product);
      multiply(1);
      tile.times_put_by(product);
    }
    if (column0 == 0) {
      if (static_cast<int>(threadIdx.x) % Tile::kLoaders == 0) {
        const int r = Tile::loaded_row();
        double n, scale;
        row_constants(p.metric, norm, n, scale);
        norms[r] = n;
        row_scale[r] = static_cast<T>(scale);
      }
      __syncthreads();
    }
    T n_j[kColumnsEach];
#pragma unroll
    for (int c = 0; c < kColumnsEach; ++c) {
      const int64_t j = column0 + Tile::column(c);
      n_j[c] = j < p.block.count ? static_cast<T>(p.block.norm[j]) : static_cast<T>(INFINITY);
    }
#pragma unroll
    for (int r = 0; r < kRowsEach; ++r) {
      const T scale = p.metric == Metric::kCosine ? 2 * row_scale[Tile::row(r)] : 2;
      T best = INFINITY;
      int nearest = 0;
#pragma unroll
      for (int c = 0; c < kColumnsEach; ++c) {
        const T value = n_j[c] - scale * product[r][c];
        if (value < best) {
          best = value;
          nearest = Tile::column(c);
        }
      }
#pragma unroll
      for (int step = Tile::kSide / 2; step > 0; step /= 2) {
        const T other = __shfl_xor_sync(kAllLanes, best, step);
        const int other_nearest = __shfl_xor_sync(kAllLanes, nearest, step);
        if (other < best || (other == best && other_nearest < nearest)) {
          best = other;
          nearest = other_nearest;
        }
      }
      if (Tile::tx() == 0 && (column0 == 0 || best < row_best[Tile::row(r)])) {  // no other thread touches this row's
        row_best[Tile::row(r)] = best;
        row_nearest[Tile::row(r)] = static_cast<int>(column0) + nearest;
      }
    }
  }
  __syncthreads();

  const int r = static_cast<int>(threadIdx.x);
  const int64_t row = row0 + r;
  if (r >= Tile::kRows || row >= p.rows.count) return;
  const double old = p.state.d2[row];
  if (old <= 0) return;  // picked, or at a centre already
  const double n = p.norm ? p.norm[row] : norms[r], length = p.norm ? p.length[row] : n;
  const double found = static_cast<double>(static_cast<T>(n)) + static_cast<double>(row_best[r]);
  bool refine = !(length < kLargestNorm<T> && largest < kLargestNorm<T>);
  if (!refine) {
    const bool triangle = has_triangle(p.metric);
    const double widest = p.share * (length + largest) + kTinySquare;
    const double reach = triangle ? error_bound(p.share, length, old, largest) : widest;
    if (found >= old + reach) return;  // most rows
    const double error =
        !triangle || found >= old ? reach : error_bound(p.share, length, fmax(found, 0.0) + reach, largest);
    refine = !(error <= p.allowed);
    if (!refine) set(p.state, row, fmax(found, 0.0), error, p.first_center + row_nearest[r]);
  }
  if (refine) p.refined[atomicAdd(p.refined_count, 1ull)] = row;
}

template <typename T>
__global__ void __launch_bounds__(kRefineThreads, 3) refine_kernel(const Lowering<T> p) {
  constexpr int kWarps = kRefineThreads / kWarp;
  ALK_SHARED(double, value, [kRefineCenters]);
  ALK_SHARED(double, ceilings, [kWarps]);
  ALK_SHARED(double, best, [kWarps]);
  ALK_SHARED(int64_t, best_center, [kWarps]);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const auto count = static_cast<int64_t>(*p.refined_count);
  for (int64_t at = blockIdx.x; at < count; at += gridDim.x) {
    const int64_t row = p.refined[at];
    double n = 1, length = 1, scale = 1;
    if (p.norm) {
      n = p.norm[row];
      length = p.length[row];
    } else {
      for (int f = 0; f < p.block.factors; ++f) {  // every warp for itself
        Squares squares;
        for (int64_t k = lane(); k < p.block.width[f]; k += kWarp) squares.add(element(p, f, row, k));
        squares.sum = warp_sum(squares.sum);
        squares.any = __any_sync(kAllLanes, squares.any);
        take_in<T>(p.metric, squares, n);
      }
      row_constants(p.metric, n, n, scale);
      length = n;
    }
    const auto bound = [&](int64_t j) {
      const double n_j = p.block.length[j];
      return length < kLargestNorm<T> && n_j < kLargestNorm<T> ? p.refined_share * (length + n_j) + kTinySquare
                                                               : INFINITY;
    };
    int each = 1;  // lanes for a centre
    while (each < kWarp && 8 * each < p.block.width[0]) each *= 2;
    for (int64_t first = 0; first < p.block.count; first += kRefineCenters) {
      const int64_t last = p.block.count < first + kRefineCenters ? p.block.count : first + kRefineCenters;
      double ceiling = p.state.d2[row];
      for (int64_t some = first + warp * kWarp / each; some < last; some += kRefineThreads / each) {
        const int64_t j = some + lane() / each;
        double product = scale;
        for (int f = 0; f < p.block.factors; ++f) {
          const T* center = p.block.factor[f] + j * p.block.stride[f];
          double sum = 0;
          for (int64_t k = lane() % each; j < last && k < p.block.width[f]; k += each)
            sum = fma(static_cast<double>(element(p, f, row, k)), static_cast<double>(center[k]), sum);
          for (int step = each / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
          product *= sum;
        }
        if (j >= last || lane() % each != 0) continue;
        const double d = n + p.block.norm[j] - 2 * product;
        value[j - first] = d;
        const double upper = d + bound(j);
        if (upper < ceiling) ceiling = upper;
      }
      for (int step = kWarp / 2; step > 0; step /= 2)
        ceiling = fmin(ceiling, __shfl_xor_sync(kAllLanes, ceiling, step));
      if (lane() == 0) ceilings[warp] = ceiling;
      __syncthreads();
      for (int w = 0; w < kWarps; ++w) ceiling = fmin(ceiling, ceilings[w]);
      double smallest = INFINITY;
      int64_t center = -1;
      const bool narrow = p.rows.width() <= kNarrow;  // then a thread takes a centre, else a warp
      for (int64_t j = first + (narrow ? threadIdx.x : warp); j < last; j += narrow ? kRefineThreads : kWarps) {
        if (value[j - first] - bound(j) > ceiling) continue;  // NaN: measured
        const double exact = narrow ? exact_distance<1>(p.metric, p.rows, row, p.centers, j)
                                    : exact_distance(p.metric, p.rows, row, p.centers, j);
        if (exact < smallest) {
          smallest = exact;
          center = j;
        }
      }
      for (int step = kWarp / 2; narrow && step > 0; step /= 2) {
        const double other = __shfl_xor_sync(kAllLanes, smallest, step);
        const int64_t other_center = __shfl_xor_sync(kAllLanes, center, step);
        if (other < smallest || (other == smallest && other_center < center)) {
          smallest = other;
          center = other_center;
        }
      }
      if (lane() == 0) {
        best[warp] = smallest;
        best_center[warp] = center;
      }
      __syncthreads();
      if (threadIdx.x == 0) {
        for (int w = 1; w < kWarps; ++w) {
          if (best_center[w] >= 0 &&
              (center < 0 || best[w] < smallest || (best[w] == smallest && best_center[w] < center))) {
            smallest = best[w];
            center = best_center[w];
          }
        }
        if (center >= 0) set(p.state, row, smallest, 0, p.first_center + center);
      }
      __syncthreads();
    }
  }
}

template <typename T>
void lower(const Rows& rows, const Rows& center_rows, const double* shift_at, Metric metric, int64_t first_center,
           double level, const State& state, const Device& device) {
  const T* shift = padded_shift<T>(shift_at, rows.factor[0].width, device);
  Lowering<T> p;
  p.centers = center_rows;
  p.metric = metric;
  p.block = new_packed<T>(center_rows, metric, center_rows.count, device);
  pack(center_rows, metric, shift, true, p.block, device);
  p.share = error_share<T>(rows, metric);
  p.refined_share =
      sizeof(T) == 8 ? p.share : 6 * rows.factors * static_cast<double>(std::numeric_limits<T>::epsilon()) / 2;
  p.allowed = std::min(kTolerance * level, static_cast<double>(std::numeric_limits<float>::max()));
  p.first_center = first_center;

  const bool logarithms = metric == Metric::kSymmetricKl;
  const int64_t some =
      logarithms ? std::min(rows.count, std::max<int64_t>(kThreads, kPackedBytes / (16 * rows.width()))) : rows.count;
  p.refined = device.scratch<int64_t>(some);
  p.refined_count = device.scratch<unsigned long long>(1);
  Packed<T> packed;
  if (logarithms) packed = new_packed<T>(rows, metric, some, device);
  for (int64_t begin = 0; begin < rows.count; begin += some) {
    p.rows = slice(rows, begin, std::min(some, rows.count - begin));
    p.state = {state.d2 + begin, state.error + begin, state.nearest ? state.nearest + begin : nullptr};
    p.norm = p.length = nullptr;
    if (logarithms) {
      pack<T>(p.rows, metric, nullptr, false, packed, device);
      p.left[0] = loader<T>(as_source(packed, 0));
      p.norm = packed.norm;
      p.length = packed.length;
    } else {
      for (int f = 0; f < rows.factors; ++f) p.left[f] = loader<T>(p.rows.factor[f], f == 0 ? shift : nullptr);
    }
    check(cudaMemsetAsync(p.refined_count, 0, sizeof(*p.refined_count), device.stream));
    for_tile<T>(rows.factors, [&](auto tile) {
      using Tile = typename decltype(tile)::Type;
      const auto kernel = lower_kernel<T, tile.kRowsEach, tile.kColumnsEach>;
      Tile::allow_shared(kernel, tile.kMostFactors);
      ALK_LAUNCH(kernel, blocks_for(p.rows.count, Tile::kRows), kThreads,
                 Tile::shared_bytes(p.block.width, rows.factors), device.stream, p);
    });
    ALK_LAUNCH(refine_kernel<T>, static_cast<unsigned>(std::min<int64_t>(p.rows.count, 8 * device.multiprocessors)),
               kRefineThreads, 0, device.stream, p);
  }
}

// A warp takes a pair. Reads both rows once.
__global__ void __launch_bounds__(kThreads)
    paired_distances_kernel(const Rows rows, const Rows others, Metric metric, double* __restrict__ out) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads / kWarp) + threadIdx.x / kWarp;
  if (i >= rows.count) return;
  const double d2 = exact_distance(metric, rows, i, others, i);
  if (lane() == 0) out[i] = d2;
}

}  // namespace

void lower_distances(const Rows& rows, const Rows& centers, const double* shift, Metric metric, int64_t first_center,
                     double level, const State& state, const Device& device) {
  if (rows.count == 0 || centers.count == 0) return;
  (rows.wide || centers.wide ? lower<double> : lower<float>)(rows, centers, shift, metric, first_center, level, state,
                                                             device);
  check(cudaGetLastError());
}

void paired_distances(const Rows& rows, const Rows& others, Metric metric, double* out, const Device& device) {
  if (rows.count == 0) return;
  ALK_LAUNCH(paired_distances_kernel, blocks_for(rows.count, kThreads / kWarp), kThreads, 0, device.stream, rows,
             others, metric, out);
  check(cudaGetLastError());
}

}  // namespace alkernels::cuda
