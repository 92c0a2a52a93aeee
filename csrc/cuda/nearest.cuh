// The k smallest of many values a row, screened in T and decided in float64: behind nearest neighbours and smallest
// divergences.
#pragma once

#include "../common/candidate.h"
#include "product_matrix.cuh"

namespace alkernels::cuda {

constexpr int kScreened = 2048;             // columns that are screened at a time
constexpr int64_t kMatrixBytes = 32 << 20;  // of product values that wait to be screened: they stay in L2
constexpr int64_t kPackedBytes = 64 << 20;  // of packed rows

// As ordered(double), and back.
__device__ inline uint64_t ordered(float value) {
  const unsigned bits = __float_as_uint(value + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ inline double value_of(uint64_t key, double) {
  return __longlong_as_double(static_cast<long long>(key >> 63 ? key & ~(uint64_t{1} << 63) : ~key));
}
__device__ inline float value_of(uint64_t key, float) {
  const auto low = static_cast<unsigned>(key);
  return __uint_as_float(low >> 31 ? low & 0x7fffffffu : ~low);
}

// The k-th smallest of `count` values in shared memory, k from 1: eight bits of its key at a time from the top. By a
// block.
template <typename T>
__device__ T kth_smallest(const T* values, int count, int k, unsigned* histogram, int* chosen) {
  uint64_t key = 0;
  for (int shift = static_cast<int>(sizeof(T)) * 8 - 8; shift >= 0; shift -= 8) {
    for (int b = threadIdx.x; b < 256; b += kThreads) histogram[b] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const uint64_t other = ordered(values[i]);
      if (shift + 8 == sizeof(T) * 8 || other >> (shift + 8) == key >> (shift + 8))
        atomicAdd(&histogram[other >> shift & 255], 1u);
    }
    __syncthreads();
    if (threadIdx.x < kWarp) {  // a lane adds up eight bins; the lane that passes k finds the bin
      unsigned own = 0;
      for (int b = 0; b < 8; ++b) own += histogram[lane() * 8 + b];
      const unsigned up_to = warp_sum_up_to(own);
      unsigned before = up_to - own;
      if (before < static_cast<unsigned>(k) && up_to >= static_cast<unsigned>(k)) {
        int bin = lane() * 8;
        while (before + histogram[bin] < static_cast<unsigned>(k)) before += histogram[bin++];
        chosen[0] = bin;
        chosen[1] = k - static_cast<int>(before);
      }
    }
    __syncthreads();
    key |= static_cast<uint64_t>(chosen[0]) << shift;
    k = chosen[1];
  }
  return value_of(key, T());
}

// Merges columns [first, first + count) into the lists of rows [begin, begin + rows). A block of threads takes a row:
// those values that may be among the k smallest, given what their errors are, are measured in float64 by a warp each;
// then every one of them and of the list counts those before it. `source` has
//   value(row, column, product)   the value in T
//   error(row, first)             how far those of the columns from `first` on may be from the truth
//   exact(row, column)            the truth, by a warp
// Traffic: the product values once, the lists twice, the few rows that are measured.
template <typename T, typename Source>
__global__ void __launch_bounds__(kThreads, 2)
    merge_kernel(const Source source, const T* __restrict__ products, int64_t begin, int64_t rows, int64_t first,
                 int count, int64_t first_index, const Lists lists, double* __restrict__ kept_values,
                 int64_t* __restrict__ kept_indices) {
  ALK_SHARED(T, value, [kScreened]);
  ALK_SHARED(double, exact, [kScreened]);
  ALK_SHARED(int, column, [kScreened]);
  ALK_SHARED(unsigned, histogram, [256]);
  ALK_SHARED(int, chosen, [2]);
  ALK_SHARED(int, found, );
  const int thread = static_cast<int>(threadIdx.x), k = static_cast<int>(lists.k);
  kept_values += blockIdx.x * lists.k;
  kept_indices += blockIdx.x * lists.k;
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    const int64_t row = begin + r;
    double* const values = lists.values + row * lists.k;
    int64_t* const indices = lists.indices + row * lists.k;
    const double error = source.error(row, first);
    double ceiling = values[k - 1];
    int mine = 0;
    for (int i = thread; i < count; i += kThreads) {
      value[i] = source.value(row, first + i, products[r * kScreened + i]);
      mine += !(static_cast<double>(value[i]) - error > ceiling);
    }
    __syncthreads();
    if (thread == 0) found = 0;
    __syncthreads();
    if (mine > 0) atomicAdd(&found, mine);
    __syncthreads();
    if (found > 2 * k + 64 && k <= count)
      ceiling = fmin(ceiling, static_cast<double>(kth_smallest(value, count, k, histogram, chosen)) + error);
    __syncthreads();
    if (thread == 0) found = 0;
    __syncthreads();
    for (int i = thread; i < count; i += kThreads) {
      if (!(static_cast<double>(value[i]) - error > ceiling)) column[atomicAdd(&found, 1)] = i;
    }
    __syncthreads();
    if (found == 0) continue;
    for (int c = thread / kWarp; c < found; c += kThreads / kWarp) {
      const double truth = source.exact(row, first + column[c]);
      if (lane() == 0) exact[c] = truth;
    }
    // those already in the list, which is in order
    int listed = 0, above = k;
    while (listed < above) {
      const int middle = (listed + above) / 2;
      if (indices[middle] >= 0) {
        listed = middle + 1;
      } else {
        above = middle;
      }
    }
    __syncthreads();
    for (int e = thread; e < listed + found; e += kThreads) {
      // smaller values first: the order of candidates, of the negated ones
      const bool old = e < listed;
      const Candidate own = old ? Candidate{-values[e], indices[e]}
                                : Candidate{-exact[e - listed], first_index + first + column[e - listed]};
      int rank = old ? e : 0, end = old ? e : listed;
      while (rank < end) {  // how many of the list are before
        const int middle = (rank + end) / 2;
        if (before({-values[middle], indices[middle]}, own)) {
          rank = middle + 1;
        } else {
          end = middle;
        }
      }
      for (int c = 0; c < found; ++c) rank += before({-exact[c], first_index + first + column[c]}, own);
      if (rank < k) {
        kept_values[rank] = -own.value;
        kept_indices[rank] = own.index;
      }
    }
    __syncthreads();
    for (int e = thread; e < k && e < listed + found; e += kThreads) {
      values[e] = kept_values[e];
      indices[e] = kept_indices[e];
    }
    __syncthreads();
  }
}

// What a merge of up to `rows` rows with k neighbours needs, allocated once.
template <typename T>
struct MergeSpace {
  MergeSpace(int64_t rows, int64_t k, const Device& device)
      : rows_at_a_time(std::clamp<int64_t>(kMatrixBytes / (kScreened * static_cast<int64_t>(sizeof(T))), 1, rows)),
        blocks(std::min<int64_t>(rows_at_a_time, 8 * device.multiprocessors)),
        products(device.scratch<T>(rows_at_a_time * kScreened)),
        values(device.scratch<double>(blocks * k)),
        indices(device.scratch<int64_t>(blocks * k)) {}

