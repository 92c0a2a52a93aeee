// The two steps of greedy coverage that touch every row: similarities come out of the register tile and are used up on
// the spot, so that no matrix of them exists.
//
// coverage_gains: sum_i weights[i] max(0, s(i, j) - covered[i]) for a block of candidates j. The rows go through in
// tiles that stay in cache, packed once each and multiplied with all candidates; a thread takes a run of rows, and the
// runs' sums are added in order, so that a gain is the same bits on any number of threads and beside any other
// candidates. Traffic: the rows and 16 bytes of state a row once, the packed candidates once a tile from L2.
//
// In float32 the result is an upper bound: squared distances are lowered, similarities and weights raised by what
// rounding may have done to them. raise_covered takes float64 products, and the same arithmetic as the gains.
//
// Where even float64 products may lose a squared distance beside the bandwidth (`refine`: rows far apart, a narrow
// kernel), pairs that may be in range are measured from differences, a register tile's rows at a time.
#include "device.h"
#include "metric_rows.h"
#include "simd/row_sums.h"

namespace alkernels::cpu {
namespace {

constexpr int64_t kRunRows = 2048;  // rows of one sum, at least ...
constexpr int64_t kMaxRuns = 64;    // ... and not more runs than this

Metric metric_for(Similarity kind) { return kind == Similarity::kCosine ? Metric::kCosine : Metric::kEuclidean; }

// Similarities of a few rows of the pool to a block, with squared distances from differences where products lose them.
class RefinedSimilarities {
 public:
  RefinedSimilarities(const Rows& pool, const PackedBlock<double>& block, Similarity kind, double bandwidth)
      : block_(block),
        to_(exactly<double>(kind, bandwidth)),
        share_(error_share<double>(pool, Metric::kEuclidean)),
        square_(bandwidth * bandwidth),
        reach_(kind == Similarity::kRbf ? 750 * square_ : square_),
        row_(pool, Metric::kEuclidean, nullptr, 1) {
    const auto& simd = distance_tile<double>();
    ld = (block.centers().count + simd.lanes - 1) / simd.lanes * simd.lanes;
    values_.resize(static_cast<size_t>(simd.rows * ld));
  }

  // Rows [first, last) of a packed tile whose first row is `begin` of the pool; [last - first, ld].
  const double* of(const PackedRows<double>& rows, int64_t begin, int64_t first, int64_t last, bool refine) {
    const int64_t count = block_.centers().count;
    distance_tile<double>().matrix(rows, first, last, block_.centers(), 0, count, values_.data() - first * ld, ld);
    for (int64_t r = first; refine && r < last; ++r) {
      double* d2 = values_.data() + (r - first) * ld;
      bool filled = false;
      for (int64_t j = 0; j < count; ++j) {
        const double error = share_ * (rows.squared_norm[r] + block_.centers().squared_norm[j]);
        if (error <= kDoubt * square_ || d2[j] - error > reach_) continue;
        if (!filled) row_.fill(begin + r, 1);
        filled = true;
        d2[j] = exact_distance(Metric::kEuclidean, row_.rows(), 0, block_.exact(), j);
      }
    }
    row_sums<double>().similarities(to_, (last - first) * ld, values_.data());
    return values_.data();
  }

  int64_t ld = 0;

 private:
  static constexpr double kDoubt = 1e-10;

