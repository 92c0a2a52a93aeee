// The emulation's engine. Every CUDA thread of a block is a fiber that gives way only at barriers and warp intrinsics,
// and blocks run one after the other, so that a run is deterministic and another order is a matter of choice:
//   ALK_EMU_ORDER=forward|reverse|random:SEED   the order of threads and blocks, read at each launch
// A kernel that lacks a barrier computes something wrong in one of them. Stricter than a GPU: a thread that has
// returned does not arrive at __syncthreads, all threads of a block wait at the same one, and so do the lanes of a
// warp.
//
// Never compiled with -fsanitize. ALK_EMU_ASAN=1 where the kernels are: then the engine tells the sanitizer of its
// stacks.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "emulation.h"

#ifndef ALK_EMU_ASAN
#define ALK_EMU_ASAN 0
#endif
#ifndef ALK_EMU_RACES
#define ALK_EMU_RACES 0
#endif
#if ALK_EMU_ASAN
#include <sanitizer/common_interface_defs.h>
#endif
#if ALK_EMU_RACES
#include "races.h"
#endif
#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace alk_emu {

Thread* current = nullptr;
dim3 grid_size, block_size;

namespace {

constexpr size_t kStaticShared = 48 * 1024, kMaxShared = 227 * 1024;
constexpr size_t kGuard = 4096;
// no power of two: stacks would share cache sets
constexpr size_t kStack = (ALK_EMU_ASAN ? 256 : 64) * 1024 + 4096;

enum class State : uint8_t { kReady, kAtBarrier, kAtWarp, kDone };

struct Fiber : Thread {
  char* stack = nullptr;
#ifdef __x86_64__
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  [[maybe_unused]] void* fake_stack = nullptr;
  State state = State::kDone;
  bool started = false, fenced = false;
  int line = 0;  // where it waits
  // the warp operation in progress
  WarpOp op = WarpOp::kSync;
  uint32_t mask = 0;
  int source = 0;
  uint64_t value = 0, result = 0;
};

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Memory = std::unique_ptr<void, Free>;

struct Shared {
  const void* key;
  Memory memory;
};

struct Block {
  unsigned threads = 0;  // the first so many of the pool
  std::vector<int> order;
  unsigned long long rank = 0;
  unsigned waiting = 0;
  unsigned barriers = 0, warp_syncs[32] = {};  // passed
  bool acquired = false;
  std::vector<Shared> variables;
  size_t static_bytes = 0;
  Memory dynamic;
};

struct Order {
  enum { kForward, kReverse, kRandom } kind = kForward;
  unsigned seed = 0;
};

// One launch at a time; `block` and what follows belong to it.
std::mutex launching;
thread_local bool inside = false;
Fiber scheduler;  // the launching thread's own context
Fiber* running = nullptr;
Block* block = nullptr;
void (*kernel_body)(void*) = nullptr;
void* kernel_context = nullptr;
const char* kernel_name = "";
std::string failure;
[[maybe_unused]] uint32_t launches = 0;
std::vector<bool> fenced_blocks;
[[maybe_unused]] const void* scheduler_stack = nullptr;
[[maybe_unused]] size_t scheduler_stack_size = 0;

// Both live as long as the process: launches may come while it ends.
std::vector<Fiber*>& pool = *new std::vector<Fiber*>;
std::map<const void*, size_t>& raised_limits = *new std::map<const void*, size_t>;

std::string message(const char* format, va_list arguments) {
  char text[512];
  std::vsnprintf(text, sizeof text, format, arguments);
  return std::string("CUDA emulation, kernel ") + kernel_name + ": " + text;
}

[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const std::string text = message(format, arguments);
  va_end(arguments);
  throw Error(text);
}

// ---- context switch ----

#ifdef __x86_64__
// Saves what the ABI lets a callee change, and continues with the other stack's.
extern "C" __attribute__((visibility("hidden"))) void alk_emu_switch(void** save, void* load);
__asm__(
    ".text\n"
    ".hidden alk_emu_switch\n"
    ".globl alk_emu_switch\n"
    ".type alk_emu_switch,@function\n"
    "alk_emu_switch:\n"
    "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
    "movq %rsp,(%rdi)\n"
    "movq %rsi,%rsp\n"
    "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n"
    "ret\n"
    ".size alk_emu_switch,.-alk_emu_switch\n");
#endif

void switch_to(Fiber* from, Fiber* to, [[maybe_unused]] bool last = false) {
  running = to;
  current = to;
#if ALK_EMU_ASAN
  const bool back = to == &scheduler;
  __sanitizer_start_switch_fiber(last ? nullptr : &from->fake_stack, back ? scheduler_stack : to->stack,
                                 back ? scheduler_stack_size : kStack);
#endif
#ifdef __x86_64__
  alk_emu_switch(&from->stack_pointer, to->stack_pointer);
#else
  swapcontext(&from->context, &to->context);
#endif
#if ALK_EMU_ASAN
  __sanitizer_finish_switch_fiber(from->fake_stack, nullptr, nullptr);
#endif
}

void fiber_main() {
  Fiber* me = running;
#if ALK_EMU_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
#endif
  try {
    kernel_body(kernel_context);
  } catch (const std::exception& error) {
    if (failure.empty()) failure = error.what();
  }
  me->state = State::kDone;
  switch_to(me, &scheduler, true);
  std::abort();
}

void prepare(Fiber* fiber) {
  if (fiber->stack == nullptr) {
    void* memory = mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, kGuard, PROT_NONE) != 0) fail("no memory for a thread's stack");
    fiber->stack = static_cast<char*>(memory) + kGuard;
  }
