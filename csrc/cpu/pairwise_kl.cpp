// KL divergences between rows of two sets of distributions, as matrix products.
//
//     KL(p_i || q_j) = sum_c p log p - sum_c p log q = A_i + B_j - <p_i - mean p, log q_j - mean log q>
//
// with A_i and B_j in float64: taking the means off leaves a product of deviations, whose rounding is small where the
// distributions are alike, and so is the divergence. What cancels all the same is summed again in float64. The register
// tile's epilogue adds the constants: they stand where squared norms do, and half of the deviation of log q in the
// columns.
//
// 0 log 0 = 0: a class that q rules out has no share in the product, and a pair where p allows it is +inf; rows carry
// their supports as bits, looked at only for rows of q with zeros.
//
// divergences writes all pairs; nearest_divergences keeps each row's k smallest (or largest) and stores no others.
#include "nearest.h"

#include "device.h"

namespace alkernels::cpu {
namespace {

// All pairs are written as the product gives them while their error is bounded by this share of the value.
template <typename T>
constexpr double kRelative = std::is_same_v<T, float> ? 1e-4 : 1e-12;

template <typename T>
constexpr double kEpsilon = static_cast<double>(std::numeric_limits<T>::epsilon());

// Some rows of distributions in float64, read as probabilities or as logarithms.
class Distributions {
 public:
  Distributions(const Rows& rows, bool logarithms)
      : log_input(logarithms), count(rows.count), width(rows.factor[0].width), words((width + 63) / 64) {
    PackedTile<double> stored(rows, Metric::kEuclidean, nullptr, count);
    stride = stored.rows().stride[0];
    const auto size = static_cast<size_t>(count * stride);
    p.resize(size);
    log_p.resize(size);
    support.resize(static_cast<size_t>(count * words));
    has_zero.resize(static_cast<size_t>(count));
    const int64_t rows_a_task = std::clamp<int64_t>(count / 32, 1, 64);
    parallel_tasks((count + rows_a_task - 1) / rows_a_task, [&](const auto& next) {
      for (int64_t task; (task = next()) >= 0;) {
        const int64_t begin = task * rows_a_task, end = std::min(count, begin + rows_a_task);
        const double* x = stored.fill(begin, end - begin, begin).factor[0];
        for (int64_t i = begin; i < end; ++i) read(i, x + i * stride);
      }
    });
  }

  const double* row(const std::vector<double>& values, int64_t i) const { return values.data() + i * stride; }
  const uint64_t* bits(int64_t i) const { return support.data() + i * words; }
  // Whether row i allows class c: its probability is above zero, even where float64 cannot tell.
  bool allows(int64_t i, int64_t c) const { return bits(i)[c / 64] >> (c % 64) & 1; }

  // The mean of each column over at most 1024 of the rows.
  std::vector<double> mean(const std::vector<double>& values) const {
    const int64_t step = std::max<int64_t>(1, count / 1024);
    std::vector<double> sum(static_cast<size_t>(stride));
    int64_t n = 0;
    for (int64_t i = 0; i < count; i += step, ++n) {
      for (int64_t c = 0; c < width; ++c) sum[static_cast<size_t>(c)] += row(values, i)[c];
    }
    for (double& s : sum) s /= static_cast<double>(n);
    return sum;
  }

  const bool log_input;
  const int64_t count, width, words;
  int64_t stride = 0;
  std::vector<double> p, log_p;  // [count, stride], both 0 for classes that are ruled out: no share in any sum
  std::vector<uint64_t> support;
  std::vector<char> has_zero;

