// Rows on the device: reading any dtype and stride, packing for a metric, and exact distances of single pairs.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../common/rows.h"
#include "device.cuh"

namespace alkernels::cuda {

// What one load of 16 bytes brings.
template <typename T>
struct Vector;
template <>
struct Vector<float> {
  using Type = float4;
};
template <>
struct Vector<double> {
  using Type = double2;
};

ALK_HOST_DEVICE inline int64_t bytes_of(Element element) {
  return element == Element::kFloat64 ? 8 : element == Element::kFloat32 ? 4 : 2;
}

template <typename T>
__device__ __forceinline__ T read(const RowSource& source, int64_t at) {
  switch (source.element) {
    case Element::kFloat16:
      return static_cast<T>(__half2float(static_cast<const __half*>(source.data)[at]));
    case Element::kBFloat16:
      return static_cast<T>(__bfloat162float(static_cast<const __nv_bfloat16*>(source.data)[at]));
    case Element::kFloat32:
      return static_cast<T>(static_cast<const float*>(source.data)[at]);
    default:
      return static_cast<T>(static_cast<const double*>(source.data)[at]);
  }
}

template <typename T>
__device__ __forceinline__ T read(const RowSource& source, int64_t row, int64_t column) {
  return read<T>(source, row * source.row_stride + column * source.column_stride);
}

// Four features of a row at a time, widened in registers less those of a common point, zeros past the last: what a tile
// multiplies. Its at(row) is the row's own loader, empty past the last row. The point has kMaxDepth more zeros than
// columns.
template <typename T>
struct RowLoader {
  static constexpr bool kAcross = false;  // whether neighbours in memory are one feature of several rows

  RowSource source;
  const T* shift = nullptr;
  bool vector = false;  // four neighbours are one aligned load

  struct Row {
    const RowLoader& rows;
    const char* data;  // null: empty

    __device__ __forceinline__ void operator()(int column, T (&out)[4]) const {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[i] = 0;
      if (data == nullptr) return;
      RowSource row = rows.source;
      row.data = data;
      if (rows.vector && column + 4 <= row.width) {
        four(row, column, out);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (column + i < row.width) out[i] = read<T>(row, (column + i) * row.column_stride);
        }
      }
      if (rows.shift) {
#pragma unroll
        for (int i = 0; i < 4; ++i) out[i] -= rows.shift[column + i];
      }
    }
  };

  __device__ __forceinline__ Row at(int64_t row) const {
    const char* data = static_cast<const char*>(source.data) + row * source.row_stride * bytes_of(source.element);
    return {*this, row < source.rows ? data : nullptr};
  }

 private:
  __device__ static __forceinline__ void four(const RowSource& row, int at, T (&out)[4]) {
    switch (row.element) {
      case Element::kFloat16: {
        const uint2 bits = *reinterpret_cast<const uint2*>(static_cast<const __half*>(row.data) + at);
        const auto half = [](unsigned x) {
          return static_cast<T>(__half2float(__ushort_as_half(static_cast<unsigned short>(x))));
        };
        out[0] = half(bits.x), out[1] = half(bits.x >> 16);
        out[2] = half(bits.y), out[3] = half(bits.y >> 16);
        break;
      }
      case Element::kBFloat16: {  // the upper half of a float
        const uint2 bits = *reinterpret_cast<const uint2*>(static_cast<const __nv_bfloat16*>(row.data) + at);
        out[0] = static_cast<T>(__uint_as_float(bits.x << 16));
        out[1] = static_cast<T>(__uint_as_float(bits.x & 0xffff0000u));
        out[2] = static_cast<T>(__uint_as_float(bits.y << 16));
        out[3] = static_cast<T>(__uint_as_float(bits.y & 0xffff0000u));
        break;
      }
      case Element::kFloat32: {
        const float4 v = *reinterpret_cast<const float4*>(static_cast<const float*>(row.data) + at);
        out[0] = static_cast<T>(v.x), out[1] = static_cast<T>(v.y);
        out[2] = static_cast<T>(v.z), out[3] = static_cast<T>(v.w);
        break;
      }
      default: {
        const auto* from = reinterpret_cast<const double2*>(static_cast<const double*>(row.data) + at);
        const double2 low = from[0], high = from[1];
        out[0] = static_cast<T>(low.x), out[1] = static_cast<T>(low.y);
        out[2] = static_cast<T>(high.x), out[3] = static_cast<T>(high.y);
      }
    }
  }
};

