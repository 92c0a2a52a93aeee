// Kernels with planted bugs, and the same ones without: what the emulation must find, and what it must let pass.
//   emulation_self_test CASE      prints "right", "wrong", or what the engine says; CMakeLists.txt knows what is
//   expected
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "launch.cuh"

namespace {

enum class Bug {
  kNone,
  kNoBarrierBeforeRead,
  kNoBarrierBeforeWrite,
  kDivergentBarrier,
  kEarlyReturn,
  kSharedOverrun,
  kGlobalOverrun,
  kUninitialized,
  kNoReduction,
  kNoAtomic,
  kNoFence
};

constexpr int kTile = 64;

// out[i] = sum of all values that are at most 64 before i's tile's end, tile after tile through shared memory
template <Bug kBug, typename T>
__global__ void __launch_bounds__(kTile) tile_sums(const T* __restrict__ values, int n, int tiles, float* out) {
  ALK_SHARED(float, tile, [kTile]);
  const int i = blockIdx.x * kTile + threadIdx.x;
  if (kBug == Bug::kEarlyReturn && i >= n) return;
  float sum = 0.0f;
  for (int t = 0; t < tiles; ++t) {
    const int from = t * kTile + static_cast<int>(threadIdx.x);
    if (kBug != Bug::kUninitialized || from < n) tile[threadIdx.x] = from < n ? static_cast<float>(values[from]) : 0.0f;
    if (kBug == Bug::kDivergentBarrier && threadIdx.x % 2 == 1) __syncthreads();
    if (kBug != Bug::kNoBarrierBeforeRead && !(kBug == Bug::kDivergentBarrier && threadIdx.x % 2 == 1)) __syncthreads();
#pragma unroll 4
    for (int j = 0; j < kTile + (kBug == Bug::kSharedOverrun); ++j) sum += tile[j];
    if (kBug != Bug::kNoBarrierBeforeWrite) __syncthreads();
  }
  if (kBug == Bug::kGlobalOverrun || i < n) out[i] = sum;
}

template <Bug kBug, typename T>
bool tiles_are_right(float (*to_float)(T)) {
  const int n = 150, tiles = (n + kTile - 1) / kTile;
  std::vector<T> values(n);
  float expected = 0.0f;
  for (int i = 0; i < n; ++i) {
    values[i] = T(static_cast<float>(i % 5 + 1));
    expected += to_float(values[i]);
  }
  std::unique_ptr<float[]> out(new float[n]);
  ALK_LAUNCH((tile_sums<kBug, T>), tiles, kTile, 0, nullptr, values.data(), n, tiles, out.get());
  bool right = true;
  for (int i = 0; i < n; ++i) right = right && out[i] == expected;
  return right;
}

template <Bug kBug>
bool tiles_are_right() {
  return tiles_are_right<kBug, float>([](float x) { return x; });
}

// the largest and its first place, by shuffles in each warp and then by a 64-bit atomic; how many there are above a
// bound
__global__ void find_largest(const float* values, int n, float bound, unsigned long long* best, int* above,
                             double* total) {
  unsigned long long key = 0;
  const int stride = blockDim.x * gridDim.x;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < (n + 31) / 32 * 32; i += stride) {
    const bool in = i < n;
    if (in) {
      const unsigned bits = __float_as_uint(__ldg(values + i));
      key = max(key, static_cast<unsigned long long>(bits) << 32 | ~static_cast<unsigned>(i));
      atomicAdd(total, static_cast<double>(values[i]));
    }
    const unsigned ballot = __ballot_sync(0xffffffffu, in && values[i] > bound);
    if (threadIdx.x % 32 == 0 && ballot) atomicAdd(above, __popc(ballot));
  }
  for (int offset = 16; offset > 0; offset /= 2) key = max(key, __shfl_xor_sync(0xffffffffu, key, offset));
  __syncwarp();
  if (threadIdx.x % 32 == 0) atomicMax(best, key);
}

bool largest_is_right() {
  const int n = 1000;
  std::vector<float> values(n);
  for (int i = 0; i < n; ++i) values[i] = static_cast<float>(i * 37 % 101);
  int first = 0, expected = 0;
  double sum = 0.0;
  for (int i = 0; i < n; ++i) {
    if (values[i] > values[first]) first = i;
    expected += values[i] > 50.0f;
    sum += static_cast<double>(values[i]);
  }
  unsigned long long best = 1;
  int above = -1;
  double total = -1.0;
  cudaMemsetAsync(&best, 0, sizeof best, nullptr);
  cudaMemsetAsync(&above, 0, sizeof above, nullptr);
  cudaMemsetAsync(&total, 0, sizeof total, nullptr);
  ALK_LAUNCH(find_largest, dim3(3), dim3(128), 0, nullptr, values.data(), n, 50.0f, &best, &above, &total);
  return static_cast<int>(~static_cast<unsigned>(best)) == first && above == expected && total == sum;
}

// each block adds its index to what the block before it has left: right only where blocks happen to run in order
template <Bug kBug>
__global__ void add_up(int* sums) {
  if (kBug == Bug::kNoReduction) {
    sums[blockIdx.x] = static_cast<int>(blockIdx.x) + (blockIdx.x > 0 ? sums[blockIdx.x - 1] : 0);
  } else {
    for (unsigned b = blockIdx.x; b < gridDim.x; ++b) {
      if (kBug == Bug::kNoAtomic) {
        sums[b] += static_cast<int>(blockIdx.x);
      } else {
        atomicAdd(&sums[b], static_cast<int>(blockIdx.x));
      }
    }
  }
}

