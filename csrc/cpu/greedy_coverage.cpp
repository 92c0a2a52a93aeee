// The two steps of greedy coverage that touch every row: similarities come out of the register tile and are used up on
// the spot, so that no matrix of them exists.
//
// coverage_gains: sum_i weights[i] max(0, s(i, j) - covered[i]) for a block of candidates j. The rows go through in
// tiles that stay in cache, packed once each and multiplied with all candidates; a thread takes a run of rows, and the
// runs' sums are added in order, so that a gain is the same bits on any number of threads and beside any other
// candidates. Traffic: the rows and 16 bytes of state a row once, the packed candidates once a tile from L2.
//
// In float32 the result is an upper bound: squared distances are lowered and similarities raised by what rounding may
// have done to them. raise_covered takes float64 products, and the same arithmetic as the gains.
#include <torch/csrc/stable/library.h>

#include "metric_rows.h"
#include "simd/row_sums.h"

namespace alkernels {
namespace {

constexpr int64_t kRunRows = 2048;  // rows of one sum, at least ...
constexpr int64_t kMaxRuns = 64;    // ... and not more runs than this

// What float32 adds to a similarity beyond the error of d2: the roundings of its own arithmetic.
constexpr double kRounding = 1e-6;

Similarity similarity_of(int64_t code, const char* op) {
  STD_TORCH_CHECK(code >= 0 && code <= 2, op, ": similarity must be 0, 1 or 2, got ", code);
  return static_cast<Similarity>(code);
}

Metric metric_for(Similarity kind) { return kind == Similarity::kCosine ? Metric::kCosine : Metric::kEuclidean; }

template <typename T>
SimilarityOf<T> exactly(Similarity kind, double bandwidth) {
  const double square = bandwidth * bandwidth;
  return {kind, static_cast<T>(kind == Similarity::kRbf ? 1 / square : square), T(1), T(0)};
}

// Not below the truth, given squared distances that are not above it.
SimilarityOf<float> at_least(Similarity kind, double bandwidth) {
  const double square = bandwidth * bandwidth;
  const float up = static_cast<float>(1 + kRounding);
  if (kind == Similarity::kRbf) return {kind, static_cast<float>((1 - kRounding) / square), up, 0.0f};
  return {kind, static_cast<float>(square * (1 + kRounding)), 1.0f, static_cast<float>(kRounding)};
}

template <typename T>
void gains(const Rows& pool, const double* weights, const double* covered, const Rows& candidates, const double* shift,
           Similarity kind, double bandwidth, double* out) {
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
    for (int64_t run; (run = next()) >= 0;) {
      const int64_t end = std::min(pool.count, (run + 1) * run_rows);
      for (int64_t begin = run * run_rows; begin < end; begin += by.tile_rows) {
        const int64_t count = std::min(by.tile_rows, end - begin);
        PackedRows<T> rows = tile.fill(begin, count);
        for (int64_t r = 0; r < count; ++r) {
          const auto at = static_cast<size_t>(r);
          weight[at] = static_cast<T>(weights[begin + r]);
          level[at] = static_cast<T>(covered[begin + r]);
          if (static_cast<double>(level[at]) > covered[begin + r])
            level[at] = std::nextafter(level[at], -std::numeric_limits<T>::infinity());
          if constexpr (kBound) norms[at] = lowered(rows.squared_norm[r]);
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
    out[j] = kBound ? sum * (1 + 2 * kRounding) : sum;
  }
}

Tensor coverage_gains_cpu(Tensor rows, Tensor weights, Tensor covered, Tensor candidates, std::optional<Tensor> shift,
                          int64_t similarity, double bandwidth, bool exact) {
  constexpr const char* kOp = "coverage_gains";
  const Similarity kind = similarity_of(similarity, kOp);
  const Rows pool = rows_of(rows, std::nullopt, Metric::kEuclidean, kOp, "rows");
  const Rows block = rows_of(candidates, std::nullopt, Metric::kEuclidean, kOp, "candidates");
  check_alike(pool, block, kOp, "candidates");
  check_vector(weights, ScalarType::Double, pool.count, kOp, "weights");
  check_vector(covered, ScalarType::Double, pool.count, kOp, "covered");
  Tensor out = torch::stable::new_empty(weights, {block.count});
  double* gain = out.mutable_data_ptr<double>();
  std::fill_n(gain, block.count, 0.0);
  if (pool.count == 0 || block.count == 0) return out;
  (exact ? gains<double> : gains<float>)(pool, weights.const_data_ptr<double>(), covered.const_data_ptr<double>(),
                                         block, shift_of(shift, pool, kOp), kind, bandwidth, gain);
  return out;
}

void raise_covered_cpu(Tensor rows, Tensor centers, std::optional<Tensor> shift, int64_t similarity, double bandwidth,
                       Tensor covered) {
  constexpr const char* kOp = "raise_covered";
  const Similarity kind = similarity_of(similarity, kOp);
  const Rows pool = rows_of(rows, std::nullopt, Metric::kEuclidean, kOp, "rows");
  const Rows block_rows = rows_of(centers, std::nullopt, Metric::kEuclidean, kOp, "centers");
  check_alike(pool, block_rows, kOp, "centers");
  check_vector(covered, ScalarType::Double, pool.count, kOp, "covered");
  if (pool.count == 0 || block_rows.count == 0) return;
  const Metric metric = metric_for(kind);
  const double* from = shift_of(shift, pool, kOp);
  double* level = covered.mutable_data_ptr<double>();
  const auto& simd = distance_tile<double>();
  const PackedBlock<double> block(block_rows, metric, from);
  const SimilarityOf<double> to = exactly<double>(kind, bandwidth);
  const int64_t tile_rows = blocking<double>(pool).tile_rows;
  const int64_t ld = (block_rows.count + simd.lanes - 1) / simd.lanes * simd.lanes;
  parallel_tasks((pool.count + tile_rows - 1) / tile_rows, [&](const auto& next) {
    PackedTile<double> tile(pool, metric, from, tile_rows);
    std::vector<double> values(static_cast<size_t>(simd.rows * ld));
    for (int64_t task; (task = next()) >= 0;) {
      const int64_t begin = task * tile_rows, count = std::min(tile_rows, pool.count - begin);
      const PackedRows<double>& packed = tile.fill(begin, count);
      for (int64_t first = 0; first < count; first += simd.rows) {
        const int64_t last = std::min(count, first + simd.rows);
        simd.matrix(packed, first, last, block.centers(), 0, block_rows.count, values.data() - first * ld, ld);
        row_sums<double>().similarities(to, (last - first) * ld, values.data());
        for (int64_t r = first; r < last; ++r) {
          const double* s = values.data() + (r - first) * ld;
          level[begin + r] = std::max(level[begin + r], *std::max_element(s, s + block_rows.count));
        }
      }
    }
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(alkernels, CPU, m) {
  m.impl("coverage_gains", TORCH_BOX(&coverage_gains_cpu));
  m.impl("raise_covered", TORCH_BOX(&raise_covered_cpu));
}

}  // namespace alkernels