 private:
  void read(int64_t i, const double* x) {
    double *to_p = p.data() + i * stride, *to_log = log_p.data() + i * stride;
    if (!log_input) {
      std::fill(std::copy_n(x, width, to_log), to_log + stride, 1.0);
      distance_tile<double>().log(stride, to_log);
    }
    for (int64_t c = 0; c < width; ++c) {
      if (log_input ? std::isinf(x[c]) : !(x[c] > 0)) {
        to_log[c] = 0;
        has_zero[static_cast<size_t>(i)] = 1;
        continue;
      }
      to_p[c] = log_input ? std::exp(x[c]) : x[c];  // may underflow, and has a logarithm all the same
      if (log_input) to_log[c] = x[c];
      if (!log_input && x[c] < std::numeric_limits<double>::min()) to_log[c] = std::log(x[c]);
      support[static_cast<size_t>(i * words + c / 64)] |= uint64_t{1} << (c % 64);
    }
  }
};

// The product form of all pairs of two sets, and the truth of single ones. sign -1: of the negated divergences.
template <typename T>
class Divergences {
 public:
  Divergences(const Rows& p_rows, const Rows& q_rows, bool log_input, double sign)
      : p(p_rows, log_input),
        q(q_rows, log_input),
        by(blocking<T>(p_rows)),
        sign_(sign),
        mean_p_(p.mean(p.p)),
        half_(half_deviations()),
        row_source_(as_rows(p.p.data(), p.count)),
        block_(as_rows(half_.data(), q.count), Metric::kEuclidean, nullptr),
        share_(error_share<T>(row_source_, Metric::kEuclidean)) {
    columns = block_.centers();
    norms_.assign(static_cast<size_t>((q.count + 63) / 64 * 64), T(0));
    for (int64_t j = 0; j < q.count; ++j) {
      double b = 0;
      for (int64_t c = 0; c < p.width; ++c)
        b -= mean_p_[static_cast<size_t>(c)] * half_[static_cast<size_t>(j * p.stride + c)];
      // sign * B_j = -sum mean p (log q - mean log q), the sign and the half being in half_ already
      norms_[static_cast<size_t>(j)] = static_cast<T>(2 * b);
      const double length = 2 * std::sqrt(static_cast<double>(block_.rows().squared_length[j]));
      if (j % by.group == 0) groups_.push_back({});
      groups_.back().constant = std::max(groups_.back().constant, std::abs(2 * b));
      groups_.back().length =
          std::isnan(length) ? std::numeric_limits<double>::infinity() : std::max(groups_.back().length, length);
      if (q.has_zero[static_cast<size_t>(j)]) with_zeros_.push_back(j);
    }
    columns.squared_norm = norms_.data();
  }

  // sign * KL(p_i || q_j): two sums where their difference keeps twelve digits, else term by term, p log(p / q) from
  // p - q, so that nearly equal rows lose nothing.
  double exact(int64_t i, int64_t j, std::vector<double>& scratch) const {
    if (q.has_zero[static_cast<size_t>(j)] && impossible(i, j)) return sign_ * std::numeric_limits<double>::infinity();
    const double *p_i = p.row(p.p, i), *log_p = p.row(p.log_p, i), *q_j = q.row(q.p, j), *log_q = q.row(q.log_p, j);
    const auto& wide = distance_tile<double>();
    const double entropy = wide.dot(p_i, log_p, p.stride), cross = wide.dot(p_i, log_q, p.stride);
    if (entropy - cross > sum_error(entropy, cross) / kRelative<double>) return sign_ * (entropy - cross);
    double sum = 0;
    if (p.log_input) {
      for (int64_t c = 0; c < p.width; ++c) sum += p_i[c] * (log_p[c] - log_q[c]);
      return sign_ * sum;
    }
    // where p is near q: log(1 + d) = log(t) d / (t - 1), d = (p - q) / q, with t = 1 + d as it was rounded
    const auto near = [&](int64_t c) { return std::abs(p_i[c] - q_j[c]) < q_j[c] / 2; };
    scratch.assign(static_cast<size_t>(p.stride), 1.0);
    for (int64_t c = 0; c < p.width; ++c) {
      if (near(c)) scratch[static_cast<size_t>(c)] = 1 + (p_i[c] - q_j[c]) / q_j[c];
    }
    wide.log(p.stride, scratch.data());
    for (int64_t c = 0; c < p.width; ++c) {
      if (near(c)) {
        const double d = (p_i[c] - q_j[c]) / q_j[c], t = 1 + d;
        sum += p_i[c] * (t == 1 ? d : scratch[static_cast<size_t>(c)] * (d / (t - 1)));
      } else {
        sum += p_i[c] * (log_p[c] - log_q[c]);
      }
    }
    return sign_ * sum;
  }