// the last block to come adds up what all have left
template <Bug kBug>
__global__ void last_adds_up(int* parts, unsigned* ticket, int* sum) {
  ALK_SHARED(bool, last, );
  if (threadIdx.x == 0) {
    parts[blockIdx.x] = static_cast<int>(blockIdx.x);
    if (kBug != Bug::kNoFence) __threadfence();
    last = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return;
  const int mine = threadIdx.x < gridDim.x ? parts[threadIdx.x] : 0;
  if (mine) atomicAdd(sum, mine);
}

template <Bug kBug>
bool last_is_right() {
  std::vector<int> parts(10);
  unsigned ticket = 0;
  int sum = 0;
  ALK_LAUNCH(last_adds_up<kBug>, 10, 32, 0, nullptr, parts.data(), &ticket, &sum);
  return sum == 45 && ticket == 0;
}

template <Bug kBug>
bool sums_are_right() {
  std::vector<int> sums(10);
  ALK_LAUNCH(add_up<kBug>, 10, 1, 0, nullptr, sums.data());
  return sums[9] == 45;
}

template <Bug kBug>
__global__ void count(const int* values, int n, int bins, int* counts) {
  ALK_DYNAMIC_SHARED(memory);
  int* mine = reinterpret_cast<int*>(memory);
  for (int b = threadIdx.x; b < bins; b += blockDim.x) mine[b] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    if (kBug == Bug::kNoAtomic) {
      ++mine[values[i]];
    } else {
      atomicAdd(&mine[values[i]], 1);
    }
  }
  __syncthreads();
  for (int b = threadIdx.x; b < bins; b += blockDim.x) counts[b] = mine[b];
}

template <Bug kBug>
bool counts_are_right(bool raise_limit) {
  const int n = 500, bins = kBug == Bug::kNoAtomic ? 100 : 20000;
  std::vector<int> values(n), counts(bins), expected(bins);
  for (int i = 0; i < n; ++i) ++expected[values[i] = i * 7919 % bins];
  const int bytes = bins * static_cast<int>(sizeof(int));
  if (raise_limit &&
      cudaFuncSetAttribute(count<kBug>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) != cudaSuccess) {
    return false;
  }
  ALK_LAUNCH(count<kBug>, 1, 96, bytes, nullptr, values.data(), n, bins, counts.data());
  return counts == expected;
}

__global__ void too_much_static(float* out) {
  ALK_SHARED(float, large, [49 * 256]);
  large[threadIdx.x] = 1.0f;
  out[threadIdx.x] = large[threadIdx.x];
}

__global__ void divergent_shuffle(int* out) {
  int value = static_cast<int>(threadIdx.x);
  if (threadIdx.x < 16) value = __shfl_down_sync(0xffffffffu, value, 1);
  __syncthreads();
  out[threadIdx.x] = value;
}

bool run(const std::string& name) {
  if (name == "clean") {
    return tiles_are_right<Bug::kNone>() && tiles_are_right<Bug::kNone, __half>(__half2float) &&
           tiles_are_right<Bug::kNone, __nv_bfloat16>(__bfloat162float) && largest_is_right() &&
           counts_are_right<Bug::kNone>(true) && sums_are_right<Bug::kNone>() && last_is_right<Bug::kNone>();
  }
  if (name == "no-barrier-before-read") return tiles_are_right<Bug::kNoBarrierBeforeRead>();
  if (name == "no-barrier-before-write") return tiles_are_right<Bug::kNoBarrierBeforeWrite>();
  if (name == "divergent-barrier") return tiles_are_right<Bug::kDivergentBarrier>();
  if (name == "early-return") return tiles_are_right<Bug::kEarlyReturn>();
  if (name == "shared-overrun") return tiles_are_right<Bug::kSharedOverrun>();
  if (name == "global-overrun") return tiles_are_right<Bug::kGlobalOverrun>();
  if (name == "uninitialized") return tiles_are_right<Bug::kUninitialized>();
  if (name == "no-reduction") return sums_are_right<Bug::kNoReduction>();
  if (name == "no-atomic") return sums_are_right<Bug::kNoAtomic>();
  if (name == "no-atomic-in-shared") return counts_are_right<Bug::kNoAtomic>(true);
  if (name == "no-fence") return last_is_right<Bug::kNoFence>();
  if (name == "limit-not-raised") return counts_are_right<Bug::kNone>(false);
  std::vector<float> out(32);
  if (name == "too-much-static") {
    ALK_LAUNCH(too_much_static, 1, 32, 0, nullptr, out.data());
  } else if (name == "empty-grid") {
    ALK_LAUNCH(too_much_static, 0, 32, 0, nullptr, out.data());
  } else if (name == "large-block") {
    ALK_LAUNCH(too_much_static, 1, 1025, 0, nullptr, out.data());
  } else if (name == "divergent-shuffle") {
    std::vector<int> lanes(32);
    ALK_LAUNCH(divergent_shuffle, 1, 32, 0, nullptr, lanes.data());
  } else {
    throw std::invalid_argument("no case " + name);
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    std::puts(run(argc > 1 ? argv[1] : "clean") ? "right" : "wrong");
  } catch (const std::exception& error) {
    std::puts(error.what());
  }
}