  const PackedBlock<double>& block_;
  const SimilarityOf<double> to_;
  const double share_, square_, reach_;
  PackedTile<double> row_;
  std::vector<double> values_;
};

template <typename T>
void gains(const Rows& pool, const double* weights, const double* covered, const Rows& candidates, const double* shift,
           Similarity kind, double bandwidth, bool refine, double* out) {
  constexpr bool kBound = std::is_same_v<T, float>;
  const auto& simd = distance_tile<T>();
  const Metric metric = metric_for(kind);
  const PackedBlock<T> block(candidates, metric, shift);
  const double share = kBound ? error_share<T>(pool, metric) : 0;
  SimilarityOf<T> similarity;
  if constexpr (kBound) {
    similarity = at_least(kind, bandwidth);
  } else {
    similarity = exactly<T>(kind, bandwidth);
  }

  // d2 = n_i + n_j - 2 <x, c> is off by at most share * (n_i + n_j): taken off the norms, it becomes a lower bound
  const auto lowered = [&](T norm) { return static_cast<T>(static_cast<double>(norm) * (1 - share) - kTinySquare); };
  PackedCenters<T> columns = block.centers();
  const int64_t padded = (columns.count + simd.panel - 1) / simd.panel * simd.panel;
  std::vector<T> column_norms(static_cast<size_t>(padded), T(0));
  std::copy_n(columns.squared_norm, columns.count, column_norms.begin());
  if constexpr (kBound) std::transform(column_norms.begin(), column_norms.end(), column_norms.begin(), lowered);
  columns.squared_norm = column_norms.data();

  const Blocking by = blocking<T>(pool);
  const int64_t run_rows = std::max(kRunRows, (pool.count + kMaxRuns - 1) / kMaxRuns);
  const int64_t runs = (pool.count + run_rows - 1) / run_rows;
  std::vector<double> sums(static_cast<size_t>(runs * padded), 0.0);
  parallel_tasks(runs, [&](const auto& next) {
    PackedTile<T> tile(pool, metric, shift, by.tile_rows);
    std::vector<T> weight(static_cast<size_t>(by.tile_rows)), level(weight), norms(weight);
    std::optional<RefinedSimilarities> refined;
    if constexpr (!kBound) {
      if (refine) refined.emplace(pool, block, kind, bandwidth);
    }
    for (int64_t run; (run = next()) >= 0;) {
      const int64_t end = std::min(pool.count, (run + 1) * run_rows);
      for (int64_t begin = run * run_rows; begin < end; begin += by.tile_rows) {
        const int64_t count = std::min(by.tile_rows, end - begin);
        PackedRows<T> rows = tile.fill(begin, count);
        for (int64_t r = 0; r < count; ++r) {
          const auto at = static_cast<size_t>(r);
          weight[at] = static_cast<T>(weights[begin + r]);
          if (static_cast<double>(weight[at]) < weights[begin + r])
            weight[at] = std::nextafter(weight[at], std::numeric_limits<T>::infinity());
          level[at] = static_cast<T>(covered[begin + r]);
          if (static_cast<double>(level[at]) > covered[begin + r])
            level[at] = std::nextafter(level[at], -std::numeric_limits<T>::infinity());
          if constexpr (kBound) norms[at] = lowered(rows.squared_norm[r]);
        }
        if constexpr (!kBound) {
          for (int64_t first = 0; refine && first < count; first += simd.rows) {
            const int64_t last = std::min(count, first + simd.rows);
            const double* s = refined->of(rows, begin, first, last, true);
            for (int64_t r = first; r < last; ++r, s += refined->ld) {
              const auto at = static_cast<size_t>(r);
              for (int64_t j = 0; j < columns.count; ++j)
                sums[static_cast<size_t>(run * padded + j)] += weight[at] * std::max(0.0, s[j] - level[at]);
            }
          }
          if (refine) continue;
        }
        if constexpr (kBound) rows.squared_norm = norms.data();
        for (int64_t first = 0; first < columns.count; first += by.group) {
          row_sums<T>().coverage(rows, 0, count, weight.data(), level.data(), similarity, columns, first,
                                 std::min(first + by.group, columns.count), sums.data() + run * padded);
        }
      }
    }
  });
  for (int64_t j = 0; j < columns.count; ++j) {
    double sum = 0;
    for (int64_t run = 0; run < runs; ++run) sum += sums[static_cast<size_t>(run * padded + j)];
    // what float32 drops of a term altogether is below its smallest normal number, weights being 2 at most
    out[j] = kBound ? sum * (1 + 2 * kRounding) + 1e-37 * static_cast<double>(pool.count) : sum;
  }
}

}  // namespace

void coverage_gains(const Rows& rows, const double* weights, const double* covered, const Rows& candidates,
                    const double* shift, Similarity kind, double bandwidth, bool exact, bool refine, double* out,
                    const Device&) {
  std::fill_n(out, candidates.count, 0.0);
  if (rows.count == 0 || candidates.count == 0) return;
  (exact ? gains<double> : gains<float>)(rows, weights, covered, candidates, shift, kind, bandwidth, refine, out);
}

void raise_covered(const Rows& pool, const Rows& centers, const double* shift, Similarity kind, double bandwidth,
                   bool refine, double* covered, const Device&) {
  if (pool.count == 0 || centers.count == 0) return;
  const Metric metric = metric_for(kind);
  const int64_t simd_rows = distance_tile<double>().rows, tile_rows = blocking<double>(pool).tile_rows;
  const PackedBlock<double> block(centers, metric, shift);
  parallel_tasks((pool.count + tile_rows - 1) / tile_rows, [&](const auto& next) {
    PackedTile<double> tile(pool, metric, shift, tile_rows);
    RefinedSimilarities similarities(pool, block, kind, bandwidth);
    for (int64_t task; (task = next()) >= 0;) {
      const int64_t begin = task * tile_rows, count = std::min(tile_rows, pool.count - begin);
      const PackedRows<double>& packed = tile.fill(begin, count);
      for (int64_t first = 0; first < count; first += simd_rows) {
        const int64_t last = std::min(count, first + simd_rows);
        const double* s = similarities.of(packed, begin, first, last, refine);
        for (int64_t r = first; r < last; ++r, s += similarities.ld)
          covered[begin + r] = std::max(covered[begin + r], *std::max_element(s, s + centers.count));
      }
    }
  });
}

}  // namespace alkernels::cpu
