// What every kernel file needs of the machine: where to launch, scratch memory, sums over a warp; and the steps.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "../common/host_device.h"
#include "launch.cuh"

#define ALK_DEVICE cuda

namespace alkernels::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kThreads = 256;  // of a block, unless a kernel says otherwise

// Gives out device memory that lives until the work queued on the op's stream is done with it.
class Memory {
 public:
  virtual void* bytes(int64_t count) = 0;

 protected:
  ~Memory() = default;
};

// Where an op runs.
struct Device {
  cudaStream_t stream;
  int multiprocessors;
  Memory* memory;

  template <typename T>
  T* scratch(int64_t count) const {
    return static_cast<T*>(memory->bytes(count * static_cast<int64_t>(sizeof(T))));
  }
};

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

inline unsigned blocks_for(int64_t items, int64_t a_block) {
  return static_cast<unsigned>((items + a_block - 1) / a_block);
}

ALK_HOST_DEVICE inline int64_t round_up(int64_t x, int64_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

#if defined(__CUDACC__) || defined(ALK_EMULATE)
__device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

template <typename T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

// Of the lanes up to this one.
template <typename T>
__device__ __forceinline__ T warp_sum_up_to(T x) {
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const T other = __shfl_up_sync(kAllLanes, x, step);
    if (lane() >= step) x += other;
  }
  return x;
}

// A key in the order of values, one for both zeros.
__device__ inline uint64_t ordered(double value) {
  const auto bits = static_cast<uint64_t>(__double_as_longlong(value + 0.0));
  return bits >> 63 ? ~bits : bits | (uint64_t{1} << 63);
}
#endif

}  // namespace alkernels::cuda

#include "../common/steps.h"
