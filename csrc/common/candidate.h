// The order of candidates, one text for every device: larger value first, ties to the lower index.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace alkernels {

struct Candidate {
  double value;
  int64_t index;
};

ALK_HOST_DEVICE inline bool before(const Candidate& a, const Candidate& b) {
  return a.value > b.value || (a.value == b.value && a.index < b.index);
}

}  // namespace alkernels
