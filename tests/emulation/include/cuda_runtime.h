// Stands before the toolkit's cuda_runtime.h where g++ compiles a .cu file with -x c++ -DALK_EMULATE.
#pragma once

#include "emulation.h"
