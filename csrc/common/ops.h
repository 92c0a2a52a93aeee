// What torch calls: the steps' arguments checked and their results allocated, once for every device. Each device's
// ops.cpp includes this behind its Place, where an op runs: Place(op, tensors...) raises unless all tensors are there,
// and has the `device` that steps get.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "check.h"
#include "steps.h"

namespace alkernels::ALK_DEVICE {
namespace {

void lower_distances_op(Tensor rows, std::optional<Tensor> rows2, Tensor centers, std::optional<Tensor> centers2,
                        std::optional<Tensor> shift, int64_t metric_code, int64_t first_center, double level, Tensor d2,
                        Tensor error, std::optional<Tensor> nearest) {
  constexpr const char* kOp = "lower_distances";
  const Place place(kOp, rows, rows2, centers, centers2, shift, d2, error, nearest);
  const Metric metric = metric_of(metric_code, kOp);
  const Rows pool = rows_of(rows, rows2, metric, kOp, "rows");
  const Rows block = rows_of(centers, centers2, metric, kOp, "centers");
  check_alike(pool, block, kOp, "centers");
  check_vector(d2, ScalarType::Double, pool.count, kOp, "d2");
  check_vector(error, ScalarType::Float, pool.count, kOp, "error");
  if (nearest) check_vector(*nearest, ScalarType::Long, pool.count, kOp, "nearest");
  lower_distances(pool, block, shift_of(shift, pool, kOp), metric, first_center, level,
                  {d2.mutable_data_ptr<double>(), error.mutable_data_ptr<float>(),
                   nearest ? nearest->mutable_data_ptr<int64_t>() : nullptr},
                  place.device);
}

Tensor paired_distances_op(Tensor rows, std::optional<Tensor> rows2, Tensor others, std::optional<Tensor> others2,
                           int64_t metric_code) {
  constexpr const char* kOp = "paired_distances";
  const Place place(kOp, rows, rows2, others, others2);
  const Metric metric = metric_of(metric_code, kOp);
  const Rows left = rows_of(rows, rows2, metric, kOp, "rows");
  const Rows right = rows_of(others, others2, metric, kOp, "others");
  check_alike(left, right, kOp, "others");
  STD_TORCH_CHECK(left.count == right.count, kOp, ": others must have as many rows as rows, got ", right.count, " and ",
                  left.count);
  Tensor out = torch::stable::new_empty(rows, {left.count}, ScalarType::Double);
  paired_distances(left, right, metric, out.mutable_data_ptr<double>(), place.device);
  return out;
}

std::tuple<Tensor, Tensor> top_candidates_op(Tensor d2, int64_t m) {
  constexpr const char* kOp = "top_candidates";
  const Place place(kOp, d2);
  const int64_t n = d2.numel();
  check_vector(d2, ScalarType::Double, n, kOp, "d2");
  STD_TORCH_CHECK(m >= 1 && m <= n, kOp, ": m must be between 1 and ", n, " (elements of d2), got ", m);
  Tensor values = torch::stable::new_empty(d2, {m});
  Tensor indices = torch::stable::new_empty(d2, {m}, ScalarType::Long);
  top_candidates(d2.const_data_ptr<double>(), n, m, values.mutable_data_ptr<double>(),
                 indices.mutable_data_ptr<int64_t>(), place.device);
  return {values, indices};
}

std::tuple<Tensor, Tensor> k_center_block_op(Tensor rows, std::optional<Tensor> rows2, std::optional<Tensor> shift,
                                             int64_t metric_code, Tensor values, Tensor indices, Tensor bound,
                                             Tensor level, int64_t limit) {
  constexpr const char* kOp = "k_center_block";
  const Place place(kOp, rows, rows2, shift, values, indices, bound, level);
  const Metric metric = metric_of(metric_code, kOp);
  const Rows candidates = rows_of(rows, rows2, metric, kOp, "rows");
  check_vector(values, ScalarType::Double, candidates.count, kOp, "values");
  check_vector(indices, ScalarType::Long, candidates.count, kOp, "indices");
  check_vector(bound, ScalarType::Double, 1, kOp, "bound");
  check_vector(level, ScalarType::Double, 1, kOp, "level");
  Tensor picks = torch::stable::new_empty(indices, {candidates.count});
  Tensor scores = torch::stable::new_empty(values, {candidates.count});
  k_center_block(candidates, shift_of(shift, candidates, kOp), metric, values.const_data_ptr<double>(),
                 indices.const_data_ptr<int64_t>(), bound.const_data_ptr<double>(), level.const_data_ptr<double>(),
                 limit, picks.mutable_data_ptr<int64_t>(), scores.mutable_data_ptr<double>(), place.device);
  return {picks, scores};
}

std::tuple<Tensor, Tensor> draw_by_weight_op(Tensor d2, Tensor uniforms) {
  constexpr const char* kOp = "draw_by_weight";
  const Place place(kOp, d2, uniforms);
  const int64_t n = d2.numel(), draws = uniforms.numel();
  check_vector(d2, ScalarType::Double, n, kOp, "d2");
  check_vector(uniforms, ScalarType::Double, draws, kOp, "uniforms");
  Tensor indices = torch::stable::new_empty(uniforms, {draws}, ScalarType::Long);
  Tensor total = torch::stable::new_empty(d2, {1});
  draw_by_weight(d2.const_data_ptr<double>(), n, uniforms.const_data_ptr<double>(), draws,
                 indices.mutable_data_ptr<int64_t>(), total.mutable_data_ptr<double>(), place.device);
  return {indices, total};
}

std::tuple<Tensor, Tensor> kmeans_plusplus_block_op(Tensor rows, std::optional<Tensor> rows2,
                                                    std::optional<Tensor> shift, int64_t metric_code, Tensor values,
                                                    Tensor indices, Tensor uniforms, Tensor level, int64_t limit) {
  constexpr const char* kOp = "kmeans_plusplus_block";
  const Place place(kOp, rows, rows2, shift, values, indices, uniforms, level);
  const Metric metric = metric_of(metric_code, kOp);
  const Rows proposals = rows_of(rows, rows2, metric, kOp, "rows");
  check_vector(values, ScalarType::Double, proposals.count, kOp, "values");
  check_vector(indices, ScalarType::Long, proposals.count, kOp, "indices");
  check_vector(uniforms, ScalarType::Double, proposals.count, kOp, "uniforms");
  check_vector(level, ScalarType::Double, 1, kOp, "level");
  Tensor picks = torch::stable::new_empty(indices, {proposals.count});
  Tensor scores = torch::stable::new_empty(values, {proposals.count});
  kmeans_plusplus_block(proposals, shift_of(shift, proposals, kOp), metric, values.const_data_ptr<double>(),
                        indices.const_data_ptr<int64_t>(), uniforms.const_data_ptr<double>(),
                        level.const_data_ptr<double>(), limit, picks.mutable_data_ptr<int64_t>(),
                        scores.mutable_data_ptr<double>(), place.device);
  return {picks, scores};
}

Tensor conditional_entropy_op(Tensor probs, Tensor weights, Tensor mass, bool wide) {
  constexpr const char* kOp = "conditional_entropy";
  const Place place(kOp, probs, weights, mass);
  STD_TORCH_CHECK(probs.dim() == 3, kOp, ": probs must be three-dimensional, got a ", probs.dim(), "-d tensor");
  const ScalarType type = probs.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, kOp,
                  ": probs must be float32 or float64, got ", torch::headeronly::toString(type));
  const Draws in{probs.const_data_ptr(), type == ScalarType::Double,
                 probs.size(0),          probs.size(1),
                 probs.size(2),          {probs.stride(0), probs.stride(1), probs.stride(2)}};
  STD_TORCH_CHECK(in.draws > 0 && in.classes > 0, kOp, ": probs must have at least one draw and one class, got ",
                  in.draws, " and ", in.classes);
  STD_TORCH_CHECK(weights.scalar_type() == ScalarType::Double, kOp, ": weights must be float64, got ",
                  torch::headeronly::toString(weights.scalar_type()));
  const Rows rows = rows_of(weights, std::nullopt, Metric::kEuclidean, kOp, "weights");
  STD_TORCH_CHECK(rows.factor[0].width == in.draws, kOp, ": weights must have a column for each draw, got ",
                  rows.factor[0].width, " and ", in.draws);
  check_vector(mass, ScalarType::Double, rows.count, kOp, "mass");
  Tensor out = torch::stable::new_empty(mass, {in.count});
  conditional_entropy(in, rows, mass.const_data_ptr<double>(), wide, out.mutable_data_ptr<double>(), place.device);
  return out;
}

std::tuple<Tensor, Tensor> prediction_scores_op(Tensor probs, int64_t score, bool log_input) {
  constexpr const char* kOp = "prediction_scores";
  const Place place(kOp, probs);
  STD_TORCH_CHECK(probs.dim() == 3 && probs.is_contiguous(), kOp,
                  ": probs must be three-dimensional and contiguous, got a ", probs.dim(), "-d tensor");
  const ScalarType type = probs.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, kOp,
                  ": probs must be float32 or float64, got ", torch::headeronly::toString(type));
  const Predictions in{probs.const_data_ptr(), type == ScalarType::Double, log_input, probs.size(0), probs.size(1),
                       probs.size(2)};
  STD_TORCH_CHECK(in.draws > 0 && in.classes > 0, kOp, ": probs must have at least one draw and one class, got ",
                  in.draws, " and ", in.classes);
  STD_TORCH_CHECK(score >= 0 && score < kScores, kOp, ": score must be between 0 and ", kScores - 1, ", got ", score);
  Tensor scores = torch::stable::new_empty(probs, {in.count}, ScalarType::Double);
  Tensor worst = torch::stable::new_empty(probs, {2}, ScalarType::Double);
  prediction_scores(in, static_cast<Score>(score), scores.mutable_data_ptr<double>(), worst.mutable_data_ptr<double>(),
                    place.device);
  return {scores, worst};
}

