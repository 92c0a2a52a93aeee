// Shape and dtype checks of the ops: the second fence, behind the Python layer's messages for people.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

namespace alkernels {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_matrix(const Tensor& t, const char* op, const char* name) {
  STD_TORCH_CHECK(t.dim() == 2, op, ": ", name, " must be two-dimensional, got a ", t.dim(), "-d tensor");
}

inline void check_vector(const Tensor& t, ScalarType dtype, int64_t size, const char* op, const char* name) {
  STD_TORCH_CHECK(t.dim() == 1 && t.size(0) == size, op, ": ", name, " must be a vector of ", size, " elements, got ",
                  t.dim(), " dimensions and ", t.numel(), " elements");
  STD_TORCH_CHECK(t.scalar_type() == dtype && t.is_contiguous(), op, ": ", name, " must be contiguous and of type ",
                  torch::headeronly::toString(dtype), ", got ", torch::headeronly::toString(t.scalar_type()));
}

// The running k best of each row: values and indices, both [rows, k] and contiguous.
inline void check_lists(const Tensor& values, const Tensor& indices, int64_t rows, const char* op) {
  STD_TORCH_CHECK(values.dim() == 2 && values.size(0) == rows && values.scalar_type() == ScalarType::Double &&
                      values.is_contiguous(),
                  op, ": values must be contiguous float64 with ", rows, " rows");
  STD_TORCH_CHECK(indices.dim() == 2 && indices.size(0) == rows && indices.size(1) == values.size(1) &&
                      indices.scalar_type() == ScalarType::Long && indices.is_contiguous(),
                  op, ": indices must be contiguous int64 of the shape of values");
}

}  // namespace alkernels
