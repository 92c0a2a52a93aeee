// lower_distances: d2[i] = min(d2[i], squared distance from row i to each centre of a block), one pass over the rows.
//
// The rows go through in tiles that stay in cache: a tile is widened, shifted and packed once, multiplied with all
// centres, and the register tile takes the minimum on the spot (simd/distance_tile.in.cpp). Traffic: the rows once,
// 16 bytes of state a row, the packed centres once a row of register tiles from L2. Nothing of size rows x centres exists.
//
// The product form n_i + n_j - 2<x, c> loses digits where a distance is small beside the norms. That is harmless while the
// loss is small beside the *largest* distance, the only one that decides a pick; `guard` is a lower bound of what that
// will be after this call. A row whose error bound exceeds kTolerance * guard and that may change is done again from
// float64 differences. guard = 0 does that for every row that changes.
#include <torch/csrc/stable/library.h>

#include "metric_rows.h"

namespace alkernels {
namespace {

constexpr int64_t kTileBytes = 128 << 10;   // packed rows of one tile: a share of L2
constexpr int64_t kGroupBytes = 256 << 10;  // packed centres that one tile is swept with at a time: likewise
constexpr int64_t kMaxTileRows = 256;
constexpr int64_t kTilesATask = 8;  // neighbours, so that packing one can ask for the next

template <typename T>
void lower(const Rows& pool, const Rows& block_rows, const double* shift, Metric metric, int64_t first_center,
           double guard, double* d2, int64_t* nearest) {
  const auto& simd = distance_tile<T>();
  const PackedBlock<T> block(block_rows, metric, shift);
  const PackedCenters<T>& centers = block.centers();

  const int64_t row_bytes = pool.width() * static_cast<int64_t>(sizeof(T));
  const int64_t tile_rows =
      std::clamp(kTileBytes / row_bytes, simd.rows, kMaxTileRows) / simd.rows * simd.rows;
  const int64_t group = std::max<int64_t>(kGroupBytes / row_bytes / simd.panel, 1) * simd.panel;
  const int64_t tiles = (pool.count + tile_rows - 1) / tile_rows;
  const int64_t task_rows = std::clamp<int64_t>(tiles / 32, 1, kTilesATask) * tile_rows;

  const double share = error_share<T>(pool);
  const double largest_norm = static_cast<double>(block.largest_squared_norm());
  const double allowed = kTolerance * guard;

  parallel_tasks((pool.count + task_rows - 1) / task_rows, [&](const auto& next) {
    PackedTile<T> tile(pool, metric, shift, tile_rows);
    PackedTile<double> one(pool, metric, nullptr, 1);
    std::vector<T> best(static_cast<size_t>(tile_rows));
    std::vector<int64_t> which(nearest ? static_cast<size_t>(tile_rows) : 0);
    const auto sweep = [&](int64_t begin, int64_t count) {
      const PackedRows<T>& rows = tile.fill(begin, count);
      std::fill_n(best.begin(), count, std::numeric_limits<T>::infinity());
      if (nearest) std::fill_n(which.begin(), count, 0);
      for (int64_t first = 0; first < centers.count; first += group) {
        simd.minimum(rows, 0, count, centers, first, std::min(first + group, centers.count), best.data(),
                     nearest ? which.data() : nullptr);
      }
      for (int64_t r = 0; r < count; ++r) {
        double& old = d2[begin + r];
        const double norm = static_cast<double>(rows.squared_norm[r]);
        const double found = norm + static_cast<double>(best[static_cast<size_t>(r)]);
        const double error = error_bound(share, norm, old, largest_norm);
        if (found >= old + error && error < std::numeric_limits<T>::max()) continue;
        int64_t center = nearest ? which[static_cast<size_t>(r)] : 0;
        double value = std::max(found, 0.0);
        const bool safe = error <= allowed;
        if (!safe || nearest) {
          const PackedRows<double>& x = one.fill(begin + r, 1);
          if (safe) {
            value = exact_distance(metric, x, 0, block.exact(), center);
          } else {
            value = std::numeric_limits<double>::infinity();
            for (int64_t j = 0; j < centers.count; ++j) {
              const double d = exact_distance(metric, x, 0, block.exact(), j);
              if (d < value) {
                value = d;
                center = j;
              }
            }
          }
        }
        if (value < old) {
          old = value;
          if (nearest) nearest[begin + r] = first_center + center;
        }
      }
    };
    for (int64_t task; (task = next()) >= 0;) {
      const int64_t end = std::min(pool.count, (task + 1) * task_rows);
      for (int64_t begin = task * task_rows; begin < end; begin += tile_rows) {
        sweep(begin, std::min(tile_rows, end - begin));
      }
    }
  });
}

void lower_distances_cpu(Tensor rows, std::optional<Tensor> rows2, Tensor centers, std::optional<Tensor> centers2,
                         std::optional<Tensor> shift, int64_t metric_code, int64_t first_center, double guard,
                         Tensor d2, std::optional<Tensor> nearest) {
  constexpr const char* kOp = "lower_distances";
  const Metric metric = metric_of(metric_code, kOp);
  const Rows pool = rows_of(rows, rows2, metric, kOp, "rows");
  const Rows block = rows_of(centers, centers2, metric, kOp, "centers");
  for (int f = 0; f < pool.factors; ++f) {
    STD_TORCH_CHECK(pool.factor[f].width == block.factor[f].width, kOp, ": centers must be as wide as rows, got ",
                    block.factor[f].width, " and ", pool.factor[f].width);
  }
  check_vector(d2, ScalarType::Double, pool.count, kOp, "d2");
  if (nearest) check_vector(*nearest, ScalarType::Long, pool.count, kOp, "nearest");
  if (pool.count == 0 || block.count == 0) return;
  const auto run = pool.wide ? lower<double> : lower<float>;
  run(pool, block, shift_of(shift, pool, kOp), metric, first_center, guard, d2.mutable_data_ptr<double>(),
      nearest ? nearest->mutable_data_ptr<int64_t>() : nullptr);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(alkernels, CPU, m) { m.impl("lower_distances", TORCH_BOX(&lower_distances_cpu)); }

}  // namespace alkernels