Similarity similarity_of(int64_t code, const char* op) {
  STD_TORCH_CHECK(code >= 0 && code <= 2, op, ": similarity must be 0, 1 or 2, got ", code);
  return static_cast<Similarity>(code);
}

Tensor coverage_gains_op(Tensor rows, Tensor weights, Tensor covered, Tensor candidates, std::optional<Tensor> shift,
                         int64_t similarity, double bandwidth, bool exact, bool refine) {
  constexpr const char* kOp = "coverage_gains";
  const Place place(kOp, rows, weights, covered, candidates, shift);
  const Similarity kind = similarity_of(similarity, kOp);
  const Rows pool = rows_of(rows, std::nullopt, Metric::kEuclidean, kOp, "rows");
  const Rows block = rows_of(candidates, std::nullopt, Metric::kEuclidean, kOp, "candidates");
  check_alike(pool, block, kOp, "candidates");
  check_vector(weights, ScalarType::Double, pool.count, kOp, "weights");
  check_vector(covered, ScalarType::Double, pool.count, kOp, "covered");
  Tensor out = torch::stable::new_empty(weights, {block.count});
  coverage_gains(pool, weights.const_data_ptr<double>(), covered.const_data_ptr<double>(), block,
                 shift_of(shift, pool, kOp), kind, bandwidth, exact, refine, out.mutable_data_ptr<double>(),
                 place.device);
  return out;
}