#ifdef __x86_64__
  auto* top = reinterpret_cast<void**>(fiber->stack + kStack - 64 - fiber->rank % 8 * 512);
  *--top = nullptr;  // fiber_main's return address: the ABI's alignment at its first instruction
  *--top = reinterpret_cast<void*>(fiber_main);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber->stack_pointer = top;
#else
  getcontext(&fiber->context);
  fiber->context.uc_stack.ss_sp = fiber->stack;
  fiber->context.uc_stack.ss_size = kStack;
  fiber->context.uc_link = nullptr;
  makecontext(&fiber->context, fiber_main, 0);
#endif
}

void wait(State state, int line) {
  Fiber* me = running;
  me->state = state;
  me->line = line;
  switch_to(me, &scheduler);
  if (!failure.empty()) throw Error("stopped");  // so that destructors run
}

// ---- order ----

Order order_asked() {
  const char* text = std::getenv("ALK_EMU_ORDER");
  const std::string asked = text ? text : "forward";
  if (asked == "forward" || asked.empty()) return {};
  if (asked == "reverse") return {Order::kReverse};
  if (asked.rfind("random:", 0) == 0) return {Order::kRandom, static_cast<unsigned>(std::atoi(asked.c_str() + 7))};
  throw Error("ALK_EMU_ORDER is forward, reverse or random:SEED, not " + asked);
}

void put_in_order(std::vector<int>& v, size_t n, const Order& order, unsigned salt) {
  v.resize(n);
  std::iota(v.begin(), v.end(), 0);
  if (order.kind == Order::kReverse) std::reverse(v.begin(), v.end());
  if (order.kind == Order::kRandom) std::shuffle(v.begin(), v.end(), std::mt19937(order.seed * 7919u + salt));
}

// ---- shared memory ----

Memory new_shared(size_t bytes) {
  // of exactly this size, on its own: the sanitizer's red zone begins right behind it
  void* memory = nullptr;
  if (posix_memalign(&memory, 128, bytes) != 0) fail("no memory for shared memory");
  std::memset(memory, 0xFF, bytes);  // what is read before it is written is a NaN
#if ALK_EMU_RACES
  forget(memory, bytes);
#endif
  return Memory(memory);
}

// ---- scheduler ----

// The lanes of one warp that wait with the same mask at the same place continue once all of them have come.
bool complete_group(unsigned warp, const Fiber& first) {
  const unsigned begin = warp * 32, end = std::min(begin + 32, block->threads);
  const uint32_t mask = first.mask;
  uint32_t live = 0;
  uint64_t ballot = 0;
  for (unsigned i = begin; i < end; ++i) {
    const Fiber& f = *pool[i];
    const uint32_t bit = 1u << (i - begin);
    if (!(mask & bit) || f.state == State::kDone) continue;  // CUDA does not wait for a lane that has exited
    if (f.state != State::kAtWarp || f.mask != mask || f.op != first.op || f.line != first.line) return false;
    live |= bit;
    if (f.value) ballot |= bit;
  }
  for (unsigned i = begin; i < end; ++i) {
    if (!(live >> (i - begin) & 1)) continue;
    Fiber& f = *pool[i];
    // a shuffle from a lane that takes no part is undefined: all ones, a NaN
    if (f.op == WarpOp::kBallot) {
      f.result = ballot;
    } else {
      f.result = live >> f.source & 1 ? pool[begin + static_cast<unsigned>(f.source)]->value : ~uint64_t{0};
    }
    f.state = State::kReady;
  }
  if (first.op == WarpOp::kSync) ++block->warp_syncs[warp];
  return true;
}

