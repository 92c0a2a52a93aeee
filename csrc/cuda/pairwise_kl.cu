// KL divergences between rows of two sets of distributions, as matrix products.
//
//     KL(p_i || q_j) = sum_c p log p - sum_c p log q = A_i + B_j - <p_i - mean p, log q_j - mean log q>
//
// with A_i and B_j in float64: taking the means off leaves a product of deviations, whose rounding is small where the
// distributions are alike, and so is the divergence. The deviations are packed in T some 64 MB at a time, half of that
// of log q, so that the product tile (product_matrix.cuh) gives a divergence where it gives a squared distance. What
// cancels all the same is summed again in float64, by a warp a pair, from the caller's memory.
//
// 0 log 0 = 0: a class that q rules out has no share in the product, and a pair where p allows it is +inf; rows carry
// their supports as bits, looked at only for rows of q with zeros.
//
// divergences writes all pairs; nearest_divergences keeps each row's k smallest (or largest) and stores no others.
// Traffic: q once, p once for each 64 MB of q, and the product values once more than they are kept.
#include "nearest.cuh"

namespace alkernels::cuda {
namespace {

// All pairs are written as the product gives them while their error is bounded by this share of the value.
template <typename T>
constexpr double kRelative = sizeof(T) == 4 ? 1e-4 : 1e-12;
template <typename T>
constexpr double kEpsilon = static_cast<double>(std::numeric_limits<T>::epsilon());
template <typename T>
constexpr T kLargest = std::numeric_limits<T>::max();

constexpr int64_t kSampled = 1024;  // rows that a mean is taken of, at most

// Rows of distributions, read as probabilities or as logarithms. Both 0 for classes that are ruled out.
struct Distributions {
  RowSource rows;
  bool log_input;