void raise_covered_op(Tensor rows, Tensor centers, std::optional<Tensor> shift, int64_t similarity, double bandwidth,
                      bool refine, Tensor covered) {
  constexpr const char* kOp = "raise_covered";
  const Place place(kOp, rows, centers, shift, covered);
  const Similarity kind = similarity_of(similarity, kOp);
  const Rows pool = rows_of(rows, std::nullopt, Metric::kEuclidean, kOp, "rows");
  const Rows block = rows_of(centers, std::nullopt, Metric::kEuclidean, kOp, "centers");
  check_alike(pool, block, kOp, "centers");
  check_vector(covered, ScalarType::Double, pool.count, kOp, "covered");
  raise_covered(pool, block, shift_of(shift, pool, kOp), kind, bandwidth, refine, covered.mutable_data_ptr<double>(),
                place.device);
}

Lists lists_of(Tensor& values, Tensor& indices, int64_t rows, const char* op) {
  check_lists(values, indices, rows, op);
  return {values.size(1), values.mutable_data_ptr<double>(), indices.mutable_data_ptr<int64_t>()};
}

void nearest_points_op(Tensor queries, Tensor points, std::optional<Tensor> shift, int64_t metric_code,
                       int64_t first_point, bool wide, Tensor values, Tensor indices) {
  constexpr const char* kOp = "nearest_points";
  const Place place(kOp, queries, points, shift, values, indices);
  const Metric metric = metric_of(metric_code, kOp);
  const Rows left = rows_of(queries, std::nullopt, metric, kOp, "queries");
  const Rows right = rows_of(points, std::nullopt, metric, kOp, "points");
  check_alike(left, right, kOp, "points");
  nearest_points(left, right, shift_of(shift, left, kOp), metric, first_point, wide,
                 lists_of(values, indices, left.count, kOp), place.device);
}

