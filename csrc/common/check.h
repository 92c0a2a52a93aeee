// Shape and dtype checks of the ops: the second fence, behind the Python layer's messages for people.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

#include "rows.h"

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

inline RowSource row_source(const Tensor& t, const char* op, const char* name) {
  check_matrix(t, op, name);
  Element element;
  switch (t.scalar_type()) {
    case ScalarType::Half:
      element = Element::kFloat16;
      break;
    case ScalarType::BFloat16:
      element = Element::kBFloat16;
      break;
    case ScalarType::Float:
      element = Element::kFloat32;
      break;
    case ScalarType::Double:
      element = Element::kFloat64;
      break;
    default:
      STD_TORCH_CHECK(false, op, ": ", name, " must be float16, bfloat16, float32 or float64, got ",
                      torch::headeronly::toString(t.scalar_type()));
  }
  STD_TORCH_CHECK(t.size(1) > 0, op, ": ", name, " must have at least one column");
  return {t.const_data_ptr(), element, t.size(0), t.size(1), t.stride(0), t.stride(1)};
}

inline Rows rows_of(const Tensor& first, const std::optional<Tensor>& second, Metric metric, const char* op,
                    const char* name) {
  Rows rows;
  rows.factor[0] = row_source(first, op, name);
  rows.count = first.size(0);
  STD_TORCH_CHECK((metric == Metric::kOuter) == second.has_value(), op, ": ", name,
                  " must be two tensors for the outer-product metric and one for the others");
  if (second) {
    rows.factors = 2;
    rows.factor[1] = row_source(*second, op, name);
    STD_TORCH_CHECK(second->size(0) == rows.count, op, ": the two factors of ", name, " must have as many rows, got ",
                    rows.count, " and ", second->size(0));
  }
  for (int f = 0; f < rows.factors; ++f) rows.wide |= rows.factor[f].element == Element::kFloat64;
  rows.wide |= metric == Metric::kSymmetricKl;  // logarithms are large beside the divergences that matter
  return rows;
}

inline void check_alike(const Rows& rows, const Rows& others, const char* op, const char* name) {
  for (int f = 0; f < rows.factors; ++f) {
    STD_TORCH_CHECK(rows.factor[f].width == others.factor[f].width, op, ": ", name, " must be as wide as rows, got ",
                    others.factor[f].width, " and ", rows.factor[f].width);
  }
}

inline Metric metric_of(int64_t value, const char* op) {
  STD_TORCH_CHECK(value >= 0 && value <= 3, op, ": metric must be 0, 1, 2 or 3, got ", value);
  return static_cast<Metric>(value);
}

inline const double* shift_of(const std::optional<Tensor>& shift, const Rows& rows, const char* op) {
  if (!shift) return nullptr;
  check_vector(*shift, ScalarType::Double, rows.factor[0].width, op, "shift");
  return shift->const_data_ptr<double>();
}

}  // namespace alkernels