  __device__ double stored(int64_t row, int64_t c) const { return read<double>(rows, row, c); }
  // Above zero, even where float64 cannot tell.
  __device__ bool allows(double x) const { return log_input ? !isinf(x) : x > 0; }
  __device__ double p(double x) const { return !allows(x) ? 0 : log_input ? exp(x) : x; }
  __device__ double log_p(double x) const { return !allows(x) ? 0 : log_input ? x : log(x); }
};

// What a difference of two float64 sums of probabilities times logarithms may be off by.
__device__ inline double sum_error(double a, double b) { return 8 * kEpsilon<double> * (fabs(a) + fabs(b)); }

// The mean of each column over some of the rows: of probabilities, or of logarithms. A thread a column.
__global__ void __launch_bounds__(kThreads)
    mean_kernel(const Distributions from, bool logarithms, double* __restrict__ out) {
  const int64_t c = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (c >= from.rows.width) return;
  const int64_t step = from.rows.rows > kSampled ? from.rows.rows / kSampled : 1;
  double sum = 0;
  int64_t n = 0;
  for (int64_t i = 0; i < from.rows.rows; i += step, ++n) {
    const double x = from.stored(i, c);
    sum += logarithms ? from.log_p(x) : from.p(x);
  }
  out[c] = sum / static_cast<double>(n);
}

// Rows packed for the product: deviations, the constants A_i or B_j as norms, lengths of the deviations.
template <typename T>
struct Side {
  Packed<T> packed;
  double* error;      // of A_i (rows of p only)
  uint64_t* support;  // [rows, words]
  unsigned char* has_zero;
  int64_t words;
};

// sign * (p log p - p mean log q), p - mean p: taken in float64, so that T rounds what is left of p. A warp a row.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    pack_p_kernel(const Distributions from, double sign, const double* __restrict__ mean_p,
                  const double* __restrict__ mean_log_q, const Side<T> to) {
  const int64_t row = blockIdx.x * static_cast<int64_t>(kThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= from.rows.rows) return;
  const int64_t width = from.rows.width;
  T* deviation = to.packed.factor[0] + row * to.packed.stride[0];
  double entropy = 0, cross = 0, square = 0;
  for (int64_t first = 0; first < round_up(to.packed.stride[0], kWarp); first += kWarp) {
    const int64_t c = first + lane();
    bool allowed = false;
    double d = 0;
    if (c < width) {
      const double x = from.stored(row, c), p = from.p(x);
      allowed = from.allows(x);
      entropy += p * from.log_p(x);
      cross += p * mean_log_q[c];
      d = static_cast<double>(static_cast<T>(p - mean_p[c]));
    }
    if (c < to.packed.stride[0]) deviation[c] = static_cast<T>(d);
    square += d * d;
    const unsigned bits = __ballot_sync(kAllLanes, allowed);
    if (lane() == 0 && c < width) reinterpret_cast<unsigned*>(to.support + row * to.words)[first / kWarp] = bits;
  }
  entropy = warp_sum(entropy);
  cross = warp_sum(cross);
  square = warp_sum(square);
  if (lane() != 0) return;
  const double a = sign * (entropy - cross);
  to.packed.norm[row] = a;
  to.packed.length[row] = sqrt(square);
  to.error[row] = sum_error(entropy, cross) + 2 * kEpsilon<T> * fabs(a);
}

// sign / 2 * (log q - mean log q), 0 for classes that q rules out (they have the mean's share, which A_i takes off
// again); sign * B_j = -sum mean p (log q - mean log q). A warp a row.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    pack_q_kernel(const Distributions from, double sign, const double* __restrict__ mean_p,
                  const double* __restrict__ mean_log_q, const Side<T> to) {
  const int64_t row = blockIdx.x * static_cast<int64_t>(kThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= from.rows.rows) return;
  const int64_t width = from.rows.width;
  T* half = to.packed.factor[0] + row * to.packed.stride[0];
  double b = 0, square = 0;
  bool zero = false;
  for (int64_t first = 0; first < round_up(to.packed.stride[0], kWarp); first += kWarp) {
    const int64_t c = first + lane();
    bool allowed = false;
    double d = 0;
    if (c < width) {
      const double x = from.stored(row, c);
      allowed = from.allows(x);
      if (allowed) d = sign / 2 * (from.log_p(x) - mean_log_q[c]);
      zero |= !allowed;
      b -= 2 * mean_p[c] * d;
    }
    if (c < to.packed.stride[0]) half[c] = static_cast<T>(d);
    square += d * d;
    const unsigned bits = __ballot_sync(kAllLanes, allowed);
    if (lane() == 0 && c < width) reinterpret_cast<unsigned*>(to.support + row * to.words)[first / kWarp] = bits;
  }
  b = warp_sum(b);
  square = warp_sum(square);
  zero = __any_sync(kAllLanes, zero);
  if (lane() != 0) return;
  to.packed.norm[row] = b;
  // (half deviations beyond T are infinite there)
  const double length = 2 * sqrt(square);
  to.packed.length[row] = length < static_cast<double>(kLargest<T>) ? length : INFINITY;
  to.has_zero[row] = zero;
}

template <typename T>
struct Divergences {
  Distributions p, q;
  double sign;  // -1: of the negated divergences
  double share;
  Side<T> left, right;
  double *longest, *constant;  // the largest deviation and constant of each kScreened rows of q

  // Whether q_j rules out a class that p_i allows.
  __device__ bool impossible(int64_t i, int64_t j) const {
    const uint64_t *a = left.support + i * left.words, *b = right.support + j * right.words;
    for (int64_t w = 0; w < left.words; ++w) {
      if (a[w] & ~b[w]) return true;
    }
    return false;
  }

  __device__ T value(int64_t i, int64_t j, T product) const {
    return right.has_zero[j] && impossible(i, j) ? static_cast<T>(sign * INFINITY) : product;
  }

  __device__ double error(int64_t i, int64_t first) const {
    const double product = left.packed.length[i] * longest[first / kScreened];
    return left.error[i] + share * product + 2 * kEpsilon<T> * (constant[first / kScreened] + product);
  }