bool run_ready(const Order& order, unsigned pass) {
  const size_t n = block->order.size();
  // in a random order another thread is the first after each barrier
  const size_t start = order.kind == Order::kRandom ? (pass * 2654435761u >> 8) % n : 0;
  bool any = false;
  for (size_t i = 0; i < n && failure.empty(); ++i) {
    const size_t at = start + i < n ? start + i : start + i - n;
    Fiber* f = pool[static_cast<size_t>(block->order[at])];
    if (f->state != State::kReady) continue;
    any = f->started = true;
    switch_to(&scheduler, f);
  }
  return any;
}

// No thread can run: the exit of one may have completed a group.
bool unblock() {
  for (unsigned i = 0; i < block->threads; ++i) {
    const Fiber& f = *pool[i];
    if (f.state == State::kAtWarp && complete_group(i / 32, f)) return true;
  }
  return false;
}

void run_block(Block& here, unsigned long long rank, size_t shared_bytes, const Order& order) {
  block = &here;
  here.rank = rank;
  here.threads = block_size.x * block_size.y * block_size.z;
  put_in_order(here.order, here.threads, order, static_cast<unsigned>(rank));
  if (shared_bytes) here.dynamic = new_shared(shared_bytes);
  while (pool.size() < here.threads) pool.push_back(new Fiber);
  for (unsigned i = 0; i < here.threads; ++i) {
    Fiber* f = pool[i];
    f->rank = i;
    f->thread_index = make_uint3(i % block_size.x, i / block_size.x % block_size.y, i / block_size.x / block_size.y);
    f->block_index =
        make_uint3(static_cast<unsigned>(rank % grid_size.x), static_cast<unsigned>(rank / grid_size.x % grid_size.y),
                   static_cast<unsigned>(rank / grid_size.x / grid_size.y));
    f->state = State::kReady;
    f->started = f->fenced = false;
    prepare(f);
  }
  unsigned pass = 0;
  while (failure.empty() && (run_ready(order, pass++) || unblock())) {
  }
  if (failure.empty()) {
    unsigned at_barrier = 0, at_warp = 0, line = 0;
    for (unsigned i = 0; i < here.threads; ++i) {
      const Fiber& f = *pool[i];
      at_barrier += f.state == State::kAtBarrier;
      at_warp += f.state == State::kAtWarp;
      if (f.state != State::kDone) line = static_cast<unsigned>(f.line);
    }
    if (at_barrier + at_warp == 0) return;
    failure = std::string("CUDA emulation, kernel ") + kernel_name + ": deadlock in block " + std::to_string(rank) +
              ": " + std::to_string(at_barrier) + " threads wait at __syncthreads, " + std::to_string(at_warp) +
              " at a warp intrinsic, " + std::to_string(here.threads - at_barrier - at_warp) +
              " have returned; one waits at line " + std::to_string(line);
  }
  for (unsigned i = 0; i < here.threads; ++i) {
    if (pool[i]->started && pool[i]->state != State::kDone) switch_to(&scheduler, pool[i]);
  }
}

}  // namespace

void syncthreads(int line) {
  Fiber* me = running;
  if (block->waiting > 0) {
    for (unsigned i = 0; i < block->threads; ++i) {
      const Fiber& f = *pool[i];
      if (f.state != State::kAtBarrier) continue;
      if (f.line != line) {
        fail("threads %u and %u of a block wait at different __syncthreads, lines %d and %d", f.rank, me->rank, f.line,
             line);
      }
      break;
    }
  }
  if (++block->waiting < block->threads) return wait(State::kAtBarrier, line);
  block->waiting = 0;
  ++block->barriers;
  for (unsigned i = 0; i < block->threads; ++i) {
    if (pool[i]->state == State::kAtBarrier) pool[i]->state = State::kReady;
  }
  // The last to come does not run on ahead of the others: after a barrier, the order begins anew.
  wait(State::kReady, line);
}

uint64_t warp_op(WarpOp op, uint32_t mask, int source, uint64_t value, int line) {
  Fiber* me = running;
  if (!(mask >> (me->rank % 32) & 1)) {
    fail("lane %u calls a warp intrinsic at line %d with mask %08x, which leaves it out", me->rank % 32, line, mask);
  }
  me->op = op;
  me->mask = mask;
  me->source = source & 31;
  me->value = value;
  me->line = line;
  me->state = State::kAtWarp;
  if (!complete_group(me->rank / 32, *me)) wait(State::kAtWarp, line);
  return me->result;
}