template <typename T>
RowLoader<T> loader(const RowSource& source, const T* shift = nullptr) {
  const int64_t bytes = bytes_of(source.element), aligned = bytes == 8 ? 16 : 4 * bytes;
  const bool vector = source.column_stride == 1 && reinterpret_cast<uintptr_t>(source.data) % aligned == 0 &&
                      source.row_stride * bytes % aligned == 0;
  return {source, shift, vector};
}

// Rows [begin, begin + count).
inline Rows slice(Rows rows, int64_t begin, int64_t count) {
  for (int f = 0; f < rows.factors; ++f) {
    RowSource& source = rows.factor[f];
    source.data = static_cast<const char*>(source.data) + begin * source.row_stride * bytes_of(source.element);
    source.rows = count;
  }
  rows.count = count;
  return rows;
}

// The most columns that a tile takes in at a time (product_tile.cuh).
constexpr int64_t kMaxDepth = 16;

template <typename T>
__global__ void shift_kernel(const double* __restrict__ shift, int64_t width, int64_t padded, T* __restrict__ out) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i < padded) out[i] = i < width ? static_cast<T>(shift[i]) : T(0);
}

// The common point in T, padded as RowLoader wants it; null stays null.
template <typename T>
const T* padded_shift(const double* shift, int64_t width, const Device& device) {
  if (shift == nullptr) return nullptr;
  const int64_t padded = width + kMaxDepth;
  T* out = device.scratch<T>(padded);
  ALK_LAUNCH(shift_kernel<T>, blocks_for(padded, kThreads), kThreads, 0, device.stream, shift, width, padded, out);
  return out;
}

// Rows made ready for a product: d2(i, j) = n_i + n_j - 2 * prod_f <x_i^f, c_j^f> (../cpu/simd/distance_tile.h).
template <typename T>
struct Packed {
  int factors = 1;
  int64_t count = 0;
  T* factor[kMaxFactors] = {};  // [count, stride], zeros from width on
  int64_t width[kMaxFactors] = {};
  int64_t stride[kMaxFactors] = {};
  double* norm = nullptr;    // n
  double* length = nullptr;  // squared length: rounding errors go with it
};

// Rows [begin, begin + count).
template <typename T>
Packed<T> slice(Packed<T> packed, int64_t begin, int64_t count) {
  packed.count = count;
  for (int f = 0; f < packed.factors; ++f) packed.factor[f] += begin * packed.stride[f];
  packed.norm += begin;
  packed.length += begin;
  return packed;
}

// Loads packed rows for a tile, as RowLoader does: rows start at 16 bytes and end in zeros.
template <typename T>
struct PackedLoader {
  static constexpr bool kAcross = false;

  const T* data;
  int64_t rows, stride;

  __device__ PackedLoader(const Packed<T>& packed, int f)
      : data(packed.factor[f]), rows(packed.count), stride(packed.stride[f]) {}

  struct Row {
    const T* data;
    int stride;  // 0: empty

    __device__ __forceinline__ void operator()(int column, T (&out)[4]) const {
      using V = typename Vector<T>::Type;
      constexpr int kEach = sizeof(V) / sizeof(T);
#pragma unroll
      for (int i = 0; i < 4; i += kEach) {
        V v = {};
        if (column < stride) v = *reinterpret_cast<const V*>(data + column + i);
        *reinterpret_cast<V*>(out + i) = v;
      }
    }
  };

  __device__ __forceinline__ Row at(int64_t row) const {
    return {data + row * stride, row < rows ? static_cast<int>(stride) : 0};
  }
};

// The same as a source of rows.
template <typename T>
RowSource as_source(const Packed<T>& packed, int f) {
  constexpr Element element = sizeof(T) == 8 ? Element::kFloat64 : Element::kFloat32;
  return {packed.factor[f], element, packed.count, packed.width[f], packed.stride[f], 1};
}

