// The two steps of a block of k-center greedy that are not a distance tile (../../README.md, "How it works"). All of it
// stays on the device: the host reads nothing in between.
//
// top_candidates: the m rows farthest from their centres, in order. A radix select on (value, index), kBits a pass from
// the top: each pass counts the digits of the rows that agree with what is chosen so far, and the last block of threads
// to finish chooses the digit of the m-th. Then the m rows at or before it are collected, and each finds its place by
// counting those before it. Traffic: d2 once a pass, eight to ten passes, plus m^2 comparisons in cache.
//
// k_center_block: the sequential rule inside those m rows, on their m x m squared distances: one block of threads, four
// candidates a thread, a barrier a pick. A pick stands while no row outside can beat it and its distance is above the
// level to which distances are known.
#include "../common/candidate.h"
#include "block_distances.cuh"

namespace alkernels::cuda {
namespace {

// ---- top_candidates ----

constexpr int kBits = 11, kBins = 1 << kBits;

struct Select {
  unsigned histogram[kBins];
  unsigned blocks_done;
  unsigned collected;
  unsigned long long rest;  // how many of the rows that agree with the digits chosen are among the m
  uint64_t value, index;    // digits chosen, in their places
};

// Digits of a row's key: those of its value (ordered()), then of its index's complement.
struct Digit {
  bool of_index;
  int shift, bits;  // its lowest bit, its length

  __device__ unsigned operator()(uint64_t key) const {
    return static_cast<unsigned>(key >> shift) & ((1u << bits) - 1);
  }
  // Whether the digits above this one are equal.
  __device__ bool agree(uint64_t a, uint64_t b) const {
    return shift + bits >= 64 || a >> (shift + bits) == b >> (shift + bits);
  }
};

__global__ void __launch_bounds__(kThreads)
    select_kernel(const double* __restrict__ d2, int64_t count, Digit digit, Select* __restrict__ select) {
  ALK_SHARED(unsigned, histogram, [kBins]);
  ALK_SHARED(bool, last, );
  const uint64_t value = select->value, index = select->index;
  for (int b = threadIdx.x; b < kBins; b += kThreads) histogram[b] = 0;
  __syncthreads();
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; i < count;
       i += static_cast<int64_t>(kThreads) * gridDim.x) {
    const uint64_t key = ordered(d2[i]), place = ~static_cast<uint64_t>(i);
    if (digit.of_index ? key == value && digit.agree(place, index) : digit.agree(key, value))
      atomicAdd(&histogram[digit(digit.of_index ? place : key)], 1u);
  }
  __syncthreads();
  for (int b = threadIdx.x; b < kBins; b += kThreads) {
    if (histogram[b]) atomicAdd(&select->histogram[b], histogram[b]);
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(&select->blocks_done, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  for (int b = threadIdx.x; b < kBins; b += kThreads) {
    histogram[b] = atomicExch(&select->histogram[b], 0u);  // ready for the next digit
  }
  __syncthreads();
  if (threadIdx.x >= kWarp) return;
  // A lane adds up 64 bins, from the top; the lane that passes the rest finds the bin.
  constexpr int kEach = kBins / kWarp;
  const int top = kBins - 1 - lane() * kEach;
  unsigned long long own = 0;
  for (int b = 0; b < kEach; ++b) own += histogram[top - b];
  const unsigned long long up_to = warp_sum_up_to(own);
  unsigned long long rest = select->rest;
  __syncwarp();
  if (up_to < rest || up_to - own >= rest) return;
  rest -= up_to - own;
  int b = top;
  while (histogram[b] < rest) rest -= histogram[b--];
  select->rest = rest;
  (digit.of_index ? select->index : select->value) |= static_cast<uint64_t>(b) << digit.shift;
  select->blocks_done = 0;
}

__global__ void select_start_kernel(Select* select, int64_t m, uint64_t index) {
  for (int b = threadIdx.x; b < kBins; b += blockDim.x) select->histogram[b] = 0;
  if (threadIdx.x == 0) {
    select->blocks_done = select->collected = 0;
    select->rest = static_cast<unsigned long long>(m);
    select->value = 0;
    select->index = index;
  }
}

__global__ void __launch_bounds__(kThreads) collect_kernel(const double* __restrict__ d2, int64_t count, Select* select,
                                                           double* __restrict__ values, int64_t* __restrict__ indices) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (i >= count) return;
  const uint64_t key = ordered(d2[i]);
  if (key < select->value || (key == select->value && ~static_cast<uint64_t>(i) < select->index)) return;
  const unsigned at = atomicAdd(&select->collected, 1u);
  values[at] = d2[i];
  indices[at] = i;
}

// Each candidate counts those before it; shared memory holds the others a tile at a time.
__global__ void __launch_bounds__(kThreads)
    rank_kernel(const double* __restrict__ values, const int64_t* __restrict__ indices, int64_t m,
                double* __restrict__ sorted_values, int64_t* __restrict__ sorted_indices) {
  ALK_SHARED(double, value, [kThreads]);
  ALK_SHARED(int64_t, index, [kThreads]);
  const int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  const Candidate mine = i < m ? Candidate{values[i], indices[i]} : Candidate{0, 0};
  int64_t rank = 0;
  for (int64_t first = 0; first < m; first += kThreads) {
    const int64_t j = first + threadIdx.x;
    __syncthreads();
    if (j < m) {
      value[threadIdx.x] = values[j];
      index[threadIdx.x] = indices[j];
    }
    __syncthreads();
    const int some = static_cast<int>(m - first < kThreads ? m - first : kThreads);
    for (int t = 0; t < some; ++t) rank += before({value[t], index[t]}, mine);
  }
  if (i < m) {
    sorted_values[rank] = mine.value;
    sorted_indices[rank] = mine.index;
  }
}

// ---- k_center_block ----

struct Best {
  double value;
  int64_t index, position;
};

__device__ inline Best better(const Best& a, const Best& b) {
  return before({b.value, b.index}, {a.value, a.index}) ? b : a;
}

__device__ inline Best best_of_warp(Best mine) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    mine = better(mine, {__shfl_xor_sync(kAllLanes, mine.value, step), __shfl_xor_sync(kAllLanes, mine.index, step),
                         __shfl_xor_sync(kAllLanes, mine.position, step)});
  }
  return mine;
}

