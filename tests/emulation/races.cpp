// Finds races: two threads of one launch access a byte, one of them writes, not both by atomics, and nothing orders
// them. Threads of a block are ordered by __syncthreads, lanes of a warp by __syncwarp too, blocks by __threadfence and
// an atomic.
//
// The compiler calls what is below before each access of a kernel compiled with -fsanitize=thread; these definitions
// stand in for the sanitizer's own runtime, which knows nothing of warps and takes half a millisecond to start a fiber.
#include "races.h"

#include <dlfcn.h>

#include <cstdio>
#include <iterator>
#include <unordered_map>
#include <vector>

#include "emulation.h"

namespace alk_emu {
namespace {

enum class Access : uint8_t { kRead, kWrite, kAtomic };
constexpr const char* kVerb[] = {"reads", "writes", "updates by an atomic"};

struct Visit {
  bool any = false, atomic = false;
  // of reads that nothing orders with this last one
  bool of_other_threads = false, of_other_warps = false, of_other_blocks = false;
  uint32_t block = 0, thread = 0, barriers = 0, warp_syncs = 0;
};

// What one byte has seen in a launch.
struct Cell {
  uint32_t launch = 0;
  Visit write, read;
};

constexpr uintptr_t kPage = 1024;
constexpr size_t kMaxPages = 40000;  // about 2 GB

std::unordered_map<uintptr_t, std::vector<Cell>>& pages = *new std::unordered_map<uintptr_t, std::vector<Cell>>;
// the pages met last, by their number's last bits
struct Recent {
  uintptr_t number = ~uintptr_t{0};
  Cell* cells = nullptr;
} recent[256];

Cell& cell_of(uintptr_t address) {
  const uintptr_t number = address / kPage;
  Recent& slot = recent[number % std::size(recent)];
  if (slot.number != number) {
    if (pages.size() > kMaxPages) {  // forgets, and may miss a race
      pages.clear();
      for (Recent& one : recent) one = Recent{};
    }
    std::vector<Cell>& page = pages[number];
    page.resize(kPage);
    slot = {number, page.data()};
  }
  return slot.cells[address % kPage];
}

bool ordered(const Visit& before, const Place& now) {
  if (before.block != now.block || before.of_other_blocks) return now.acquired && released(before.block);
  if (before.barriers < now.barriers) return true;
  if (before.thread == now.thread && !before.of_other_threads) return true;
  return before.thread / 32 == now.thread / 32 && !before.of_other_warps && before.warp_syncs < now.warp_syncs;
}

void add_read(Visit& read, const Place& now) {
  Visit next{true, false, false, false, false, now.block, now.thread, now.barriers, now.warp_syncs};
  if (read.any) {
    next.of_other_blocks = read.of_other_blocks || read.block != now.block;
    if (read.block == now.block && read.barriers == now.barriers) {
      const bool same_warp = read.thread / 32 == now.thread / 32;
      next.of_other_warps = read.of_other_warps || !same_warp;
      next.of_other_threads = next.of_other_warps || (same_warp && read.warp_syncs == now.warp_syncs &&
                                                      (read.of_other_threads || read.thread != now.thread));
    }
  }
  read = next;
}

void tell(const Visit& before, Access earlier, const Place& now, Access access, const void* address, const void* code) {
  Dl_info library{};
  dladdr(code, &library);
  char text[600];
  std::snprintf(
      text, sizeof text,
      "race: thread %u of block %u %s %p, which thread %u of block %u %s with nothing between that orders them "
      "(addr2line -Cfie %s %#zx)",
      now.thread, now.block, kVerb[static_cast<int>(access)], address, before.thread, before.block,
      kVerb[static_cast<int>(earlier)], library.dli_fname ? library.dli_fname : "?",
      static_cast<size_t>(static_cast<const char*>(code) - static_cast<const char*>(library.dli_fbase)) - 1);
  report(text);
}

void visit(const void* address, size_t bytes, Access access, const void* code) {
  Place now;
  if (!place_of(address, now)) return;
  for (size_t i = 0; i < bytes; ++i) {
    Cell& cell = cell_of(reinterpret_cast<uintptr_t>(address) + i);
    if (cell.launch != now.launch) {
      cell = Cell{};
      cell.launch = now.launch;
    }
    const Visit& read = cell.read;
    if (access == Access::kRead && !cell.write.any && read.any && read.thread == now.thread &&
        read.block == now.block && read.barriers == now.barriers && read.warp_syncs == now.warp_syncs) {
      continue;
    }
    const bool both_atomic = access == Access::kAtomic && cell.write.atomic;
    if (cell.write.any && !both_atomic && !ordered(cell.write, now)) {
      return tell(cell.write, cell.write.atomic ? Access::kAtomic : Access::kWrite, now, access, address, code);
    }
    if (access == Access::kRead) {
      add_read(cell.read, now);
      continue;
    }
    if (cell.read.any && !ordered(cell.read, now)) return tell(cell.read, Access::kRead, now, access, address, code);
    cell.read = Visit{};
    cell.write = Visit{
        true, access == Access::kAtomic, false, false, false, now.block, now.thread, now.barriers, now.warp_syncs};
  }
}

}  // namespace

void forget(const void* memory, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) cell_of(reinterpret_cast<uintptr_t>(memory) + i).launch = 0;
}

void atomic_access(const void* address, size_t bytes) {
  visit(address, bytes, Access::kAtomic, __builtin_return_address(0));
  acquire();
}

}  // namespace alk_emu

// ---- what the compiler calls ----

#define ALK_HOOKS(bytes)                                                                \
  void __tsan_read##bytes(void* p) {                                                    \
    ::alk_emu::visit(p, bytes, ::alk_emu::Access::kRead, __builtin_return_address(0));  \
  }                                                                                     \
  void __tsan_write##bytes(void* p) {                                                   \
    ::alk_emu::visit(p, bytes, ::alk_emu::Access::kWrite, __builtin_return_address(0)); \
  }                                                                                     \
  void __tsan_unaligned_read##bytes(void* p) {                                          \
    ::alk_emu::visit(p, bytes, ::alk_emu::Access::kRead, __builtin_return_address(0));  \
  }                                                                                     \
  void __tsan_unaligned_write##bytes(void* p) {                                         \
    ::alk_emu::visit(p, bytes, ::alk_emu::Access::kWrite, __builtin_return_address(0)); \
  }

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
ALK_HOOKS(1)
ALK_HOOKS(2)
ALK_HOOKS(4)
ALK_HOOKS(8)
ALK_HOOKS(16)
void __tsan_read_range(void* p, size_t bytes) {
  ::alk_emu::visit(p, bytes, ::alk_emu::Access::kRead, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t bytes) {
  ::alk_emu::visit(p, bytes, ::alk_emu::Access::kWrite, __builtin_return_address(0));
}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