  // What a difference of two float64 sums of probabilities times logarithms may be off by.
  static double sum_error(double a, double b) { return 8 * kEpsilon<double> * (std::abs(a) + std::abs(b)); }

  // A thread's rows of p at work.
  class Tile {
   public:
    Tile(const Divergences& all, int64_t capacity)
        : all_(all),
          deviations_(static_cast<size_t>(capacity * all.p.stride)),
          tile_(all.as_rows(deviations_.data(), capacity), Metric::kEuclidean, nullptr, capacity),
          constants_(static_cast<size_t>(capacity)),
          errors_(static_cast<size_t>(capacity)),
          lengths_(static_cast<size_t>(capacity)) {}

    void fill(int64_t begin, int64_t count) {
      const auto& dot = distance_tile<double>().dot;
      for (int64_t r = 0; r < count; ++r) {
        const double* row = all_.p.row(all_.p.p, begin + r);
        for (int64_t c = 0; c < all_.p.width; ++c)
          deviations_[static_cast<size_t>(r * all_.p.stride + c)] = row[c] - all_.mean_p_[static_cast<size_t>(c)];
      }
      rows_ = tile_.fill(0, count);
      for (int64_t r = 0; r < count; ++r) {
        const double* row = all_.p.row(all_.p.p, begin + r);
        const double entropy = dot(row, all_.p.row(all_.p.log_p, begin + r), all_.p.stride);
        const double cross = dot(row, all_.mean_log_q_.data(), all_.p.stride);
        const double a = all_.sign_ * (entropy - cross);
        lengths_[static_cast<size_t>(r)] = std::sqrt(static_cast<double>(rows_.squared_norm[r]));
        constants_[static_cast<size_t>(r)] = static_cast<T>(a);
        errors_[static_cast<size_t>(r)] = sum_error(entropy, cross) + 2 * kEpsilon<T> * std::abs(a);
      }
      begin_ = begin;
      rows_.squared_norm = constants_.data();
    }

    // sign * KL for rows [first, last) of the tile and columns [begin, end), impossible pairs included
    void matrix(int64_t first, int64_t last, int64_t begin, int64_t end, T* out, int64_t ld) const {
      distance_tile<T>().matrix(rows_, first, last, all_.columns, begin, end, out, ld);
      auto j = std::lower_bound(all_.with_zeros_.begin(), all_.with_zeros_.end(), begin);
      for (; j != all_.with_zeros_.end() && *j < end; ++j) {
        for (int64_t r = first; r < last; ++r) {
          if (all_.impossible(begin_ + r, *j))
            out[r * ld + *j] = static_cast<T>(all_.sign_) * std::numeric_limits<T>::infinity();
        }
      }
    }

    // Of a row's divergences from the group of columns that begins at `first`.
    double error(int64_t r, int64_t first) const {
      const Group& group = all_.groups_[static_cast<size_t>(first / all_.by.group)];
      const double product = lengths_[static_cast<size_t>(r)] * group.length;
      return errors_[static_cast<size_t>(r)] + all_.share_ * product + 2 * kEpsilon<T> * (group.constant + product);
    }

    // sign * KL(p_i || q_j) of row r of the tile
    double exact(int64_t r, int64_t j) { return all_.exact(begin_ + r, j, scratch_); }

   private:
    const Divergences& all_;
    std::vector<double> deviations_;  // p - mean p: taken in float64, so that T rounds what is left of p
    PackedTile<T> tile_;
    PackedRows<T> rows_;
    std::vector<T> constants_;
    std::vector<double> errors_, lengths_, scratch_;
    int64_t begin_ = 0;
  };

  const Distributions p, q;
  const Blocking by;
  PackedCenters<T> columns;

 private:
  // What bounds the errors of a group of columns: their largest deviation and constant.
  struct Group {
    double length = 0, constant = 0;
  };

  // Whether q_j rules out a class that p_i allows.
  bool impossible(int64_t i, int64_t j) const {
    const uint64_t *a = p.bits(i), *b = q.bits(j);
    for (int64_t w = 0; w < p.words; ++w) {
      if (a[w] & ~b[w]) return true;
    }
    return false;
  }

