// The matrix product behind every op: a block of threads multiplies a tile of rows with a tile of columns and leaves
// the products in registers, where the op's epilogue uses them up.
//
// 256 threads as 16 x 16, kRows x kColumns products each, in strips so that neighbouring threads read neighbouring
// 16 bytes of shared memory. kDepth features at a time go through two stages of shared memory: the next ones are on
// their way from global memory while these are multiplied, with one barrier a step. Traffic: a tile of 128 x 128 floats
// takes 64 operations for each byte that it reads.
//
// A long sum of floats loses digits with its length. Every kRun features the products are added to totals in shared
// memory (64 kB for 128 x 128), so that neither sum is long.
#pragma once

#include "rows.cuh"

namespace alkernels::cuda {

constexpr int kRun = 64;

// The squared length of a row, and whether it has any element but zeros: squares may underflow.
struct Squares {
  double sum = 0;
  bool any = false;

  template <typename T>
  __device__ __forceinline__ void add(T x) {
    sum += static_cast<double>(x) * static_cast<double>(x);
    any |= x != 0;
  }
};

// How far n_i + n_j - 2 * product may be from the truth when computed in T, as a share of n_i + n_j: multiples of the
// unit rounding error, above what the worst data gave (all summands of one sign and size, where roundings add up along
// a run, by 0.25 units a summand). tests/test_error_bound.py holds it against float64.
template <typename T>
double error_share(const Rows& rows, Metric metric) {
  double multiples = 0;
  for (int f = 0; f < rows.factors; ++f) {
    const auto width = static_cast<double>(rows.factor[f].width * (metric == Metric::kSymmetricKl ? 2 : 1));
    const double run = sizeof(T) == 4 && width > kRun ? kRun : width;
    multiples += 6 + run / 4 + (width - run) / kRun / 4;
  }
  return multiples * static_cast<double>(std::numeric_limits<T>::epsilon()) / 2;
}

template <typename T, int kRowsEach, int kColumnsEach>
class ProductTile {
 public:
  static constexpr int kSide = 16;  // threads a side
  static constexpr int kRows = kSide * kRowsEach, kColumns = kSide * kColumnsEach;
  static constexpr int kDepth = sizeof(T) == 4 ? 8 : 16;
  static constexpr bool kTotals = sizeof(T) == 4;
  using Products = T[kRowsEach][kColumnsEach];

  static_assert(kDepth <= kMaxDepth && kRows * kDepth == 4 * kThreads && kColumns * kDepth <= 4 * kThreads,
                "a load a thread");

  // Bytes of dynamic shared memory for factors of these widths: stages, what is put by or totals, the second's totals.
  static int64_t shared_bytes(const int64_t* widths, int factors) {
    int64_t bytes = kStageBytes;
    if (factors == 2 || (kTotals && widths[0] > kRun)) bytes += kTotalBytes;
    if (factors == 2 && kTotals && widths[1] > kRun) bytes += kTotalBytes;
    return bytes;
  }

  // Lets a kernel have as much as any widths need. Always the same, since another host thread may be about to launch
  // it.
  template <typename Kernel>
  static void allow_shared(Kernel kernel, int factors) {
    const int64_t wide[] = {kRun + 1, kRun + 1};
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes(wide, factors))));
  }

  __device__ explicit ProductTile(unsigned char* shared)
      : rows_(reinterpret_cast<T (*)[kDepth][kRowStride]>(shared)),
        columns_(reinterpret_cast<T (*)[kDepth][kColumnStride]>(shared + kRowBytes)),
        totals_(reinterpret_cast<T*>(shared + kStageBytes)) {}

  // Row and column of the tile that product [r][c] of this thread is of; both grow with r and c.
  __device__ static int row(int r) { return r / kVector * (kSide * kVector) + ty() * kVector + r % kVector; }
  __device__ static int column(int c) { return c / kVector * (kSide * kVector) + tx() * kVector + c % kVector; }
  __device__ static int tx() { return static_cast<int>(threadIdx.x) % kSide; }
  __device__ static int ty() { return static_cast<int>(threadIdx.x) / kSide; }

  // The row of the tile whose features this thread loads; kLoaders neighbours share one.
  static constexpr int kLoaders = kDepth / 4;
  __device__ static int loaded_row() { return static_cast<int>(threadIdx.x) / kLoaders; }

  // out[r][c] = <row row0 + row(r), column column0 + column(c)> over `width` features, for factor `f`. Where kNorms,
  // `norm` takes in the row features that this thread loads. Begins and ends with all threads together.
  template <bool kNorms, typename Left, typename Right>
  __device__ __forceinline__ void multiply(const Left& left, int64_t row0, const Right& right, int64_t column0,
                                           int64_t width, int f, Products& out, Squares& norm) {
    const int thread = static_cast<int>(threadIdx.x), depth = static_cast<int>(width);
    const int depth_at = thread % kLoaders * 4;
    const bool loads_column = thread < kColumns * kLoaders;
    const int column_at = Right::kAcross ? thread % kColumns : thread / kLoaders;
    const int column_depth = Right::kAcross ? thread / kColumns * 4 : depth_at;
    alignas(16) T a[4];
    alignas(16) T b[4];
    const auto row = left.at(row0 + loaded_row());
    const auto column = right.at(column0 + column_at);
    const auto load = [&](int k) {
      row(k + depth_at, a);
      if (loads_column) column(k + column_depth, b);
    };
    const auto store = [&](int stage) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        rows_[stage][depth_at + i][loaded_row()] = a[i];
        if (kNorms) norm.add(a[i]);
      }
      if (loads_column) {
#pragma unroll
        for (int i = 0; i < 4; ++i) columns_[stage][column_depth + i][column_at] = b[i];
      }
    };