void* shared_var(const void* key, size_t bytes) {
  for (const Shared& shared : block->variables) {
    if (shared.key == key) return shared.memory.get();
  }
  block->static_bytes += (bytes + 15) / 16 * 16;
  if (block->static_bytes > kStaticShared)
    fail("%zu bytes of static shared memory, 48 KiB are allowed", block->static_bytes);
  block->variables.push_back({key, new_shared(bytes)});
  return block->variables.back().memory.get();
}

void* dyn_shared() {
  if (!block->dynamic) fail("it uses dynamic shared memory, the launch gives it none");
  return block->dynamic.get();
}

#if ALK_EMU_RACES
bool place_of(const void* address, Place& place) {
  const auto* at = static_cast<const char*>(address);
  // another thread of the process may run the launching function's code, which is instrumented too
  if (!inside || running == nullptr || running == &scheduler || !failure.empty()) return false;
  if (at >= running->stack && at < running->stack + kStack) return false;
  place = {launches,        static_cast<uint32_t>(block->rank),    running->rank,
           block->barriers, block->warp_syncs[running->rank / 32], block->acquired};
  return true;
}
void acquire() { block->acquired = block->acquired || running->fenced; }
bool released(uint32_t rank) { return fenced_blocks[rank]; }
// The compiler takes it that its calls throw nothing: the thread goes on to where it waits or ends.
void report(const std::string& what) { failure = std::string("CUDA emulation, kernel ") + kernel_name + ": " + what; }
void fence() {
  running->fenced = true;
  fenced_blocks[block->rank] = true;
}
#endif

void run(const char* name, const void* kernel, dim3 grid, dim3 threads, size_t shared_bytes, void (*body)(void*),
         void* context) {
  if (inside) fail("launch inside a kernel");
  const std::lock_guard lock(launching);
  struct Inside {
    Inside() { inside = true; }
    ~Inside() {
      inside = false;
      running = nullptr;
      current = nullptr;
      block = nullptr;
      failure.clear();
    }
  } here;
  kernel_name = name;
  if (!threads.x || !threads.y || !threads.z || threads.z > 64 || size_t{threads.x} * threads.y * threads.z > 1024) {
    fail("invalid block %u x %u x %u", threads.x, threads.y, threads.z);
  }
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    fail("invalid grid %u x %u x %u", grid.x, grid.y, grid.z);
  }
  const auto raised = raised_limits.find(kernel);
  const size_t limit = raised == raised_limits.end() ? kStaticShared : raised->second;
  if (shared_bytes > limit) {
    fail("%zu bytes of dynamic shared memory, %zu are allowed (cudaFuncSetAttribute?)", shared_bytes, limit);
  }
  grid_size = grid;
  block_size = threads;
  kernel_body = body;
  kernel_context = context;
  const Order order = order_asked();
  const size_t blocks = size_t{grid.x} * grid.y * grid.z;
  ++launches;
  fenced_blocks.assign(blocks, false);
  std::vector<int> ranks;
  put_in_order(ranks, blocks, order, 12345u);
  for (const int rank : ranks) {
    Block one;
    run_block(one, static_cast<unsigned long long>(rank), shared_bytes, order);
    if (one.static_bytes + shared_bytes > kMaxShared && failure.empty()) {
      failure = std::string("CUDA emulation, kernel ") + name + ": static and dynamic shared memory exceed 227 KiB";
    }
    if (!failure.empty()) throw Error(failure);
  }
}

}  // namespace alk_emu

// ---- runtime: hidden in this library, beside a real one that torch may have loaded ----

extern "C" {

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || static_cast<size_t>(value) > alk_emu::kMaxShared) return cudaErrorInvalidValue;
  const std::lock_guard lock(alk_emu::launching);
  alk_emu::raised_limits[kernel] = static_cast<size_t>(value);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 4;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(alk_emu::kMaxShared);
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = 228 * 1024;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = static_cast<int>(alk_emu::kStaticShared);
      return cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = 2048;
      return cudaSuccess;
    case cudaDevAttrMaxThreadsPerBlock:
      *value = 1024;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    default:
      return cudaErrorInvalidValue;
  }
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int threads, size_t shared_bytes) {
  const size_t by_shared = shared_bytes ? 228 * 1024 / (shared_bytes + 1024) : 32;
  *blocks = static_cast<int>(std::min<size_t>({32, 2048 / static_cast<size_t>(threads), by_shared}));
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memmove(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
// A bad launch has thrown.
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "emulated CUDA error"; }

}  // extern "C"
