// Predictions and what they are scored by, for every device.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace alkernels {

// Of one row's K draws P_k over C classes, with their mean P. H is an entropy in nats, V(y) the draws whose largest
// class, the lowest of equals, is y.
enum class Score : int64_t {
  kLeastConfident = 0,   // 1 - max P
  kMargin = 1,           // 1 - (the largest of P - the second largest)
  kEntropy = 2,          // H(P)
  kMeanEntropy = 3,      // mean_k H(P_k)
  kBald = 4,             // H(P) - mean_k H(P_k)
  kMeanStd = 5,          // mean_c of the standard deviation of P_kc over k
  kMaxDisagreement = 6,  // max_k KL(P_k || P)
  kVoteEntropy = 7,      // H(V / K)
  kVariationRatio = 8,   // 1 - max V / K
};
constexpr int64_t kScores = 9;

ALK_HOST_DEVICE constexpr bool wants_votes(Score s) { return s == Score::kVoteEntropy || s == Score::kVariationRatio; }
ALK_HOST_DEVICE constexpr bool wants_entropies(Score s) { return s == Score::kMeanEntropy || s == Score::kBald; }
ALK_HOST_DEVICE constexpr bool wants_mean(Score s) { return s != Score::kMeanEntropy && !wants_votes(s); }
ALK_HOST_DEVICE constexpr bool wants_entropy_of_mean(Score s) { return s == Score::kEntropy || s == Score::kBald; }

// Probabilities [count, draws, classes] of float or double, or their natural logarithms, in one piece.
struct Predictions {
  const void* data;
  bool wide;
  bool log_input;
  int64_t count, draws, classes;
};

}  // namespace alkernels