#pragma unroll
    for (int r = 0; r < kRowsEach; ++r) {
#pragma unroll
      for (int c = 0; c < kColumnsEach; ++c) out[r][c] = 0;
    }
    load(0);
    store(0);
    __syncthreads();
    int stage = 0;
    bool first = true;
    for (int k = 0; k < depth; k += kDepth) {
      const bool more = k + kDepth < depth;
      if (more) load(k + kDepth);
#pragma unroll 2  // more would not fit in registers
      for (int i = 0; i < kDepth; ++i) {
        alignas(16) T x[kRowsEach];
        alignas(16) T y[kColumnsEach];
        fragment<kRowsEach>(rows_[stage][i], ty(), x);
        fragment<kColumnsEach>(columns_[stage][i], tx(), y);
#pragma unroll
        for (int r = 0; r < kRowsEach; ++r) {
#pragma unroll
          for (int c = 0; c < kColumnsEach; ++c) out[r][c] = fma(x[r], y[c], out[r][c]);
        }
      }
      stage ^= 1;
      if (more) store(stage);  // nobody reads it: all threads passed the last barrier after their products
      __syncthreads();
      if (kTotals && depth > kRun && (!more || (k + kDepth) % kRun == 0)) {
        add_to_totals(f, first, !more, out);
        first = false;
      }
    }
  }

  // Puts the first factor's products by, and multiplies the second's with them. A thread finds its own only.
  __device__ __forceinline__ void put_by(const Products& out) {
#pragma unroll
    for (int i = 0; i < kRowsEach * kColumnsEach; ++i)
      totals_[i * kThreads + threadIdx.x] = out[i / kColumnsEach][i % kColumnsEach];
  }
  __device__ __forceinline__ void times_put_by(Products& out) const {
#pragma unroll
    for (int i = 0; i < kRowsEach * kColumnsEach; ++i)
      out[i / kColumnsEach][i % kColumnsEach] *= totals_[i * kThreads + threadIdx.x];
  }

 private:
  static constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  // Padding moves the rows of the next features to other banks.
  static constexpr int kRowStride = kRows + kVector, kColumnStride = kColumns + kVector;
  static constexpr int kRowBytes = 2 * kDepth * kRowStride * static_cast<int>(sizeof(T));
  static constexpr int kStageBytes = kRowBytes + 2 * kDepth * kColumnStride * static_cast<int>(sizeof(T));
  static constexpr int kTotalBytes = kRows * kColumns * static_cast<int>(sizeof(T));

  template <int kCount>
  __device__ static __forceinline__ void fragment(const T* from, int at, T (&out)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; i += kVector)
      *reinterpret_cast<typename Vector<T>::Type*>(out + i) =
          *reinterpret_cast<const typename Vector<T>::Type*>(from + i * kSide + at * kVector);
  }

  // The second factor's totals lie behind what the first put by.
  __device__ __forceinline__ void add_to_totals(int f, bool first, bool last, Products& out) {
    T* totals = totals_ + f * kRows * kColumns + threadIdx.x;
#pragma unroll
    for (int i = 0; i < kRowsEach * kColumnsEach; ++i) {
      T& product = out[i / kColumnsEach][i % kColumnsEach];
      if (!first) product += totals[i * kThreads];
      if (!last) {
        totals[i * kThreads] = product;
        product = 0;
      }
    }
  }

  T (*const rows_)[kDepth][kRowStride];
  T (*const columns_)[kDepth][kColumnStride];
  T* const totals_;
};

// The tile for rows of so many factors. Two leave a thread fewer products: what the first is put by takes shared
// memory.
template <typename T, int kRowsOfThread, int kColumnsOfThread>
struct TileOf {
  static constexpr int kRowsEach = kRowsOfThread, kColumnsEach = kColumnsOfThread;
  static constexpr int kMostFactors = sizeof(T) == 4 && kColumnsEach == 8 ? 1 : 2;
  using Type = ProductTile<T, kRowsEach, kColumnsEach>;
};

template <typename T, typename Call>
void for_tile(int factors, const Call& call) {
  if constexpr (sizeof(T) == 8) {
    call(TileOf<T, 4, 4>());
  } else if (factors == 2) {
    call(TileOf<T, 8, 4>());
  } else {
    call(TileOf<T, 8, 8>());
  }
}

}  // namespace alkernels::cuda
