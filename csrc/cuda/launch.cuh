// Launches and shared memory, the only things in which kernels differ between nvcc and the CPU emulation of
// tests/emulation
// (-DALK_EMULATE, g++ -x c++).
#pragma once

#include <cuda_runtime.h>

#ifdef ALK_EMULATE
#define ALK_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                            \
  ::alk_emu::launch(#kernel, (const void*)(kernel), grid, block, shared_bytes, stream, false, \
                    [&] { (kernel)(__VA_ARGS__); })
// static: ALK_SHARED(float, tile, [16][17]); a scalar: ALK_SHARED(int, flag, );
#define ALK_SHARED(type, name, dims)    \
  static const char name##_alk_key = 0; \
  auto& name = *static_cast<::alk_emu::id_t<type dims>*>(::alk_emu::shared_var(&name##_alk_key, sizeof(type dims)))
#define ALK_DYNAMIC_SHARED(name) unsigned char* name = static_cast<unsigned char*>(::alk_emu::dyn_shared())
#else
#define ALK_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  (kernel)<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)
#define ALK_SHARED(type, name, dims) __shared__ type name dims
#define ALK_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif
