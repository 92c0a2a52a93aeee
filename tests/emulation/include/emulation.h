// CUDA's execution model on the CPU: the project's own .cu files, compiled by the host compiler, run where no GPU is.
// Vector types, __half, __nv_bfloat16 and error codes are the toolkit's own headers, which the host compiler accepts.
// What is not here does not compile: a kernel that needs one more intrinsic adds its line.
//
// Not modelled: speed, streams, approximate intrinsics (here they are libm's), nvcc's contraction of a * b + c.
#pragma once

#ifdef __CUDACC__
#error "emulation.h is for the host compiler"
#endif

#include <cuda_runtime_api.h>
// not <cmath> alone: as in CUDA, sqrt of a float without std:: is a float, and there is an isnan
#include <math.h>
#include <vector_functions.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <type_traits>

// Other toolkit headers may have come before this one.
#undef __host__
#undef __device__
#undef __global__
#undef __constant__
#undef __shared__
#undef __grid_constant__
#undef __launch_bounds__
#undef __forceinline__
#define __host__
#define __device__
#define __global__
#define __constant__
#define __shared__ static_assert(false, "use ALK_SHARED or ALK_DYNAMIC_SHARED, not __shared__");
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))

namespace alk_emu {

// What an engine finds wrong with a launch or a kernel; ALK_LAUNCH throws it.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Thread {
  uint3 thread_index{}, block_index{};
  unsigned rank = 0;  // in its block
};

enum class WarpOp : uint8_t { kSync, kShuffle, kBallot };

extern Thread* current;  // the CUDA thread that runs now
extern dim3 grid_size, block_size;

template <typename T>
struct id {
  using type = T;
};
template <typename T>
using id_t = typename id<T>::type;

void run(const char* name, const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*),
         void* context);
void syncthreads(int line);
uint64_t warp_op(WarpOp op, uint32_t mask, int source, uint64_t value, int line);
void* shared_var(const void* key, size_t bytes);
void* dyn_shared();

template <typename F>
void launch(const char* name, const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t, bool,
            F&& f) {
  using Body = std::remove_reference_t<F>;
  run(name, kernel, grid, block, shared_bytes, [](void* body) { (*static_cast<Body*>(body))(); }, &f);
}

inline int lane() { return static_cast<int>(current->rank % 32); }

template <typename T>
__forceinline__ T shuffle(uint32_t mask, T value, int source, int line) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "CUDA shuffles values of up to 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_op(WarpOp::kShuffle, mask, source, bits, line);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <typename To, typename From>
__forceinline__ To bits_of(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// The race detector sees atomics and fences.
#ifdef ALK_EMU_RACES
void atomic_access(const void* address, size_t bytes);
void fence();
#define ALK_UNSEEN __attribute__((noinline, no_sanitize("thread")))
#else
inline void atomic_access(const void*, size_t) {}
inline void fence() {}
#define ALK_UNSEEN
#endif

// One thread of the process runs all CUDA threads, and none gives way inside: a plain read and write is atomic.
template <typename T, typename F>
ALK_UNSEEN inline T exchange(T* address, F f) {
  atomic_access(address, sizeof(T));
  const T old = *address;
  *address = f(old);
  return old;
}

template <typename T, typename... Of>
constexpr bool one_of = (std::is_same_v<T, Of> || ...);

}  // namespace alk_emu

#define threadIdx (::alk_emu::current->thread_index)
#define blockIdx (::alk_emu::current->block_index)
#define blockDim (::alk_emu::block_size)
#define gridDim (::alk_emu::grid_size)
constexpr int warpSize = 32;

// ---- barriers and warp intrinsics ----
// The line names the place in the kernel. A return address would not do: the compiler may copy a call.

#define ALK_AT int line = __builtin_LINE()

inline void __syncthreads(ALK_AT) { ::alk_emu::syncthreads(line); }
inline void __syncwarp(unsigned mask = 0xffffffffu, ALK_AT) {
  ::alk_emu::warp_op(::alk_emu::WarpOp::kSync, mask, 0, 0, line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, ALK_AT) {
  return static_cast<unsigned>(::alk_emu::warp_op(::alk_emu::WarpOp::kBallot, mask, 0, predicate != 0, line));
}
inline int __any_sync(unsigned mask, int predicate, ALK_AT) { return __ballot_sync(mask, predicate, line) != 0; }
inline int __all_sync(unsigned mask, int predicate, ALK_AT) { return __ballot_sync(mask, predicate == 0, line) == 0; }
template <typename T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, ALK_AT) {
  return ::alk_emu::shuffle(mask, value, (::alk_emu::lane() & ~(width - 1)) + (source & (width - 1)), line);
}
template <typename T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, ALK_AT) {
  const int l = ::alk_emu::lane();
  return ::alk_emu::shuffle(mask, value,
                            (l & (width - 1)) + static_cast<int>(by) < width ? l + static_cast<int>(by) : l, line);
}
template <typename T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, ALK_AT) {
  const int l = ::alk_emu::lane();
  return ::alk_emu::shuffle(mask, value, (l & (width - 1)) >= static_cast<int>(by) ? l - static_cast<int>(by) : l,
                            line);
}
template <typename T>
inline T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32, ALK_AT) {
  const int l = ::alk_emu::lane(), other = l ^ with;
  return ::alk_emu::shuffle(mask, value, other / width == l / width ? other : l, line);
}

