// Marks what nvcc compiles for both sides.
#pragma once

#ifdef __CUDACC__
#define ALK_HOST_DEVICE __host__ __device__
#else
#define ALK_HOST_DEVICE
#endif