  // sign * KL(p_i || q_j): two sums where their difference keeps twelve digits, else term by term, p log(p / q) from p
  // - q, so that nearly equal rows lose nothing. By a warp.
  __device__ double exact(int64_t i, int64_t j) const {
    if (right.has_zero[j] && impossible(i, j)) return sign * INFINITY;
    double entropy = 0, cross = 0;
    for (int64_t c = lane(); c < p.rows.width; c += kWarp) {
      const double x = p.stored(i, c), own = p.p(x);
      entropy += own * p.log_p(x);
      cross += own * q.log_p(q.stored(j, c));
    }
    entropy = warp_sum(entropy);
    cross = warp_sum(cross);
    if (entropy - cross > sum_error(entropy, cross) / kRelative<double>) return sign * (entropy - cross);
    double sum = 0;
    for (int64_t c = lane(); c < p.rows.width; c += kWarp) {
      const double x = p.stored(i, c), y = q.stored(j, c), own = p.p(x);
      if (!p.log_input && fabs(x - y) < y / 2) {
        sum += own * log1p((x - y) / y);
      } else {
        sum += own * (p.log_p(x) - q.log_p(y));
      }
    }
    return sign * warp_sum(sum);
  }
};

// Measures what a product lost, in place: a warp takes 32 columns of a row at a time.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    correct_kernel(const Divergences<T> all, int64_t rows, int64_t columns, T* __restrict__ out, int64_t ld) {
  const int64_t strips = (columns + kWarp - 1) / kWarp, warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  for (int64_t task = blockIdx.x * static_cast<int64_t>(kThreads / kWarp) + threadIdx.x / kWarp; task < rows * strips;
       task += warps) {
    const int64_t i = task / strips, first = task % strips * kWarp, j = first + lane();
    T value = j < columns ? all.value(i, j, out[i * ld + j]) : kLargest<T>;
    const double limit = all.error(i, first) / kRelative<T>;
    const bool doubtful = j < columns && !(static_cast<double>(value) > limit);
    for (unsigned left = __ballot_sync(kAllLanes, doubtful); left; left &= left - 1) {
      const int turn = __ffs(static_cast<int>(left)) - 1;
      const double exact = all.exact(i, first + turn);
      if (lane() == turn) value = static_cast<T>(exact);
    }
    if (j < columns) out[i * ld + j] = value;
  }
}

template <typename T>
Side<T> new_side(const Rows& rows, int64_t capacity, const Device& device) {
  Side<T> side;
  side.packed = new_packed<T>(rows, Metric::kEuclidean, capacity, device);
  side.packed.length = device.scratch<double>(capacity);
  side.error = device.scratch<double>(capacity);
  side.words = (rows.factor[0].width + 63) / 64;
  side.support = device.scratch<uint64_t>(capacity * side.words);
  check(cudaMemsetAsync(side.support, 0, static_cast<size_t>(capacity * side.words) * 8, device.stream));
  side.has_zero = device.scratch<unsigned char>(capacity);
  return side;
}

// Rows that are packed at a time.
template <typename T>
int64_t rows_at_a_time(const Rows& rows) {
  const int64_t row_bytes = rows.factor[0].width * static_cast<int64_t>(sizeof(T));
  return std::max<int64_t>(kScreened, kPackedBytes / row_bytes / kScreened * kScreened);
}

