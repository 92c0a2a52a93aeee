// prediction_scores: one number a row [draws, classes] of predictions, and whether they are distributions.
//
// A warp takes a row, or a few where classes are fewer than lanes: each has `width` lanes, a power of two, and lanes
// are classes. One walk goes draw by draw, for what is added over classes: the draws' sums, entropies and votes.
// Another goes class by class, each lane down its own column, for what is added over draws: the mean and all that is
// taken from it. Sums over draws are sums of differences from the first draw: draws that agree leave exactly nothing.
// Traffic: the predictions once, for the second walk (and the divergences' third look at a column) from the caches; 8
// bytes a row for the score; for votes and divergences a number a draw, in scratch that the caches hold.
#include "device.cuh"

namespace alkernels::cuda {
namespace {

constexpr int64_t kScratchBytes = 64 << 20;

template <typename T>
__device__ __forceinline__ T group_sum(T x, int width) {
  for (int step = width / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

__device__ __forceinline__ double group_max(double x, int width) {
  for (int step = width / 2; step > 0; step /= 2) x = fmax(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}

__device__ __forceinline__ double probability(const Predictions& in, int64_t at) {
  const double x =
      in.wide ? static_cast<const double*>(in.data)[at] : static_cast<double>(static_cast<const float*>(in.data)[at]);
  return in.log_input ? exp(x) : x;
}

__device__ __forceinline__ double log_or_zero(double x) { return x > 0 ? log(x) : 0; }

// The two largest values, 0 among them.
struct Top {
  double first = 0, second = 0;

  __device__ __forceinline__ void take(double x) {
    second = fmax(second, fmin(x, first));
    first = fmax(first, x);
  }
};

// Of non-negative numbers, whose bits are in their order.
__device__ inline void raise(double* most, double value) {
  if (value > 0)
    atomicMax(reinterpret_cast<unsigned long long*>(most),
              static_cast<unsigned long long>(__double_as_longlong(value)));
}

// At least four blocks a multiprocessor: told nothing, the compiler spills a little to fit a fifth.
template <Score kScore>
__global__ void __launch_bounds__(kThreads, 4)
    scores_kernel(const Predictions in, double over_draws, double over_classes, int width, double* __restrict__ scratch,
                  double* __restrict__ out, double* __restrict__ worst) {
  constexpr bool kEntropies = wants_entropies(kScore), kMean = wants_mean(kScore), kVotes = wants_votes(kScore);
  constexpr bool kEntropyOfMean = wants_entropy_of_mean(kScore);
  const int member = lane() & (width - 1), rows = kWarp / width, group = lane() / width;
  const int64_t warp = blockIdx.x * static_cast<int64_t>(kThreads / kWarp) + threadIdx.x / kWarp;
  const int64_t stride = gridDim.x * static_cast<int64_t>(kThreads / kWarp) * rows;
  double* of_draw = scratch + (warp * rows + group) * in.draws;
  double off = 0, lowest = 0;
  for (int64_t row0 = warp * rows; row0 < in.count; row0 += stride) {
    const int64_t row = row0 + group < in.count ? row0 + group : in.count - 1;
    const int64_t begin = row * in.draws * in.classes;

    double of_first = 0, of_others = 0;
    for (int64_t k = 0; k < in.draws; ++k) {
      double sum = 0, entropy = 0, largest = -1;
      int64_t winner = 0;
      for (int64_t c = member; c < in.classes; c += width) {
        const double p = probability(in, begin + k * in.classes + c);
        sum += p;
        lowest = fmin(lowest, p);
        if (kEntropies) entropy -= p * log_or_zero(p);
        if (kVotes && p > largest) {
          largest = p;
          winner = c;
        }
      }
      const double by = fabs(group_sum(sum, width) - 1);
      off = fmax(off, by <= 1e300 ? by : static_cast<double>(INFINITY));
      if (kEntropies) {
        entropy = group_sum(entropy, width);
        if (k == 0) of_first = entropy;
        of_others += entropy - of_first;
      }
      if (kVotes) {
        for (int step = width / 2; step > 0; step /= 2) {
          const double value = __shfl_xor_sync(kAllLanes, largest, step);
          const int64_t other = __shfl_xor_sync(kAllLanes, winner, step);
          if (value > largest || (value == largest && other < winner)) {
            largest = value;
            winner = other;
          }
        }
        if (member == 0) of_draw[k] = static_cast<double>(winner);
      }
    }

    double of_mean = 0, deviations = 0;
    Top top;
    for (int64_t first = 0; kMean && first < in.classes; first += width) {
      const bool inside = first + member < in.classes;
      const int64_t at = begin + first + member;
      const double p0 = inside ? probability(in, at) : 0;
      double shift = 0, square = 0;
      for (int64_t k = 1; inside && k < in.draws; ++k) {
        const double d = probability(in, at + k * in.classes) - p0;
        shift += d;
        if (kScore == Score::kMeanStd) square += d * d;
      }
      const double mean = p0 + shift * over_draws;
      if (kEntropyOfMean) of_mean -= mean * log_or_zero(mean);
      if (kScore == Score::kLeastConfident || kScore == Score::kMargin) top.take(mean);
      if (kScore == Score::kMeanStd)
        deviations += sqrt(fmax((square - shift * (shift * over_draws)) * over_draws, 0.0));
      if (kScore == Score::kMaxDisagreement) {
        const double log_mean = log_or_zero(mean);
        for (int64_t k = 0; k < in.draws; ++k) {
          const double p = inside ? probability(in, at + k * in.classes) : 0;
          const double divergence = group_sum(p > 0 ? p * (log(p) - log_mean) : 0.0, width);
          // the same lane writes and reads it
          if (member == (k & (width - 1))) of_draw[k] = first == 0 ? divergence : of_draw[k] + divergence;
        }
      }
    }

    double score = 0;
    if (kScore == Score::kLeastConfident) score = 1 - group_max(top.first, width);
    if (kScore == Score::kMargin) {
      for (int step = width / 2; step > 0; step /= 2) {
        const Top other{__shfl_xor_sync(kAllLanes, top.first, step), __shfl_xor_sync(kAllLanes, top.second, step)};
        top.take(other.first);
        top.take(other.second);
      }
      score = 1 - (top.first - top.second);
    }
    if (kScore == Score::kEntropy) score = group_sum(of_mean, width);
    if (kScore == Score::kMeanEntropy) score = of_first + of_others * over_draws;
    if (kScore == Score::kBald) score = (group_sum(of_mean, width) - of_first) - of_others * over_draws;
    if (kScore == Score::kMeanStd) score = group_sum(deviations, width) * over_classes;
    if (kScore == Score::kMaxDisagreement) {
      for (int64_t k = member; k < in.draws; k += width) score = fmax(score, of_draw[k]);
      score = group_max(score, width);
    }
    if (kVotes) {
      double entropy = 0, most = 0;
      __syncwarp();
      const double draws = static_cast<double>(in.draws), log_draws = log(draws);
      for (int64_t k = member; k < in.draws; k += width) {
        int votes = 0;
        for (int64_t other = 0; other < in.draws; ++other) votes += of_draw[other] == of_draw[k];
        entropy += log_draws - log(static_cast<double>(votes));
        most = fmax(most, static_cast<double>(votes));
      }
      __syncwarp();  // the next row's winners come in their place
      if (kScore == Score::kVoteEntropy) score = group_sum(entropy, width) * over_draws;
      if (kScore == Score::kVariationRatio) score = (draws - group_max(most, width)) * over_draws;
    }
    if (member == 0 && row0 + group < in.count) out[row] = score;
  }
  off = group_max(off, kWarp);
  lowest = group_max(-lowest, kWarp);
  if (lane() == 0) {
    raise(worst, off);
    raise(worst + 1, lowest);
  }
}

}  // namespace

void prediction_scores(const Predictions& probs, Score score, double* scores, double* worst, const Device& device) {
  constexpr decltype(&scores_kernel<Score::kEntropy>) kBy[] = {scores_kernel<Score::kLeastConfident>,
                                                               scores_kernel<Score::kMargin>,
                                                               scores_kernel<Score::kEntropy>,
                                                               scores_kernel<Score::kMeanEntropy>,
                                                               scores_kernel<Score::kBald>,
                                                               scores_kernel<Score::kMeanStd>,
                                                               scores_kernel<Score::kMaxDisagreement>,
                                                               scores_kernel<Score::kVoteEntropy>,
                                                               scores_kernel<Score::kVariationRatio>};
  check(cudaMemsetAsync(worst, 0, 2 * sizeof(double), device.stream));
  if (probs.count == 0) return;
  int width = 1;
  while (width < kWarp && width < probs.classes) width *= 2;
  const int64_t rows = kThreads / width;  // of a block
  int64_t blocks = std::min((probs.count + rows - 1) / rows, static_cast<int64_t>(8 * device.multiprocessors));
  double* scratch = nullptr;
  if (wants_votes(score) || score == Score::kMaxDisagreement) {
    const int64_t of_block = rows * probs.draws;
    blocks = std::min(blocks, std::max<int64_t>(1, kScratchBytes / 8 / of_block));
    scratch = device.scratch<double>(blocks * of_block);
  }
  ALK_LAUNCH(kBy[static_cast<int64_t>(score)], static_cast<unsigned>(blocks), kThreads, 0, device.stream, probs,
             1 / static_cast<double>(probs.draws), 1 / static_cast<double>(probs.classes), width, scratch, scores,
             worst);
  check(cudaGetLastError());
}

}  // namespace alkernels::cuda
