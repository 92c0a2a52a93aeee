#include "distance_tile.h"

#include <cstdlib>
#include <cstring>

#include "prediction_rows.h"
#include "row_sums.h"

namespace alkernels {
namespace {

enum class Capability { kPortable, kAvx2, kAvx512 };

Capability detect() {
#ifdef ALKERNELS_X86
  Capability best = Capability::kPortable;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) best = Capability::kAvx2;
  if (best == Capability::kAvx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    best = Capability::kAvx512;
  }
  // The variable torch itself obeys, so that one setting moves both and tests can walk every path.
  if (const char* wanted = std::getenv("ATEN_CPU_CAPABILITY")) {
    if (std::strcmp(wanted, "default") == 0) return Capability::kPortable;
    if (std::strcmp(wanted, "avx2") == 0 && best == Capability::kAvx512) return Capability::kAvx2;
  }
  return best;
#else
  return Capability::kPortable;
#endif
}

Capability capability() {
  static const Capability found = detect();
  return found;
}

}  // namespace

const char* cpu_capability() {
  switch (capability()) {
    case Capability::kAvx512:
      return "avx512";
    case Capability::kAvx2:
      return "avx2";
    default:
      return "portable";
  }
}

#ifdef ALKERNELS_X86
#define ALKERNELS_CHOOSE(what) \
  capability() == Capability::kAvx512 ? avx512::what : capability() == Capability::kAvx2 ? avx2::what : portable::what
#else
#define ALKERNELS_CHOOSE(what) portable::what
#endif

template <>
const DistanceTile<float>& distance_tile<float>() {
  return ALKERNELS_CHOOSE(tile_f32);
}

template <>
const DistanceTile<double>& distance_tile<double>() {
  return ALKERNELS_CHOOSE(tile_f64);
}

template <>
const RowSums<float>& row_sums<float>() {
  return ALKERNELS_CHOOSE(sums_f32);
}

template <>
const RowSums<double>& row_sums<double>() {
  return ALKERNELS_CHOOSE(sums_f64);
}

const PredictionRows& prediction_rows() { return ALKERNELS_CHOOSE(predictions); }

}  // namespace alkernels
