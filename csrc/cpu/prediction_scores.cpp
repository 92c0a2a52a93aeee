// prediction_scores: one number a row [draws, classes] of predictions, and whether they are distributions, in one pass.
//
// The threads share out the rows, a few pages' worth at a time; each works in its own buffer, which stays in its caches
// (simd/prediction_rows.in.cpp). Traffic: the predictions once, 8 bytes a row for the scores.
#include "device.h"
#include "metric_rows.h"
#include "simd/prediction_rows.h"

namespace alkernels::cpu {
namespace {

constexpr int64_t kElementsATask = 1 << 16;
constexpr int64_t kAtOnce = 8;  // rows may share a vector: a multiple of every instruction set's lanes

}  // namespace

void prediction_scores(const Predictions& probs, Score score, double* scores, double* worst, const Device&) {
  const PredictionRows& simd = prediction_rows();
  int64_t rows = std::max<int64_t>(1, kElementsATask / (probs.draws * probs.classes));
  if (rows > kAtOnce) rows -= rows % kAtOnce;
  std::mutex mutex;
  worst[0] = worst[1] = 0;
  parallel_tasks((probs.count + rows - 1) / rows, [&](const auto& next) {
    std::vector<double> space(static_cast<size_t>(simd.space(probs.draws, probs.classes)));
    double own[2] = {0, 0};
    for (int64_t task; (task = next()) >= 0;) {
      simd.scores(probs, score, task * rows, std::min(probs.count, (task + 1) * rows), space.data(), scores, own);
    }
    const std::lock_guard<std::mutex> lock(mutex);
    for (int i = 0; i < 2; ++i) worst[i] = std::max(worst[i], own[i]);
  });
}

}  // namespace alkernels::cpu