template <typename T>
Packed<T> new_packed(const Rows& rows, Metric metric, int64_t capacity, const Device& device) {
  Packed<T> out;
  out.factors = rows.factors;
  for (int f = 0; f < rows.factors; ++f) {
    out.width[f] = rows.factor[f].width * (metric == Metric::kSymmetricKl ? 2 : 1);
    out.stride[f] = (out.width[f] + 3) / 4 * 4;
    out.factor[f] = device.scratch<T>(capacity * out.stride[f]);
  }
  out.norm = device.scratch<double>(capacity);
  out.length = metric == Metric::kSymmetricKl ? device.scratch<double>(capacity) : out.norm;
  return out;
}

// Rows so narrow that a thread by itself measures a pair sooner than a warp agrees on it.
constexpr int64_t kNarrow = 64;

// This thread among the kLanes, 1 or 32, that work on one thing; their sum, all of which get it.
template <int kLanes>
__device__ __forceinline__ int own_lane() {
  return kLanes == 1 ? 0 : lane();
}
template <int kLanes, typename T>
__device__ __forceinline__ T sum_of(T x) {
  return kLanes == 1 ? x : warp_sum(x);
}

// The largest magnitude and, of the row divided by it, the length: both 0 for a row of zeros.
template <int kLanes = kWarp>
__device__ inline void unit_scale(const RowSource& source, int64_t row, double& largest, double& length) {
  largest = 0;
  for (int64_t c = own_lane<kLanes>(); c < source.width; c += kLanes) {
    const double magnitude = fabs(read<double>(source, row, c));
    if (magnitude > largest || isnan(magnitude)) largest = magnitude;  // NaN stays
  }
  for (int step = kLanes / 2; step > 0; step /= 2) {
    const double other = __shfl_xor_sync(kAllLanes, largest, step);
    if (other > largest || isnan(other)) largest = other;
  }
  length = 0;
  if (largest > 0) {
    double sum = 0;
    for (int64_t c = own_lane<kLanes>(); c < source.width; c += kLanes) {
      const double x = read<double>(source, row, c) / largest;
      sum += x * x;
    }
    length = sqrt(sum_of<kLanes>(sum));
  }
}

template <typename T>
constexpr double kLeastFactor = static_cast<double>(std::numeric_limits<T>::min()) * 1e8;
template <typename T>
constexpr double kLargestFactor = static_cast<double>(std::numeric_limits<T>::max()) / 1e8;

// Whether a factor's squared norm kept its digits: no under- or overflow hides behind the product of two.
template <typename T>
__device__ inline bool usable(double norm, bool any) {
  return (norm > kLeastFactor<T> && norm < kLargestFactor<T>) || !any;
}

// A warp packs a row. `centers`: logarithms first for symmetric KL, to meet the rows' probabilities. Reads the rows
// once (more often for cosine), writes them in T.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    pack_kernel(const Rows rows, Metric metric, const T* __restrict__ shift, bool centers, const Packed<T> out) {
  const int64_t row = blockIdx.x * static_cast<int64_t>(kThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= rows.count) return;
  double norm = 1, length = 0;
  bool sound = true;
#pragma unroll
  for (int f = 0; f < kMaxFactors; ++f) {
    if (f >= rows.factors) break;
    const RowSource& source = rows.factor[f];
    T* to = out.factor[f] + row * out.stride[f];
    for (int64_t c = out.width[f] + lane(); c < out.stride[f]; c += kWarp) to[c] = 0;
    if (metric == Metric::kSymmetricKl) {  // (p, log p) / 2
      double n = 0;
      for (int64_t c = lane(); c < source.width; c += kWarp) {
        const double p = read<double>(source, row, c), log_p = p > 0 ? log(p) : kLogOfZero;
        n += p * log_p / 2;
        length += (p * p + log_p * log_p) / 4;
        to[centers ? source.width + c : c] = static_cast<T>(p / 2);
        to[centers ? c : source.width + c] = static_cast<T>(log_p / 2);
      }
      norm = warp_sum(n);
      length = warp_sum(length);
    } else if (metric == Metric::kCosine) {
      // A row of zeros stays one and counts as orthogonal to everything: with a squared norm of 1 its squared distance
      // to any unit vector is 2, a cosine distance of 1.
      double largest, unit;
      unit_scale(source, row, largest, unit);
      for (int64_t c = lane(); c < source.width; c += kWarp)
        to[c] = largest == 0 ? T(0) : static_cast<T>(read<double>(source, row, c) / largest / unit);
      if (!isfinite(largest)) norm = NAN;
      length = norm;
    } else {
      double n = 0;
      bool any = false;
      for (int64_t c = lane(); c < source.width; c += kWarp) {
        T x = read<T>(source, row, c);
        if (shift) x -= shift[c];
        to[c] = x;
        n += static_cast<double>(x) * static_cast<double>(x);
        any |= x != 0;
      }
      n = warp_sum(n);
      any = __any_sync(kAllLanes, any);
      sound &= usable<T>(n, any);
      norm *= n;
      length = norm;
    }
  }
  if (lane() != 0) return;
  if (rows.factors == 2 && !sound) norm = length = NAN;
  out.norm[row] = norm;
  out.length[row] = length;
}

