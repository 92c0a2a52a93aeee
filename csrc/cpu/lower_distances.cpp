// lower_distances: d2[i] = min(d2[i], squared distance from row i to each centre of a block), one pass over the rows.
//
// The rows go through in tiles that stay in cache: a tile is widened, shifted and packed once, multiplied with all
// centres, and the register tile takes the minimum on the spot (simd/distance_tile.in.cpp). Traffic: the rows once,
// 16 bytes of state a row, the packed centres once a row of register tiles from L2. Nothing of size rows x centres
// exists.
//
// The product form n_i + n_j - 2<x, c> loses digits where a distance is small beside the norms; error[i] bounds what it
// lost. Rows whose bound would exceed kTolerance * level are refined: their few centres that may be the nearest are
// measured again in float64, and their error is 0. The caller chooses the level (alkernels/ops/running_distances.py).
#include "device.h"
#include "metric_rows.h"

namespace alkernels::cpu {
namespace {

constexpr int64_t kTilesATask = 8;  // neighbours, so that packing one can ask for the next

// Measures rows in float64 against the centres that may be their nearest: those whose lower bound is below every
// upper bound. The product form is computed once more for them, a register tile of rows at a time.
template <typename T>
class Refiner {
 public:
  Refiner(const Rows& pool, Metric metric, const PackedBlock<T>& block, double share)
      : metric_(metric),
        share_(share),
        block_(block),
        rows_(pool, metric, nullptr, distance_tile<T>().rows),
        exact_(pool, metric, nullptr, 1),
        matrix_(static_cast<size_t>(distance_tile<T>().rows * block.centers().count)) {}

  void add(const PackedRows<T>& tile, int64_t r, int64_t row, int64_t first_center, const State& state) {
    rows_.copy(tile, r, waiting_);
    row_[waiting_++] = row;
    if (waiting_ == distance_tile<T>().rows) flush(first_center, state);
  }

  void flush(int64_t first_center, const State& state) {
    const int64_t count = block_.centers().count;
    const PackedRows<T>& rows = rows_.rows();
    if (waiting_ > 0) distance_tile<T>().matrix(rows, 0, waiting_, block_.centers(), 0, count, matrix_.data(), count);
    for (int64_t r = 0; r < waiting_; ++r) {
      const PackedRows<double>& x = exact_.fill(row_[r], 1);
      const T* d = matrix_.data() + r * count;
      const auto bound = [&](int64_t j) {
        const double n_i = static_cast<double>(rows.squared_length[r]);
        const double n_j = static_cast<double>(block_.rows().squared_length[j]);
        if (!(n_i < kLargestNorm<T> && n_j < kLargestNorm<T>)) return std::numeric_limits<double>::infinity();
        return share_ * (n_i + n_j) + kTinySquare;
      };
      double ceiling = state.d2[row_[r]];
      for (int64_t j = 0; j < count; ++j) {
        const double upper = static_cast<double>(d[j]) + bound(j);
        if (upper < ceiling) ceiling = upper;
      }
      for (int64_t j = 0; j < count; ++j) {
        if (static_cast<double>(d[j]) - bound(j) > ceiling) continue;  // NaN: measured
        set(state, row_[r], exact_distance(metric_, x, 0, block_.exact(), j), 0, first_center + j);
      }
    }
    waiting_ = 0;
  }