#undef ALK_AT

// Threads run one after the other: what one wrote, all see.
inline void __threadfence() { ::alk_emu::fence(); }
inline void __threadfence_block() {}

// ---- atomics, for the types that CUDA has them for ----

#define ALK_ATOMIC(name, expression, ...)                                        \
  template <typename T>                                                          \
  inline T name(T* address, std::common_type_t<T> value) {                       \
    static_assert(::alk_emu::one_of<T, __VA_ARGS__>, #name " has no such type"); \
    return ::alk_emu::exchange(address, [=](T old) -> T { return expression; }); \
  }
ALK_ATOMIC(atomicAdd, old + value, int, unsigned, unsigned long long, float, double)
ALK_ATOMIC(atomicSub, old - value, int, unsigned)
ALK_ATOMIC(atomicExch, (static_cast<void>(old), value), int, unsigned, unsigned long long, float)
ALK_ATOMIC(atomicMax, old < value ? value : old, int, unsigned, long long, unsigned long long)
ALK_ATOMIC(atomicMin, value < old ? value : old, int, unsigned, long long, unsigned long long)
ALK_ATOMIC(atomicOr, old | value, int, unsigned, unsigned long long)
ALK_ATOMIC(atomicAnd, old& value, int, unsigned, unsigned long long)
ALK_ATOMIC(atomicXor, old ^ value, int, unsigned, unsigned long long)
ALK_ATOMIC(atomicInc, old >= value ? 0u : old + 1, unsigned)
#undef ALK_ATOMIC
template <typename T>
inline T atomicCAS(T* address, std::common_type_t<T> compare, std::common_type_t<T> value) {
  static_assert(::alk_emu::one_of<T, int, unsigned, unsigned long long, unsigned short>, "atomicCAS has no such type");
  return ::alk_emu::exchange(address, [=](T old) { return old == compare ? value : old; });
}

// ---- memory ----

template <typename T>
inline T __ldg(const T* address) {
  return *address;
}
template <typename T>
inline T __ldcg(const T* address) {
  return *address;
}
template <typename T>
inline T __ldcs(const T* address) {
  return *address;
}
template <typename T>
inline void __stcs(T* address, T value) {
  *address = value;
}

// ---- bits ----

inline int __float_as_int(float x) { return ::alk_emu::bits_of<int>(x); }
inline unsigned __float_as_uint(float x) { return ::alk_emu::bits_of<unsigned>(x); }
inline float __int_as_float(int x) { return ::alk_emu::bits_of<float>(x); }
inline float __uint_as_float(unsigned x) { return ::alk_emu::bits_of<float>(x); }
inline long long __double_as_longlong(double x) { return ::alk_emu::bits_of<long long>(x); }
inline double __longlong_as_double(long long x) { return ::alk_emu::bits_of<double>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<unsigned long long>(a) * b) >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}

// ---- arithmetic ----

// As CUDA's: of a number and a NaN, the number.
template <typename A, typename B, typename = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
inline std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  const T x = static_cast<T>(a), y = static_cast<T>(b);
  if constexpr (std::is_floating_point_v<T>) return std::fmax(x, y);
  return x < y ? y : x;
}
template <typename A, typename B, typename = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
inline std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  const T x = static_cast<T>(a), y = static_cast<T>(b);
  if constexpr (std::is_floating_point_v<T>) return std::fmin(x, y);
  return y < x ? y : x;
}
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline float __double2float_rn(double a) { return static_cast<float>(a); }
inline float __double2float_ru(double a) {
  const float x = static_cast<float>(a);
  return x < a ? std::nextafter(x, std::numeric_limits<float>::infinity()) : x;
}
inline float __double2float_rd(double a) {
  const float x = static_cast<float>(a);
  return x > a ? std::nextafter(x, -std::numeric_limits<float>::infinity()) : x;
}
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float a) { return a > 0.0f ? (a < 1.0f ? a : 1.0f) : 0.0f; }
inline float rsqrtf(float a) { return 1.0f / std::sqrt(a); }
inline double rsqrt(double a) { return 1.0 / std::sqrt(a); }
// The C library declares functions of CUDA's names (__expf), which it does not export: these come by macro.
namespace alk_emu {
inline float fast_exp(float a) { return std::exp(a); }
inline float fast_log(float a) { return std::log(a); }
inline float fast_log2(float a) { return std::log2(a); }
}  // namespace alk_emu
#define __expf(x) (::alk_emu::fast_exp(x))
#define __logf(x) (::alk_emu::fast_log(x))
#define __log2f(x) (::alk_emu::fast_log2(x))

[[noreturn]] inline void __trap() { throw ::alk_emu::Error("CUDA emulation: __trap"); }

// ---- runtime: engine.cpp defines what cuda_runtime_api.h declares; kernels' names need a template on top ----

template <typename Kernel>
inline cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  return ::cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
template <typename Kernel>
inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel* kernel, int threads,
                                                                 size_t bytes) {
  return ::cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, reinterpret_cast<const void*>(kernel), threads, bytes);
}