  const int64_t rows_at_a_time, blocks;
  T* const products;
  double* const values;  // a list a block of threads
  int64_t* const indices;
};

// Merges all columns into each row's list: product values of some rows and kScreened columns at a time.
template <typename T, typename Source>
void merge_nearest(const Packed<T>& rows, const Packed<T>& columns, const Source& source, int64_t first_index,
                   const Lists& lists, const MergeSpace<T>& space, const Device& device) {
  for (int64_t begin = 0; begin < rows.count; begin += space.rows_at_a_time) {
    const Packed<T> part = slice(rows, begin, std::min(space.rows_at_a_time, rows.count - begin));
    for (int64_t first = 0; first < columns.count; first += kScreened) {
      const Packed<T> screened = slice(columns, first, std::min<int64_t>(kScreened, columns.count - first));
      product_matrix(part, screened, space.products, kScreened, device);
      ALK_LAUNCH((merge_kernel<T, Source>), static_cast<unsigned>(std::min(space.blocks, part.count)), kThreads, 0,
                 device.stream, source, space.products, begin, part.count, first, static_cast<int>(screened.count),
                 first_index, lists, space.values, space.indices);
    }
  }
}

// out[g] = the largest of values [g * kScreened, (g + 1) * kScreened), infinite where one is NaN.
static __global__ void __launch_bounds__(kThreads)
    largest_kernel(const double* __restrict__ values, int64_t count, double* __restrict__ out) {
  ALK_SHARED(double, warp_largest, [kThreads / kWarp]);
  const int64_t first = blockIdx.x * static_cast<int64_t>(kScreened);
  const int64_t last = first + kScreened < count ? first + kScreened : count;
  double largest = 0;
  for (int64_t i = first + threadIdx.x; i < last; i += kThreads)
    largest = isnan(values[i]) ? INFINITY : fmax(largest, fabs(values[i]));
  for (int step = kWarp / 2; step > 0; step /= 2) largest = fmax(largest, __shfl_xor_sync(kAllLanes, largest, step));
  if (lane() == 0) warp_largest[threadIdx.x / kWarp] = largest;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kThreads / kWarp; ++w) largest = fmax(largest, warp_largest[w]);
  out[blockIdx.x] = largest;
}

// Of so many groups of kScreened.
inline int64_t screened_groups(int64_t count) { return (count + kScreened - 1) / kScreened; }

inline void largest_of(const double* values, int64_t count, double* out, const Device& device) {
  if (count > 0)
    ALK_LAUNCH(largest_kernel, static_cast<unsigned>(screened_groups(count)), kThreads, 0, device.stream, values, count,
               out);
}

}  // namespace alkernels::cuda
