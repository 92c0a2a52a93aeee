// The CUDA steps as torch's ops: on the tensors' device and torch's current stream, with memory from torch's allocator.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <vector>

#include "../common/check.h"
#include "device.cuh"

namespace alkernels::cuda {
namespace {

// Blocks of torch's allocator. It hands one out again only to work that is queued behind ours.
class TorchMemory final : public Memory {
 public:
  explicit TorchMemory(const Tensor& like) : like_(like) {}

  void* bytes(int64_t count) override {
    try {
      blocks_.push_back(torch::stable::new_empty(like_, {std::max<int64_t>(count, 1)}, ScalarType::Byte));
    } catch (const std::exception&) {  // says no more than that a call failed
      check(cudaPeekAtLastError());    // of an earlier kernel, that is
      throw std::runtime_error("CUDA out of memory. Tried to allocate " + std::to_string(count) +
                               " bytes for the work of an op");
    }
    return blocks_.back().mutable_data_ptr();
  }

 private:
  const Tensor& like_;
  std::vector<Tensor> blocks_;
};

#ifdef ALK_EMULATE

class Place {
 public:
  template <typename... Tensors>
  explicit Place(const char*, const Tensor& first, const Tensors&...) : memory_(first), device{nullptr, 4, &memory_} {}

 private:
  TorchMemory memory_;

 public:
  const Device device;
};

#else

class Place {
 public:
  template <typename... Tensors>
  explicit Place(const char* op, const Tensor& first, const Tensors&... others)
      : guard_(first.get_device_index()), memory_(first), device(device_of(op, first, &memory_)) {
    (check_there(op, first, others), ...);
  }

 private:
  static Device device_of(const char* op, const Tensor& t, Memory* memory) {
    STD_TORCH_CHECK(t.is_cuda(), op, ": all tensors must be on one device, got the first on another than the GPU");
    const int32_t index = t.get_device_index();
    int multiprocessors = 0, major = 0, minor = 0;
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, index));
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index));
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index));
    STD_TORCH_CHECK(major >= 8, op, ": alkernels needs a GPU of compute capability 8.0 or newer, got ", major, ".",
                    minor, " on cuda:", index, "; move the tensors to the CPU");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &stream));
    return {static_cast<cudaStream_t>(stream), multiprocessors, memory};
  }

  static void check_there(const char* op, const Tensor& first, const Tensor& t) {
    STD_TORCH_CHECK(t.is_cuda() && t.get_device_index() == first.get_device_index(), op,
                    ": all tensors must be on one device, got cuda:", first.get_device_index(), " and ",
                    t.is_cuda() ? "cuda:" + std::to_string(t.get_device_index()) : std::string("the CPU"));
  }
  static void check_there(const char* op, const Tensor& first, const std::optional<Tensor>& t) {
    if (t) check_there(op, first, *t);
  }

  const torch::stable::accelerator::DeviceGuard guard_;
  TorchMemory memory_;

 public:
  Device device;
};

#endif

}  // namespace
}  // namespace alkernels::cuda

#include "../common/ops.h"

STABLE_TORCH_LIBRARY_IMPL(alkernels, CUDA, m) { alkernels::cuda::register_steps(m); }
