// The two steps of a block of k-means++ (D^2) seeding that are not a distance tile (../../README.md, "How it works").
//
// draw_by_weight: rows drawn with probability d2[i] / sum d2, one for each uniform. A block of threads sums a chunk of
// rows in float64, one block adds the chunks up in order, and a warp a draw searches first the chunks, then its chunk.
// The order of all sums is fixed. Reads d2 once, and 32 kB of it a draw.
//
// kmeans_plusplus_block: proposals drawn from stale weights, accepted in order with probability (weight now) / (stale
// weight), on their squared distances: one block of threads, four proposals a thread, two barriers an acceptance. An
// accepted row is distributed exactly as one drawn from the weights of that moment.
#include "block_distances.cuh"

namespace alkernels::cuda {
namespace {

constexpr int64_t kChunk = 4096;

__global__ void __launch_bounds__(kThreads)
    chunk_sums_kernel(const double* __restrict__ d2, int64_t count, double* __restrict__ sums) {
  ALK_SHARED(double, warp_sums, [kThreads / kWarp]);
  const int64_t first = blockIdx.x * kChunk, last = first + kChunk < count ? first + kChunk : count;
  double sum = 0;
  for (int64_t i = first + threadIdx.x; i < last; i += kThreads) sum += fmax(d2[i], 0.0);
  sum = warp_sum(sum);
  if (lane() == 0) warp_sums[threadIdx.x / kWarp] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kThreads / kWarp; ++w) sum += warp_sums[w];
  sums[blockIdx.x] = sum;
}

// sums[c] becomes the weight up to the end of chunk c. Shared memory holds a tile of them for the thread that adds.
__global__ void __launch_bounds__(kThreads)
    add_up_kernel(double* __restrict__ sums, int64_t chunks, double* __restrict__ total) {
  ALK_SHARED(double, tile, [kThreads]);
  double before = 0;
  for (int64_t first = 0; first < chunks; first += kThreads) {
    const int64_t at = first + threadIdx.x;
    if (at < chunks) tile[threadIdx.x] = sums[at];
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int64_t i = 0; i < kThreads && first + i < chunks; ++i) tile[i] = before += tile[i];
    }
    __syncthreads();
    if (at < chunks) sums[at] = tile[threadIdx.x];
    __syncthreads();
  }
  if (threadIdx.x == 0) *total = before;
}

// The last row of any weight in [first, last), or -1. By a warp.
__device__ int64_t last_of_weight(const double* d2, int64_t first, int64_t last) {
  for (int64_t end = last; end > first; end -= kWarp) {
    const int64_t i = end - kWarp + lane();
    const unsigned found = __ballot_sync(kAllLanes, i >= first && d2[i] > 0);
    if (found) return end - 1 - __clz(static_cast<int>(found));
  }
  return -1;
}

__global__ void __launch_bounds__(kThreads)
    draw_kernel(const double* __restrict__ d2, int64_t count, const double* __restrict__ sums, int64_t chunks,
                const double* __restrict__ uniforms, int64_t draws, int64_t* __restrict__ indices) {
  const int64_t draw = blockIdx.x * static_cast<int64_t>(kThreads / kWarp) + threadIdx.x / kWarp;
  if (draw >= draws) return;
  const double total = sums[chunks - 1];
  int64_t found = -1;
  if (total > 0) {
    const double target = uniforms[draw] * total;
    int64_t low = 0, high = chunks - 1;  // the first chunk whose end is past the target, or the last chunk
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (sums[middle] > target) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    const int64_t first = low * kChunk, last = first + kChunk < count ? first + kChunk : count;
    double before = low > 0 ? sums[low - 1] : 0;
    for (int64_t begin = first; begin < last && found < 0; begin += kWarp) {
      const int64_t i = begin + lane();
      const double weight = i < last ? fmax(d2[i], 0.0) : 0.0;
      const double sum = warp_sum_up_to(weight);
      const unsigned past = __ballot_sync(kAllLanes, weight > 0 && before + sum > target);
      if (past) found = begin + __ffs(static_cast<int>(past)) - 1;
      before += __shfl_sync(kAllLanes, sum, kWarp - 1);
    }
    // rounding may leave the target past the end: then the last row of any weight
    if (found < 0) found = last_of_weight(d2, 0, last);
  }
  if (lane() == 0) indices[draw] = found;
}