 private:
  const Metric metric_;
  const double share_;
  const PackedBlock<T>& block_;
  PackedTile<T> rows_;
  PackedTile<double> exact_;
  std::vector<T> matrix_;
  int64_t row_[16] = {};
  int64_t waiting_ = 0;
};

template <typename T>
void lower(const Rows& pool, const Rows& block_rows, const double* shift, Metric metric, int64_t first_center,
           double level, const State& state) {
  const auto& simd = distance_tile<T>();
  const PackedBlock<T> block(block_rows, metric, shift);
  const PackedCenters<T>& centers = block.centers();

  const Blocking by = blocking<T>(pool);
  const int64_t tile_rows = by.tile_rows, group = by.group;
  const int64_t tiles = (pool.count + tile_rows - 1) / tile_rows;
  const int64_t task_rows = std::clamp<int64_t>(tiles / 32, 1, kTilesATask) * tile_rows;

  const double share = error_share<T>(pool, metric);
  const double largest_norm = static_cast<double>(block.largest_squared_length());
  const double allowed = std::min(kTolerance * level, static_cast<double>(std::numeric_limits<float>::max()));
  const bool track = state.nearest != nullptr, triangle = has_triangle(metric);

  parallel_tasks((pool.count + task_rows - 1) / task_rows, [&](const auto& next) {
    PackedTile<T> tile(pool, metric, shift, tile_rows);
    Refiner<T> refiner(pool, metric, block, share);
    std::vector<T> best(static_cast<size_t>(tile_rows));
    std::vector<int64_t> which(track ? static_cast<size_t>(tile_rows) : 0);
    const auto sweep = [&](int64_t begin, int64_t count) {
      const PackedRows<T>& rows = tile.fill(begin, count);
      std::fill_n(best.begin(), count, std::numeric_limits<T>::infinity());
      for (int64_t first = 0; first < centers.count; first += group) {
        simd.minimum(rows, 0, count, centers, first, std::min(first + group, centers.count), best.data(),
                     track ? which.data() : nullptr);
      }
      for (int64_t r = 0; r < count; ++r) {
        const double old = state.d2[begin + r];
        if (old <= 0) continue;  // picked, or at a centre already
        const double norm = static_cast<double>(rows.squared_length[r]);
        const double found =
            static_cast<double>(rows.squared_norm[r]) + static_cast<double>(best[static_cast<size_t>(r)]);
        if (!(norm < kLargestNorm<T> && largest_norm < kLargestNorm<T>)) {
          refiner.add(rows, r, begin + r, first_center, state);
          continue;
        }
        const double widest = share * (norm + largest_norm) + kTinySquare;
        if (found >= old + widest) continue;  // most rows, before any square root
        const double reach = triangle ? error_bound(share, norm, old, largest_norm) : widest;
        if (found >= old + reach) continue;
        const double error =
            !triangle || found >= old ? reach : error_bound(share, norm, std::max(found, 0.0) + reach, largest_norm);
        if (!(error <= allowed)) {
          refiner.add(rows, r, begin + r, first_center, state);
        } else {
          set(state, begin + r, std::max(found, 0.0), error, track ? first_center + which[static_cast<size_t>(r)] : 0);
        }
      }
    };
    for (int64_t task; (task = next()) >= 0;) {
      const int64_t end = std::min(pool.count, (task + 1) * task_rows);
      for (int64_t begin = task * task_rows; begin < end; begin += tile_rows) {
        sweep(begin, std::min(tile_rows, end - begin));
      }
    }
    refiner.flush(first_center, state);
  });
}

}  // namespace

void lower_distances(const Rows& rows, const Rows& centers, const double* shift, Metric metric, int64_t first_center,
                     double level, const State& state, const Device&) {
  if (rows.count == 0 || centers.count == 0) return;
  (rows.wide || centers.wide ? lower<double> : lower<float>)(rows, centers, shift, metric, first_center, level, state);
}

// Reads both once.
void paired_distances(const Rows& rows, const Rows& others, Metric metric, double* out, const Device&) {
  constexpr int64_t kRowsATask = 64;
  parallel_tasks((rows.count + kRowsATask - 1) / kRowsATask, [&](const auto& next) {
    PackedTile<double> x(rows, metric, nullptr, 1), y(others, metric, nullptr, 1);
    for (int64_t task; (task = next()) >= 0;) {
      for (int64_t i = task * kRowsATask; i < std::min(rows.count, (task + 1) * kRowsATask); ++i) {
        out[i] = exact_distance(metric, x.fill(i, 1), 0, y.fill(i, 1), 0);
      }
    }
  });
}

}  // namespace alkernels::cpu
