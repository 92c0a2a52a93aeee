// prediction_rows.h, compiled once per instruction set.
//
// A row is walked a block of classes at a time: its draws are widened to float64 into a buffer that stays in the
// caches, and whatever the score wants of them is taken there, so that memory is read once however often that is. Lanes
// are classes; where these are few, lanes are rows, and nothing is added across lanes. Sums of draws and of their
// entropies are sums of differences from the first draw: draws that agree leave exactly nothing.
#include "prediction_rows.h"

#include "register_tile.h"
#include "vector_math.h"

namespace alkernels {
namespace ALKERNELS_ISA {
namespace {

using V = Simd<double>::V;
constexpr int L = kLanes<double>;

constexpr int64_t kBlockBytes = 256 << 10;  // of the buffer: a share of L2
constexpr int64_t kBlockClasses = 512;      // shorter sums, less rounding
constexpr int64_t kFewClasses = 4 * L;      // below which lanes are rows

// How a row is cut into blocks.
struct Cut {
  bool lanes_are_rows;
  int64_t steps;  // vectors of a draw in a block
};

Cut cut(int64_t draws, int64_t classes) {
  const int64_t room = kBlockBytes / (draws * ALKERNELS_VECTOR_BYTES);
  if (classes < kFewClasses && classes <= room) return {true, classes};
  int64_t steps = (classes + L - 1) / L;
  if (steps > kBlockClasses / L) steps = kBlockClasses / L;
  if (steps > room) steps = room > 1 ? room : 1;
  return {false, steps};
}

// Parts of the memory that `space` counts, in vectors but for the votes.
struct Space {
  double* values;    // [draws][steps]: a block of probabilities
  double* log_mean;  // [steps]: of the block's classes
  double* sum;       // [draws]: of each draw's probabilities
  double* of_draw;   // [draws]: the largest of them, or the divergence from the mean
  double* winner;    // [draws]: the largest one's class
  double* votes;     // [classes][rows in lanes]: zeros between rows
};

int64_t space(int64_t draws, int64_t classes) {
  const int64_t steps = cut(draws, classes).steps;
  return ((draws + 1) * steps + 3 * draws + classes + 1) * L;
}

Space parts(double* memory, int64_t draws, int64_t steps) {
  Space p;
  p.values = memory;
  p.log_mean = p.values + draws * steps * L;
  p.sum = p.log_mean + steps * L;
  p.of_draw = p.sum + draws * L;
  p.winner = p.of_draw + draws * L;
  p.votes = p.winner + draws * L;
  return p;
}

inline V lane_numbers() {
  V v;
  for (int i = 0; i < L; ++i) v[i] = i;
  return v;
}

inline V load_wide(const double* p) { return load<double>(p); }
inline V load_wide(const float* p) {
  typename Vector<float, ALKERNELS_VECTOR_BYTES / 2>::Type v;
  __builtin_memcpy(&v, p, sizeof(v));
  return __builtin_convertvector(v, V);
}

// to[k][s] = classes s * L + lane of draw k, of `count` classes; `fill` in the lanes behind them.
template <typename S>
void pack_classes(const Predictions& in, int64_t row, int64_t first, int64_t count, int64_t steps, double fill,
                  double* to) {
  const S* from = static_cast<const S*>(in.data) + row * in.draws * in.classes + first;
  const S* end = static_cast<const S*>(in.data) + in.count * in.draws * in.classes;
  const int64_t full = count / L;
  for (int64_t k = 0; k < in.draws; ++k, to += steps * L) {
    const S* x = from + k * in.classes;
    for (int64_t i = 0; i < full * L; ++i) to[i] = static_cast<double>(x[i]);
    if (full == steps) continue;
    x += full * L;
    const int64_t left = count - full * L;
    V last = V{};
    if (end - x >= L) {
      last = load_wide(x);  // the next draw's classes as well
    } else {
      for (int64_t i = 0; i < left; ++i) last[i] = static_cast<double>(x[i]);
    }
    store<double>(to + full * L, lane_numbers() < V{} + static_cast<double>(left) ? last : V{} + fill);
  }
}

// to[k][c] = class c of draw k of rows row + lane; behind `end` the last row again.
template <typename S>
void pack_rows(const Predictions& in, int64_t row, int64_t end, double* to) {
  const int64_t width = in.draws * in.classes;
  for (int r = 0; r < L; ++r) {
    const S* x = static_cast<const S*>(in.data) + (row + r < end ? row + r : end - 1) * width;
    for (int64_t i = 0; i < width; ++i) to[i * L + r] = static_cast<double>(x[i]);
  }
}

// Logarithms become probabilities, in place. What is no logarithm of a probability becomes +inf or NaN.
void exponentials(double* values, int64_t vectors) {
  for (int64_t i = 0; i < vectors; ++i) {
    const V x = load<double>(values + i * L);
    store<double>(values + i * L, x <= V{} + 1.0 ? exp_of<double>(x) : x + __builtin_inf());
  }
}

inline double sum_of_lanes(V v) {
  return fold<double, ALKERNELS_VECTOR_BYTES>(v, [](auto a, auto b) { return a + b; });
}

// The largest of all lanes, and how far apart the two largest are, given each lane's two. Not inlined: GCC would keep
// what is folded in memory, from the first use on.
__attribute__((noinline)) double largest_lane(V v) {
  return fold<double, ALKERNELS_VECTOR_BYTES>(v, [](auto a, auto b) { return a > b ? a : b; });
}
__attribute__((noinline)) double gap_of_lanes(V first, V second) {
  const double most = largest_lane(first);
  const auto at_most = first == V{} + most;
  return sum_of_lanes(at_most ? V{} + 1.0 : V{}) > 1 ? 0 : most - largest_lane(at_most ? second : first);
}

// The same of a row, in its lanes.
template <bool kLanesAreRows>
inline V total(V v) {
  if constexpr (kLanesAreRows) return v;
  return V{} + sum_of_lanes(v);
}
template <bool kLanesAreRows>
inline V largest_of(V v) {
  if constexpr (kLanesAreRows) return v;
  return V{} + largest_lane(v);
}
template <bool kLanesAreRows>
inline V gap_of(V first, V second) {
  if constexpr (kLanesAreRows) return first - second;
  return V{} + gap_of_lanes(first, second);
}

// The class of the largest value, the lowest of equals.
template <bool kLanesAreRows>
V winner_of(V largest, V winner) {
  if constexpr (kLanesAreRows) return winner;
  int best = 0;
  for (int i = 1; i < L; ++i) {
    if (largest[i] > largest[best] || (largest[i] == largest[best] && winner[i] < winner[best])) best = i;
  }
  return V{} + winner[best];
}

inline V root(V x) {
  for (int i = 0; i < L; ++i) x[i] = x[i] > 0 ? __builtin_sqrt(x[i]) : 0;
  return x;
}

// The score of the row, or of the rows in the lanes, from `row` on.
template <Score kScore, bool kLanesAreRows>
V score_of(const Predictions& in, int64_t row, int64_t end, const Cut& cut, const Space& at, V& off, V& lowest) {
  const int64_t draws = in.draws;
  const V over = V{} + 1 / static_cast<double>(draws);
  const V each_lane = kLanesAreRows ? V{} : lane_numbers();
  V of_first{}, of_others{}, of_mean{}, deviations{}, top{}, second{};
  for (int64_t k = 0; k < draws; ++k) {
    store<double>(at.sum + k * L, V{});
    store<double>(at.of_draw + k * L, V{} - (wants_votes(kScore) ? 1.0 : 0.0));
    store<double>(at.winner + k * L, V{});
  }
  const int64_t width = cut.steps * (kLanesAreRows ? 1 : L);
  for (int64_t first = 0; first < in.classes; first += width) {
    const int64_t count = in.classes - first < width ? in.classes - first : width;
    const int64_t steps = kLanesAreRows ? count : (count + L - 1) / L;
    if constexpr (kLanesAreRows) {
      in.wide ? pack_rows<double>(in, row, end, at.values) : pack_rows<float>(in, row, end, at.values);
    } else {
      const double none = in.log_input ? -__builtin_inf() : 0.0;
      in.wide ? pack_classes<double>(in, row, first, count, steps, none, at.values)
              : pack_classes<float>(in, row, first, count, steps, none, at.values);
    }
    if (in.log_input) exponentials(at.values, draws * steps);

    V entropy_of_first{};
    for (int64_t k = 0; k < draws; ++k) {
      const double* values = at.values + k * steps * L;
      V sum = load<double>(at.sum + k * L), entropy{};
      V largest = load<double>(at.of_draw + k * L), winner = load<double>(at.winner + k * L);
      V number = each_lane + static_cast<double>(first);
      for (int64_t s = 0; s < steps; ++s) {
        const V p = load<double>(values + s * L);
        sum += p;
        lowest = p < lowest ? p : lowest;
        if constexpr (wants_entropies(kScore)) entropy -= p * log_of<double>(p);
        if constexpr (wants_votes(kScore)) {
          winner = p > largest ? number : winner;
          largest = p > largest ? p : largest;
          number += kLanesAreRows ? 1.0 : static_cast<double>(L);
        }
      }
      store<double>(at.sum + k * L, sum);
      if constexpr (wants_votes(kScore)) {
        store<double>(at.of_draw + k * L, largest);
        store<double>(at.winner + k * L, winner);
      }
      if constexpr (wants_entropies(kScore)) {
        if (k == 0) entropy_of_first = entropy;
        of_others += entropy - entropy_of_first;
      }
    }
    of_first += entropy_of_first;

    if constexpr (wants_mean(kScore)) {
      V entropy{};
      for (int64_t s = 0; s < steps; ++s) {
        const V p = load<double>(at.values + s * L);
        V shift{}, square{};
        for (int64_t k = 1; k < draws; ++k) {
          const V d = load<double>(at.values + (k * steps + s) * L) - p;
          shift += d;
          if constexpr (kScore == Score::kMeanStd) square += d * d;
        }
        const V mean = p + shift * over;
        if constexpr (wants_entropy_of_mean(kScore)) entropy -= mean * log_of<double>(mean);
        if constexpr (kScore == Score::kMargin) {
          const V less = mean < top ? mean : top;
          second = less > second ? less : second;
        }
        if constexpr (kScore == Score::kLeastConfident || kScore == Score::kMargin) {
          top = mean > top ? mean : top;
        }
        if constexpr (kScore == Score::kMeanStd) deviations += root((square - shift * shift * over) * over);
        if constexpr (kScore == Score::kMaxDisagreement) store<double>(at.log_mean + s * L, log_of<double>(mean));
      }
      of_mean += entropy - entropy_of_first;  // which is zero unless it is wanted
    }

    if constexpr (kScore == Score::kMaxDisagreement) {
      for (int64_t k = 0; k < draws; ++k) {
        V divergence{};
        for (int64_t s = 0; s < steps; ++s) {
          const V p = load<double>(at.values + (k * steps + s) * L);
          divergence += p * (log_of<double>(p) - load<double>(at.log_mean + s * L));
        }
        store<double>(at.of_draw + k * L, load<double>(at.of_draw + k * L) + divergence);
      }
    }
  }

  for (int64_t k = 0; k < draws; ++k) {
    V by = total<kLanesAreRows>(load<double>(at.sum + k * L)) - 1.0;
    by = by < V{} ? -by : by;
    by = by <= V{} + 1e300 ? by : V{} + __builtin_inf();
    off = by > off ? by : off;
  }

  if constexpr (kScore == Score::kLeastConfident) return 1.0 - largest_of<kLanesAreRows>(top);
  if constexpr (kScore == Score::kMargin) return 1.0 - gap_of<kLanesAreRows>(top, second);
  if constexpr (kScore == Score::kEntropy) return total<kLanesAreRows>(of_mean);
  if constexpr (kScore == Score::kMeanEntropy) return total<kLanesAreRows>(of_first + of_others * over);
  if constexpr (kScore == Score::kBald) return total<kLanesAreRows>(of_mean - of_others * over);
  if constexpr (kScore == Score::kMeanStd) {
    return total<kLanesAreRows>(deviations) / static_cast<double>(in.classes);
  }
  if constexpr (kScore == Score::kMaxDisagreement) {
    V most{};
    for (int64_t k = 0; k < draws; ++k) {
      const V divergence = total<kLanesAreRows>(load<double>(at.of_draw + k * L));
      most = divergence > most ? divergence : most;
    }
    return most;
  }
  if constexpr (wants_votes(kScore)) {
    constexpr int kLabels = kLanesAreRows ? L : 1;
    const auto votes = [&](int64_t k, int r) __attribute__((always_inline)) -> double& {
      return at.votes[static_cast<int64_t>(at.winner[k * L + r]) * kLabels + r];
    };
    for (int64_t k = 0; k < draws; ++k) {
      const V largest = load<double>(at.of_draw + k * L), winner = load<double>(at.winner + k * L);
      store<double>(at.winner + k * L, winner_of<kLanesAreRows>(largest, winner));
      for (int r = 0; r < kLabels; ++r) ++votes(k, r);
    }
    V entropy{}, most{};
    for (int64_t k = 0; k < draws; ++k) {
      V share{};
      for (int r = 0; r < kLabels; ++r) share[r] = votes(k, r);
      share = share / static_cast<double>(draws);
      entropy -= log_of<double>(share);
      most = share > most ? share : most;
    }
    for (int64_t k = 0; k < draws; ++k) {
      for (int r = 0; r < kLabels; ++r) votes(k, r) = 0;
    }
    return kScore == Score::kVoteEntropy ? entropy * over : 1.0 - most;
  }
}

template <Score kScore>
void scores_by(const Predictions& in, int64_t begin, int64_t end, double* memory, double* out, double* worst) {
  const Cut how = cut(in.draws, in.classes);
  const Space at = parts(memory, in.draws, how.steps);
  V off{}, lowest{};
  if (how.lanes_are_rows) {
    for (int64_t row = begin; row < end; row += L) {
      const V scores = score_of<kScore, true>(in, row, end, how, at, off, lowest);
      for (int64_t r = 0; r < L && row + r < end; ++r) out[row + r] = scores[r];
    }
  } else {
    for (int64_t row = begin; row < end; ++row) {
      out[row] = score_of<kScore, false>(in, row, end, how, at, off, lowest)[0];
    }
  }
  for (int i = 0; i < L; ++i) {
    if (off[i] > worst[0]) worst[0] = off[i];
    if (-lowest[i] > worst[1]) worst[1] = -lowest[i];
  }
}

void scores(const Predictions& in, Score score, int64_t begin, int64_t end, double* memory, double* out,
            double* worst) {
  constexpr decltype(&scores_by<Score::kEntropy>) kBy[] = {
      scores_by<Score::kLeastConfident>,  scores_by<Score::kMargin>,      scores_by<Score::kEntropy>,
      scores_by<Score::kMeanEntropy>,     scores_by<Score::kBald>,        scores_by<Score::kMeanStd>,
      scores_by<Score::kMaxDisagreement>, scores_by<Score::kVoteEntropy>, scores_by<Score::kVariationRatio>};
  kBy[static_cast<int64_t>(score)](in, begin, end, memory, out, worst);
}

}  // namespace

const PredictionRows predictions = {space, scores};

}  // namespace ALKERNELS_ISA
}  // namespace alkernels