  // sign / 2 * (log q - mean log q), 0 for classes that q rules out
  std::vector<double> half_deviations() {
    mean_log_q_ = q.mean(q.log_p);
    std::vector<double> half(q.log_p.size());
    for (int64_t j = 0; j < q.count; ++j) {
      for (int64_t c = 0; c < q.width; ++c) {
        const auto at = static_cast<size_t>(j * q.stride + c);
        // a class that is ruled out anyway has the mean's share, which A_i takes off again
        if (q.allows(j, c)) half[at] = sign_ / 2 * (q.log_p[at] - mean_log_q_[static_cast<size_t>(c)]);
      }
    }
    return half;
  }

  Rows as_rows(const double* values, int64_t count) const {
    Rows rows;
    rows.factor[0] = {values, Element::kFloat64, count, p.width, p.stride, 1};
    rows.count = count;
    return rows;
  }

  const double sign_;
  const std::vector<double> mean_p_;
  std::vector<double> mean_log_q_;
  const std::vector<double> half_;
  const Rows row_source_;
  const PackedBlock<T> block_;
  const double share_;
  std::vector<T> norms_;
  std::vector<int64_t> with_zeros_;
  std::vector<Group> groups_;
};

template <typename T>
void all_pairs(const Rows& p, const Rows& q, bool log_input, T* out, int64_t ld) {
  const Divergences<T> all(p, q, log_input, 1);
  const auto& simd = distance_tile<T>();
  const Blocking by = all.by;
  parallel_tasks((p.count + by.tile_rows - 1) / by.tile_rows, [&](const auto& next) {
    typename Divergences<T>::Tile tile(all, by.tile_rows);
    std::vector<int32_t> small(static_cast<size_t>(by.group));
    for (int64_t task; (task = next()) >= 0;) {
      const int64_t begin = task * by.tile_rows, count = std::min(by.tile_rows, p.count - begin);
      tile.fill(begin, count);
      T* to = out + begin * ld;
      for (int64_t first = 0; first < q.count; first += by.group) {
        const int64_t last = std::min(q.count, first + by.group);
        for (int64_t row = 0; row < count; row += simd.rows) {
          const int64_t end = std::min(count, row + simd.rows);
          tile.matrix(row, end, first, last, to, ld);
          for (int64_t r = row; r < end; ++r) {
            T* values = to + r * ld + first;
            const T limit = static_cast<T>(
                std::min(tile.error(r, first) / kRelative<T>, static_cast<double>(std::numeric_limits<T>::max())));
            const int64_t n = simd.at_most(values, last - first, limit, small.data());
            for (int64_t i = 0; i < n; ++i)
              values[small[static_cast<size_t>(i)]] =
                  static_cast<T>(tile.exact(r, first + small[static_cast<size_t>(i)]));
          }
        }
      }
    }
  });
}

template <typename T>
void nearest(const Rows& p, const Rows& q, bool log_input, bool largest, int64_t first_row, int64_t k, double* values,
             int64_t* indices) {
  const Divergences<T> all(p, q, log_input, largest ? -1 : 1);
  merge_nearest<T>(p.count, q.count, all.by, k, first_row, values, indices,
                   [&](int64_t capacity) { return typename Divergences<T>::Tile(all, capacity); });
}

}  // namespace

void divergences(const Rows& p, const Rows& q, bool log_input, bool wide, void* out, int64_t ld, const Device&) {
  if (p.count == 0 || q.count == 0) return;
  if (wide) {
    all_pairs<double>(p, q, log_input, static_cast<double*>(out), ld);
  } else {
    all_pairs<float>(p, q, log_input, static_cast<float*>(out), ld);
  }
}

void nearest_divergences(const Rows& p, const Rows& q, bool log_input, bool largest, int64_t first_row,
                         const Lists& lists, const Device&) {
  if (p.count == 0 || q.count == 0 || lists.k == 0) return;
  (p.wide || q.wide ? nearest<double> : nearest<float>)(p, q, log_input, largest, first_row, lists.k, lists.values,
                                                        lists.indices);
}

}  // namespace alkernels::cpu
