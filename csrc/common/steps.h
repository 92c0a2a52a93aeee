// The steps, one function each, for the device whose files include this (ALK_DEVICE: cpu or cuda). Pointers are the
// device's; ops.h checks and allocates what they get.
#pragma once

#include "predictions.h"
#include "rows.h"
#include "similarity.h"

namespace alkernels::ALK_DEVICE {

// The state of lower_distances, one element a row.
struct State {
  double* d2;
  float* error;
  int64_t* nearest;  // may be null
};

// Takes in a distance known to `bound`. The loser of the minimum may be the smaller in truth, so the error covers both.
ALK_HOST_DEVICE inline void set(const State& state, int64_t row, double value, double bound, int64_t center) {
  const double old = state.d2[row], old_bound = static_cast<double>(state.error[row]);
  const double low = old < HUGE_VAL ? fmin(old - old_bound, value - bound) : value - bound;
  if (value < old) {
    state.d2[row] = value;
    if (state.nearest) state.nearest[row] = center;
  }
  state.error[row] = static_cast<float>(fmax(value < old ? bound : old_bound, fmin(value, old) - low));
}

void lower_distances(const Rows& rows, const Rows& centers, const double* shift, Metric metric, int64_t first_center,
                     double level, const State& state, const Device& device);
void paired_distances(const Rows& rows, const Rows& others, Metric metric, double* out, const Device& device);

void top_candidates(const double* d2, int64_t count, int64_t m, double* values, int64_t* indices, const Device& device);
void k_center_block(const Rows& rows, const double* shift, Metric metric, const double* values, const int64_t* indices,
                    const double* bound, const double* level, int64_t limit, int64_t* picks, double* scores,
                    const Device& device);

void draw_by_weight(const double* d2, int64_t count, const double* uniforms, int64_t draws, int64_t* indices,
                    double* total, const Device& device);
void kmeans_plusplus_block(const Rows& rows, const double* shift, Metric metric, const double* values,
                           const int64_t* indices, const double* uniforms, const double* level, int64_t limit,
                           int64_t* picks, double* scores, const Device& device);

// Probabilities [count, draws, classes] of float or double, strides in elements.
struct Draws {
  const void* data;
  bool wide;
  int64_t count, draws, classes;
  int64_t stride[3];
};

void conditional_entropy(const Draws& probs, const Rows& weights, const double* mass, bool wide, double* out,
                         const Device& device);

// scores [count], worst [2]: what the distributions' sums are off by at most, and the smallest probability below 0.
void prediction_scores(const Predictions& probs, Score score, double* scores, double* worst, const Device& device);

void coverage_gains(const Rows& rows, const double* weights, const double* covered, const Rows& candidates,
                    const double* shift, Similarity kind, double bandwidth, bool exact, bool refine, double* out,
                    const Device& device);
void raise_covered(const Rows& rows, const Rows& centers, const double* shift, Similarity kind, double bandwidth,
                   bool refine, double* covered, const Device& device);

// Running lists, [rows, k]: values in order with their indices, +inf and -1 where there are fewer.
struct Lists {
  int64_t k;
  double* values;
  int64_t* indices;
};

void nearest_points(const Rows& queries, const Rows& points, const double* shift, Metric metric, int64_t first_point,
                    bool wide, const Lists& lists, const Device& device);
void divergences(const Rows& p, const Rows& q, bool log_input, bool wide, void* out, int64_t ld, const Device& device);
void nearest_divergences(const Rows& p, const Rows& q, bool log_input, bool largest, int64_t first_row,
                         const Lists& lists, const Device& device);

}  // namespace alkernels::ALK_DEVICE
