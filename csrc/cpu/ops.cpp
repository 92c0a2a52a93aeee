// The CPU's steps as torch's ops.
#include "device.h"

namespace alkernels::cpu {
namespace {

struct Place {
  template <typename... Tensors>
  explicit Place(const char*, const Tensors&...) {}  // torch calls these for tensors that are all on the CPU

  Device device;
};

}  // namespace
}  // namespace alkernels::cpu

#include "../common/ops.h"

STABLE_TORCH_LIBRARY_IMPL(alkernels, CPU, m) { alkernels::cpu::register_steps(m); }
