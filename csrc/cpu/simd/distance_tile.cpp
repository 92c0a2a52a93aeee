#include "distance_tile.h"

#include <cstdlib>
#include <cstring>

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

template <>
const DistanceTile<float>& distance_tile<float>() {
#ifdef ALKERNELS_X86
  if (capability() == Capability::kAvx512) return avx512::tile_f32;
  if (capability() == Capability::kAvx2) return avx2::tile_f32;
#endif
  return portable::tile_f32;
}

template <>
const DistanceTile<double>& distance_tile<double>() {
#ifdef ALKERNELS_X86
  if (capability() == Capability::kAvx512) return avx512::tile_f64;
  if (capability() == Capability::kAvx2) return avx2::tile_f64;
#endif
  return portable::tile_f64;
}

}  // namespace alkernels