void divergences_op(Tensor p, Tensor q, bool log_input, Tensor out) {
  constexpr const char* kOp = "divergences";
  const Place place(kOp, p, q, out);
  const Rows left = rows_of(p, std::nullopt, Metric::kEuclidean, kOp, "p");
  const Rows right = rows_of(q, std::nullopt, Metric::kEuclidean, kOp, "q");
  check_alike(left, right, kOp, "q");
  STD_TORCH_CHECK(out.dim() == 2 && out.size(0) == left.count && out.size(1) == right.count && out.stride(1) == 1, kOp,
                  ": out must be [rows of p, rows of q] with rows in one piece");
  const ScalarType type = out.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, kOp,
                  ": out must be float32 or float64, got ", torch::headeronly::toString(type));
  divergences(left, right, log_input, type == ScalarType::Double, out.mutable_data_ptr(), out.stride(0), place.device);
}

void nearest_divergences_op(Tensor p, Tensor q, bool log_input, bool largest, int64_t first_row, Tensor values,
                            Tensor indices) {
  constexpr const char* kOp = "nearest_divergences";
  const Place place(kOp, p, q, values, indices);
  const Rows left = rows_of(p, std::nullopt, Metric::kEuclidean, kOp, "p");
  const Rows right = rows_of(q, std::nullopt, Metric::kEuclidean, kOp, "q");
  check_alike(left, right, kOp, "q");
  nearest_divergences(left, right, log_input, largest, first_row, lists_of(values, indices, left.count, kOp),
                      place.device);
}

template <typename Library>
void register_steps(Library& m) {
  m.impl("conditional_entropy", TORCH_BOX(&conditional_entropy_op));
  m.impl("prediction_scores", TORCH_BOX(&prediction_scores_op));
  m.impl("coverage_gains", TORCH_BOX(&coverage_gains_op));
  m.impl("raise_covered", TORCH_BOX(&raise_covered_op));
  m.impl("lower_distances", TORCH_BOX(&lower_distances_op));
  m.impl("paired_distances", TORCH_BOX(&paired_distances_op));
  m.impl("nearest_points", TORCH_BOX(&nearest_points_op));
  m.impl("divergences", TORCH_BOX(&divergences_op));
  m.impl("nearest_divergences", TORCH_BOX(&nearest_divergences_op));
  m.impl("top_candidates", TORCH_BOX(&top_candidates_op));
  m.impl("k_center_block", TORCH_BOX(&k_center_block_op));
  m.impl("draw_by_weight", TORCH_BOX(&draw_by_weight_op));
  m.impl("kmeans_plusplus_block", TORCH_BOX(&kmeans_plusplus_block_op));
}

}  // namespace
}  // namespace alkernels::ALK_DEVICE
