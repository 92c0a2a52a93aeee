// Where the CPU's steps run, which needs no words, and what they are.
#pragma once

#define ALK_DEVICE cpu

namespace alkernels::cpu {

struct Device {};

}  // namespace alkernels::cpu

#include "../common/steps.h"