// Calls use(divergences, begin, first) for tiles of both sets, packed.
template <typename T, typename Use>
void for_tiles(const Rows& p, const Rows& q, bool log_input, double sign, const Device& device, const Use& use) {
  const int64_t width = p.factor[0].width;
  double *mean_p = device.scratch<double>(width), *mean_log_q = device.scratch<double>(width);
  const unsigned blocks = blocks_for(width, kThreads);
  ALK_LAUNCH(mean_kernel, blocks, kThreads, 0, device.stream, Distributions{p.factor[0], log_input}, false, mean_p);
  ALK_LAUNCH(mean_kernel, blocks, kThreads, 0, device.stream, Distributions{q.factor[0], log_input}, true, mean_log_q);

  const int64_t some = rows_at_a_time<T>(p);
  Divergences<T> all;
  all.sign = sign;
  all.share = error_share<T>(p, Metric::kEuclidean);
  all.left = new_side<T>(p, std::min(some, p.count), device);
  all.right = new_side<T>(q, std::min(some, q.count), device);
  all.longest = device.scratch<double>(screened_groups(std::min(some, q.count)));
  all.constant = device.scratch<double>(screened_groups(std::min(some, q.count)));
  for (int64_t first = 0; first < q.count; first += some) {
    all.q = {slice(q, first, std::min(some, q.count - first)).factor[0], log_input};
    all.right.packed.count = all.q.rows.rows;
    ALK_LAUNCH(pack_q_kernel<T>, blocks_for(all.q.rows.rows, kThreads / kWarp), kThreads, 0, device.stream, all.q, sign,
               mean_p, mean_log_q, all.right);
    largest_of(all.right.packed.length, all.right.packed.count, all.longest, device);
    largest_of(all.right.packed.norm, all.right.packed.count, all.constant, device);
    for (int64_t begin = 0; begin < p.count; begin += some) {
      all.p = {slice(p, begin, std::min(some, p.count - begin)).factor[0], log_input};
      all.left.packed.count = all.p.rows.rows;
      ALK_LAUNCH(pack_p_kernel<T>, blocks_for(all.p.rows.rows, kThreads / kWarp), kThreads, 0, device.stream, all.p,
                 sign, mean_p, mean_log_q, all.left);
      use(all, begin, first);
    }
  }
}

template <typename T>
void all_pairs(const Rows& p, const Rows& q, bool log_input, T* out, int64_t ld, const Device& device) {
  for_tiles<T>(p, q, log_input, 1, device, [&](const Divergences<T>& all, int64_t begin, int64_t first) {
    const Packed<T>&rows = all.left.packed, &columns = all.right.packed;
    T* to = out + begin * ld + first;
    for (int64_t at = 0; at < rows.count; at += kMaxMatrixRows)
      product_matrix(slice(rows, at, std::min(kMaxMatrixRows, rows.count - at)), columns, to + at * ld, ld, device);
    ALK_LAUNCH(correct_kernel<T>, static_cast<unsigned>(16 * device.multiprocessors), kThreads, 0, device.stream, all,
               rows.count, columns.count, to, ld);
  });
}

template <typename T>
void nearest(const Rows& p, const Rows& q, bool log_input, bool largest, int64_t first_row, const Lists& lists,
             const Device& device) {
  const MergeSpace<T> space(std::min(rows_at_a_time<T>(p), p.count), lists.k, device);
  for_tiles<T>(p, q, log_input, largest ? -1 : 1, device, [&](const Divergences<T>& all, int64_t begin, int64_t first) {
    merge_nearest(all.left.packed, all.right.packed, all, first_row + first,
                  {lists.k, lists.values + begin * lists.k, lists.indices + begin * lists.k}, space, device);
  });
}

}  // namespace

void divergences(const Rows& p, const Rows& q, bool log_input, bool wide, void* out, int64_t ld, const Device& device) {
  if (p.count == 0 || q.count == 0) return;
  if (wide) {
    all_pairs<double>(p, q, log_input, static_cast<double*>(out), ld, device);
  } else {
    all_pairs<float>(p, q, log_input, static_cast<float*>(out), ld, device);
  }
  check(cudaGetLastError());
}

void nearest_divergences(const Rows& p, const Rows& q, bool log_input, bool largest, int64_t first_row,
                         const Lists& lists, const Device& device) {
  if (p.count == 0 || q.count == 0 || lists.k == 0) return;
  (p.wide || q.wide ? nearest<double> : nearest<float>)(p, q, log_input, largest, first_row, lists, device);
  check(cudaGetLastError());
}

}  // namespace alkernels::cuda