// No row outside the m candidates exceeds `bound`, and an outside row equal to it has a higher index than each
// candidate that started at `bound`: hence the rule for ties.
template <typename T>
__global__ void __launch_bounds__(kPlayers, 1)
    k_center_kernel(const BlockDistances<T> block, const double* __restrict__ values,
                    const int64_t* __restrict__ indices, const double* __restrict__ bound_at,
                    const double* __restrict__ level_at, int64_t limit, double* __restrict__ scratch,
                    int64_t* __restrict__ picks, double* __restrict__ scores) {
  constexpr int kWarps = kPlayers / kWarp;
  ALK_SHARED(double, near, [kNear]);
  ALK_SHARED(Best, warp_best, [2][kWarps]);
  const int64_t m = block.count;
  const double bound = *bound_at, level = *level_at;
  double* const d2 = m <= kNear ? near : scratch;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp;

  Best tie{-1, -1, -1};  // of the candidates that started at the bound: the last
  for (int64_t i = thread; i < m; i += kPlayers) {
    d2[i] = values[i];
    if (values[i] == bound && indices[i] > tie.position) tie.position = indices[i];
    picks[i] = -1;
    scores[i] = 0;
  }
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const int64_t other = __shfl_xor_sync(kAllLanes, tie.position, step);
    if (other > tie.position) tie.position = other;
  }
  if (lane() == 0) warp_best[1][warp] = tie;
  __syncthreads();
  for (int w = 0; w < kWarps; ++w) {
    if (warp_best[1][w].position > tie.position) tie.position = warp_best[1][w].position;
  }
  const int64_t last_tie = tie.position;

  for (int64_t made = 0; made < limit; ++made) {
    Best best{-1, INT64_MAX, -1};
    for (int64_t i = thread; i < m; i += kPlayers) {
      if (d2[i] >= 0) best = better(best, {d2[i], indices[i], i});
    }
    // two sets of winners in turn: nobody writes the one that others may still read
    Best* const winners = warp_best[made % 2];
    best = best_of_warp(best);
    if (lane() == 0) winners[warp] = best;
    __syncthreads();
    best = best_of_warp(lane() < kWarps ? winners[lane()] : Best{-1, INT64_MAX, -1});
    if (best.position < 0 || best.value < level || best.value < bound || (best.value == bound && best.index > last_tie))
      return;
    if (thread == 0) {
      picks[made] = best.position;
      scores[made] = best.value;
    }
    for (int64_t first = 0; first < m; first += kPlayers)
      block.lower(first + thread, best.position, fmax(bound, level), d2);
    if (best.position % kPlayers == thread) d2[best.position] = -1;
  }
}

template <typename T>
void play(const Rows& rows, const double* shift, Metric metric, const double* values, const int64_t* indices,
          const double* bound, const double* level, int64_t limit, int64_t* picks, double* scores,
          const Device& device) {
  const BlockDistances<T> block = block_distances<T>(rows, metric, shift, device);
  double* scratch = rows.count > kNear ? device.scratch<double>(rows.count) : nullptr;
  ALK_LAUNCH(k_center_kernel<T>, 1, kPlayers, 0, device.stream, block, values, indices, bound, level,
             std::min(limit, rows.count), scratch, picks, scores);
}

}  // namespace

void top_candidates(const double* d2, int64_t count, int64_t m, double* values, int64_t* indices,
                    const Device& device) {
  if (m == 0) return;
  auto* select = device.scratch<Select>(1);
  double* some_values = device.scratch<double>(m);
  int64_t* some_indices = device.scratch<int64_t>(m);
  int index_bits = 1;
  while (count >> index_bits > 0) ++index_bits;
  // all complements of indices agree above these bits
  ALK_LAUNCH(select_start_kernel, 1, kThreads, 0, device.stream, select, m, ~uint64_t{0} << index_bits);
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(blocks_for(count, kThreads), 2 * device.multiprocessors));
  const auto choose = [&](bool of_index, int top) {
    for (int above = top; above > 0;) {
      const int bits = std::min(kBits, above);
      above -= bits;
      ALK_LAUNCH(select_kernel, blocks, kThreads, 0, device.stream, d2, count, Digit{of_index, above, bits}, select);
    }
  };
  choose(false, 64);
  choose(true, index_bits);
  ALK_LAUNCH(collect_kernel, blocks_for(count, kThreads), kThreads, 0, device.stream, d2, count, select, some_values,
             some_indices);
  ALK_LAUNCH(rank_kernel, blocks_for(m, kThreads), kThreads, 0, device.stream, some_values, some_indices, m, values,
             indices);
  check(cudaGetLastError());
}

void k_center_block(const Rows& rows, const double* shift, Metric metric, const double* values, const int64_t* indices,
                    const double* bound, const double* level, int64_t limit, int64_t* picks, double* scores,
                    const Device& device) {
  if (rows.count == 0) return;
  (rows.wide ? play<double> : play<float>)(rows, shift, metric, values, indices, bound, level, limit, picks, scores,
                                           device);
  check(cudaGetLastError());
}

}  // namespace alkernels::cuda