constexpr int kWindow = 32;  // the pass ends when fewer than a third of so many proposals were accepted

template <typename T>
__global__ void __launch_bounds__(kPlayers, 1)
    accept_kernel(const BlockDistances<T> block, const double* __restrict__ values, const int64_t* __restrict__ indices,
                  const double* __restrict__ uniforms, const double* __restrict__ level, int64_t limit,
                  double* __restrict__ scratch, int64_t* __restrict__ picks, double* __restrict__ scores) {
  ALK_SHARED(double, near, [kNear]);
  const int64_t count = block.count;
  double* const now = count <= kNear ? near : scratch;
  const auto thread = static_cast<int64_t>(threadIdx.x);
  for (int64_t i = thread; i < count; i += kPlayers) {
    now[i] = values[i];
    picks[i] = -1;
    scores[i] = 0;
  }
  __syncthreads();
  static_assert(kWindow == 32, "a bit a proposal");
  unsigned accepted = 0;
  int64_t made = 0;
  for (int64_t i = 0; i < count && made < limit; ++i) {
    const double weight = now[i];
    const bool accept = uniforms[i] * values[i] < weight;
    accepted = accepted << 1 | static_cast<unsigned>(accept);
    if (accept) {
      if (thread == 0) {
        picks[made] = i;
        scores[made] = weight;
      }
      ++made;
      __syncthreads();  // all have read the weight
      for (int64_t first = 0; first < count; first += kPlayers) block.lower(first + thread, i, *level, now);
      for (int64_t j = thread; j < count; j += kPlayers) {
        if (indices[j] == indices[i]) now[j] = 0;
      }
      __syncthreads();
    }
    if (i + 1 >= kWindow && 3 * __popc(accepted) < kWindow) break;
  }
}

template <typename T>
void play(const Rows& rows, const double* shift, Metric metric, const double* values, const int64_t* indices,
          const double* uniforms, const double* level, int64_t limit, int64_t* picks, double* scores,
          const Device& device) {
  const BlockDistances<T> block = block_distances<T>(rows, metric, shift, device);
  double* scratch = rows.count > kNear ? device.scratch<double>(rows.count) : nullptr;
  ALK_LAUNCH(accept_kernel<T>, 1, kPlayers, 0, device.stream, block, values, indices, uniforms, level, limit, scratch,
             picks, scores);
}

}  // namespace

void draw_by_weight(const double* d2, int64_t count, const double* uniforms, int64_t draws, int64_t* indices,
                    double* total, const Device& device) {
  const int64_t chunks = std::max<int64_t>(1, (count + kChunk - 1) / kChunk);
  double* sums = device.scratch<double>(chunks);
  ALK_LAUNCH(chunk_sums_kernel, static_cast<unsigned>(chunks), kThreads, 0, device.stream, d2, count, sums);
  ALK_LAUNCH(add_up_kernel, 1, kThreads, 0, device.stream, sums, chunks, total);
  if (draws > 0)
    ALK_LAUNCH(draw_kernel, blocks_for(draws, kThreads / kWarp), kThreads, 0, device.stream, d2, count, sums, chunks,
               uniforms, draws, indices);
  check(cudaGetLastError());
}

void kmeans_plusplus_block(const Rows& rows, const double* shift, Metric metric, const double* values,
                           const int64_t* indices, const double* uniforms, const double* level, int64_t limit,
                           int64_t* picks, double* scores, const Device& device) {
  if (rows.count == 0) return;
  (rows.wide ? play<double> : play<float>)(rows, shift, metric, values, indices, uniforms, level, limit, picks, scores,
                                           device);
  check(cudaGetLastError());
}

}  // namespace alkernels::cuda
