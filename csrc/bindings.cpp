// alkernels._C: build information. The ops are registered with torch's dispatcher when this module is loaded.
#include <pybind11/pybind11.h>

#include "cpu/simd/distance_tile.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build information of alkernels. The kernels are torch.ops.alkernels.*";
  m.attr("version") = ALKERNELS_VERSION;
  m.attr("torch_version") = ALKERNELS_TORCH_VERSION;
  m.attr("compiler") = ALKERNELS_COMPILER;
  m.def("cpu_capability", &alkernels::cpu_capability,
        "The instruction set the CPU kernels run on: 'portable', 'avx2' or 'avx512'.");
}