// Packs up to the capacity of `out`; no rows: no launch.
template <typename T>
void pack(const Rows& rows, Metric metric, const T* shift, bool centers, Packed<T>& out, const Device& device) {
  out.count = rows.count;
  if (rows.count == 0) return;
  ALK_LAUNCH(pack_kernel<T>, blocks_for(rows.count, kThreads / kWarp), kThreads, 0, device.stream, rows, metric, shift,
             centers, out);
}

// The squared distance of two rows from float64 differences of their raw features: no shift, no large numbers
// subtracted. By a warp, all of whose lanes get it, or by a thread for itself.
template <int kLanes = kWarp>
__device__ inline double exact_distance(Metric metric, const Rows& x, int64_t i, const Rows& c, int64_t j) {
  const RowSource &left = x.factor[0], &right = c.factor[0];
  const int64_t width = left.width;
  if (metric == Metric::kOuter) {
    // a ⊗ h - b ⊗ g = u ⊗ h + b ⊗ v with u = a - b, v = h - g
    double uu = 0, ub = 0, bb = 0, vv = 0, vh = 0, hh = 0;
    for (int64_t k = own_lane<kLanes>(); k < width; k += kLanes) {
      const double b = read<double>(right, j, k), u = read<double>(left, i, k) - b;
      uu += u * u;
      ub += u * b;
      bb += b * b;
    }
    for (int64_t k = own_lane<kLanes>(); k < x.factor[1].width; k += kLanes) {
      const double h = read<double>(x.factor[1], i, k), v = h - read<double>(c.factor[1], j, k);
      vv += v * v;
      vh += v * h;
      hh += h * h;
    }
    const double d = sum_of<kLanes>(uu) * sum_of<kLanes>(hh) + sum_of<kLanes>(bb) * sum_of<kLanes>(vv) +
                     2 * sum_of<kLanes>(ub) * sum_of<kLanes>(vh);
    return d < 0 ? 0 : d;  // NaN stays NaN
  }
  double sum = 0;
  if (metric == Metric::kSymmetricKl) {
    bool apart = false;  // one rules out a class that the other allows
    for (int64_t k = own_lane<kLanes>(); k < width; k += kLanes) {
      const double p = read<double>(left, i, k), q = read<double>(right, j, k);
      apart |= (p > 0) != (q > 0);
      if (p > 0 && q > 0) sum += (p - q) * (log(p) - log(q));  // no term is negative: nothing cancels
    }
    sum = sum_of<kLanes>(sum) / 2;
    if (kLanes > 1) apart = __any_sync(kAllLanes, apart);
    return apart ? INFINITY : sum;
  }
  if (metric == Metric::kCosine) {
    double largest, length, other_largest, other_length;
    unit_scale<kLanes>(left, i, largest, length);
    unit_scale<kLanes>(right, j, other_largest, other_length);
    if (!isfinite(largest) || !isfinite(other_largest)) return NAN;
    if (largest == 0 || other_largest == 0) return 2;
    for (int64_t k = own_lane<kLanes>(); k < width; k += kLanes) {
      const double d =
          read<double>(left, i, k) / largest / length - read<double>(right, j, k) / other_largest / other_length;
      sum += d * d;
    }
    return sum_of<kLanes>(sum);
  }
  for (int64_t k = own_lane<kLanes>(); k < width; k += kLanes) {
    const double d = read<double>(left, i, k) - read<double>(right, j, k);
    sum += d * d;
  }
  return sum_of<kLanes>(sum);
}

}  // namespace alkernels::cuda
