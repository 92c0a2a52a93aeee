// Between the engine and its race detector.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace alk_emu {

struct Place {
  uint32_t launch = 0, block = 0, thread = 0;
  uint32_t barriers = 0, warp_syncs = 0;  // how many its block and its warp have passed
  bool acquired = false;                  // its block has met others by a fence and then an atomic
};

// Where the CUDA thread that runs now is; false outside kernels and for its own stack.
bool place_of(const void* address, Place& place);
// An atomic of the thread that runs now: behind a fence, what other blocks wrote before theirs is in order.
void acquire();
// Whether a thread of that block has passed a __threadfence.
bool released(uint32_t block);
void report(const std::string& what);
// Shared memory of a new block, at an address where an older one's may have been.
void forget(const void* memory, size_t bytes);

}  // namespace alk_emu
