#include "support/quantised_model.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <memory>

#include "quant/quantize.hpp"
#include "support/naive.hpp"

namespace tessera::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kLog2E = 1.44269504088896340736;
constexpr double kUnit = 0x1p-24;         // roundoff of f32
constexpr int kShortBits = 13;            // of a sum of 8-bit operands behind its leading one,
constexpr std::int64_t kShortKeys = 128;  // of at most so many aligned keys
constexpr std::int64_t kShortSteps = 4;   // in so many instructions

/// What weights are rounded to.
struct WeightFormat {
  double least_normal;  ///< Below it numbers lie `step` apart.
  double step;
  double significand;  ///< What rounding changes above, relative.
  double (*round)(double);

  static WeightFormat of(PvFormat pv, DType dtype) {
    if (pv == PvFormat::fp8) {
      return {0x1p-6, 0x1p-9, 0x1p-4,
              [](double y) -> double { return quant::round_to_e4m3(static_cast<float>(y)); }};
    }
    if (dtype == DType::f16) {
      return {0x1p-14, 0x1p-24, 0x1p-11, [](double y) { return rounded(y, DType::f16); }};
    }
    return {0x1p-126, 0x1p-133, 0x1p-8, [](double y) { return rounded(y, DType::bf16); }};
  }

  /// How far from round(y) another row's weight may be. Its y differs by `error`, relative; and if
  /// y is so small that the maximum's whole exponent matters, that may have been lower, or one
  /// higher if `coarse`.
  double uncertainty(double y, double error, bool coarse) const {
    const double p = round(y);
    const double shift = coarse ? 2 : 1;
    if (y * (1 - error) >= least_normal * shift) {
      return std::max(round(y * (1 + error)) - p, p - round(y * (1 - error)));
    }
    // Half a step, after the significand has been rounded, which may come first.
    const double rounding = step / 2 * shift + y * significand;
    const double low = std::max(0.0, y - rounding);
    const double high = std::min(2 * (1 + significand) * y, y + rounding);
    return std::max(p - low, high - p) + y * error;
  }
};

/// A head's tokens as f32, and what they are quantised to.
struct Tokens {
  std::int64_t rows, columns;
  std::vector<float> x, mean, scale;  ///< mean: one row, or one of each block.
  std::unique_ptr<bool[]> used;
  std::vector<std::int8_t> integers;
  std::vector<std::uint8_t> codes;
  std::int64_t tokens_per_mean = std::numeric_limits<std::int64_t>::max();
  bool smoothed = false;

  Tokens(const Case& c, const Tensor& t, std::int64_t b, std::int64_t h, std::int64_t begin,
         std::int64_t tokens)
      : rows(tokens), columns(t.size(t.view().rank - 1)), used(new bool[tokens]) {
    x.reserve(rows * columns);
    for (std::int64_t i = 0; i < rows; ++i) {
      const auto row = t.row(row_index(c, t, b, h, begin + i));
      x.insert(x.end(), row.begin(), row.end());
      used[i] = true;
    }
    mean.assign((rows / quant::kQueryBlock + 1) * columns, 0);
  }

  quant::TokenRows view() const { return {x.data(), rows, columns, used.get()}; }
  const float* mean_of(std::int64_t i) const { return mean.data() + i / tokens_per_mean * columns; }
  /// The element less its mean.
  float smooth(std::int64_t i, std::int64_t d) const {
    return smoothed ? x[i * columns + d] - mean_of(i)[d] : x[i * columns + d];
  }
  quant::Means means() const {
    return smoothed ? quant::Means{mean.data(), tokens_per_mean} : quant::Means{};
  }
  void take_mean(bool on, std::int64_t block) {
    smoothed = on;
    if (on) quant::channel_means(view(), block, mean.data());
  }
  void take_block_means(std::int64_t block) {
    smoothed = true;
    tokens_per_mean = block;
    quant::block_means(view(), block, mean.data());
  }
  void make_integers(ScaleGranularity granularity, quant::Side side, float levels) {
    integers.resize(x.size());
    scale.resize(quant::group_count(granularity, side, rows));
    std::vector<std::uint32_t> magnitudes(scale.size());
    quant::quantise_tokens(view(), means(), granularity, side, levels, integers.data(),
                           scale.data(), magnitudes.data());
  }
  void make_codes() {
    codes.resize(x.size());
    scale.resize(columns);
    quant::quantise_channels(view(), means(), codes.data(), scale.data());
  }
};

/// A product of two rows, and the product of their norms.
struct Product {
  double value = 0, norms = 0;
};

template <typename X, typename Y>
Product product_of(std::int64_t n, const X& x, const Y& y) {
  double sum = 0, x2 = 0, y2 = 0;
  for (std::int64_t d = 0; d < n; ++d) {
    sum += double{x(d)} * y(d);
    x2 += double{x(d)} * x(d);
    y2 += double{y(d)} * y(d);
  }
  return {sum, std::sqrt(x2 * y2)};
}

/// What tensor cores cut off the sum of some terms. An instruction aligns its products and the sum
/// so far to the largest of them and drops whatever lies more than kShortBits below that one's
/// leading bit; f32 takes over after kShortKeys keys. A term that has no such bits loses nothing.
class ShortSum {
 public:
  void add(std::int64_t key, double term) {
    terms_.push_back(std::abs(term));
    double& block = blocks_[key / kShortKeys];
    block += std::abs(term);
    largest_ = std::max(largest_, block);
  }
  double cut() const {
    if (!(largest_ > 0)) return 0;
    const double unit = std::exp2(std::ilogb(largest_) - kShortBits);
    double sum = 0;
    for (const double term : terms_) sum += term - std::floor(term / unit) * unit;
    const std::size_t steps = std::min(terms_.size() - 1, blocks_.size() * kShortSteps);
    return sum + static_cast<double>(steps) * unit;
  }

 private:
  std::vector<double> terms_;
  std::map<std::int64_t, double> blocks_;
  double largest_ = 0;
};

struct Score {
  std::int64_t key = 0;
  double s = 0, error = 0;  ///< error: δ.
  double weight = 0, keep = 1, uncertainty = 0;
};

class QuantisedHead {
 public:
  QuantisedHead(const Case& c, const Workload& w, std::int64_t b, std::int64_t h)
      : c_(c),
        scheme_(resolved(c.attention.precision, c.attention.quantization)),
        format_(WeightFormat::of(scheme_.pv, c.dtype)),
        b_(b),
        h_(h),
        rules_(c, w, b, h),
        span_(rules_.span()),
        q_(c, w.q, b, h, span_.q_begin, span_.q_len),
        k_(c, w.k, b, h / (c.heads_q / c.heads_kv), span_.kv_begin, span_.kv_len),
        v_(c, w.v, b, h / (c.heads_q / c.heads_kv), span_.kv_begin, span_.kv_len) {
    for (std::int64_t j = 0; j < span_.kv_len; ++j) {
      k_.used[j] = v_.used[j] = key_takes_part(c, b, h / (c.heads_q / c.heads_kv), j);
    }
    if (scheme_.smooth_q == SmoothQ::block) {
      q_.take_block_means(quant::kQueryBlock);
    } else {
      q_.take_mean(scheme_.smooth_q == SmoothQ::tensor, quant::kQueryBlock);
    }
    k_.take_mean(scheme_.smooth_k == Smoothing::on, quant::kKeyBlock);
    v_.take_mean(scheme_.smooth_v == Smoothing::on, quant::kKeyBlock);
    const float levels = quant::levels_of(c.attention.precision);
    q_.make_integers(scheme_.granularity, quant::Side::queries, levels);
    k_.make_integers(scheme_.granularity, quant::Side::keys, levels);
    values_ = values();
  }

  void run(QuantisedExpectation& out) {
    for (std::int64_t i = 0; i < span_.q_len; ++i) attend(i, out);
  }

 private:
  /// V's code as a number.
  double code(std::int64_t j, std::int64_t d) const {
    return quant::decode_e4m3(v_.codes[j * v_.columns + d]);
  }
  double scale_of(const Tokens& t, quant::Side side, std::int64_t i) const {
    return t.scale[quant::group_of(scheme_.granularity, side, i)];
  }
  /// V as it is multiplied.
  std::vector<double> values() {
    std::vector<double> out(v_.x.size());
    const DType half = c_.dtype == DType::f16 ? DType::f16 : DType::bf16;
    if (scheme_.pv == PvFormat::fp8) v_.make_codes();
    for (std::size_t x = 0; x < out.size(); ++x) {
      const auto d = static_cast<std::int64_t>(x) % v_.columns;
      out[x] = scheme_.pv == PvFormat::fp8
                   ? double{quant::decode_e4m3(v_.codes[x])} * v_.scale[d]
                   : rounded(v_.smooth(static_cast<std::int64_t>(x) / v_.columns, d), half);
    }
    return out;
  }

  Score score(std::int64_t i, std::int64_t j, const Product& taken) const;
  std::vector<Score> scores(std::int64_t i, const Product& taken) const;
  void attend(std::int64_t i, QuantisedExpectation& out) const;
  void store_output(std::int64_t i, const std::vector<Score>& row, double sink, double sink_error,
                    QuantisedExpectation& out) const;
  void store_lse(std::int64_t i, double value, double tolerance, QuantisedExpectation& out) const {
    const std::int64_t token = span_.q_begin + i;
    const std::int64_t at =
        c_.varlen() ? h_ * c_.seq_q + token : (b_ * c_.heads_q + h_) * c_.seq_q + token;
    out.values.lse.set(at, value);
    out.lse_f32.set(at, tolerance);
  }

  const Case& c_;
  Quantization scheme_;
  WeightFormat format_;
  std::int64_t b_, h_;
  HeadRules rules_;
  Span span_;
  Tokens q_, k_, v_;
  std::vector<double> values_;
};

/// `taken`: q_i · k̄, what smoothing K has taken from the row's products.
Score QuantisedHead::score(std::int64_t i, std::int64_t j, const Product& taken) const {
  const std::int64_t D = c_.head_dim;
  std::int64_t sum = 0;
  for (std::int64_t d = 0; d < D; ++d) {
    sum += std::int64_t{q_.integers[i * D + d]} * k_.integers[j * D + d];
  }
  double u = scale_of(q_, quant::Side::queries, i) * scale_of(k_, quant::Side::keys, j) *
             static_cast<double>(sum);
  double magnitude = std::abs(u);
  if (q_.smoothed) {
    const Product mean = product_of(
        D, [&](std::int64_t d) { return q_.mean_of(i)[d]; },
        [&](std::int64_t d) { return k_.smooth(j, d); });
    u += mean.value;
    magnitude += mean.norms;
  }
  const double cap = c_.attention.softcap;
  if (cap > 0) {
    u += taken.value;
    magnitude += taken.norms;
  }
  double s = c_.scale() * u;
  if (cap > 0) s = cap * std::tanh(s / cap);
  const double bias = rules_.bias(i, j);
  const double linear = rules_.slope() * rules_.distance(i, j);
  magnitude = std::abs(c_.scale()) * magnitude + cap + std::abs(bias) + linear;
  return {j, s + bias - linear, kUnit * (4 * magnitude + 8), 0, rules_.keep(i, j), 0};
}

/// Those of the keys that query i sees.
std::vector<Score> QuantisedHead::scores(std::int64_t i, const Product& taken) const {
  std::vector<Score> row;
  for (std::int64_t j = 0; j < span_.kv_len; ++j) {
    if (rules_.visible(i, j) && rules_.bias(i, j) != -kInfinity) row.push_back(score(i, j, taken));
  }
  return row;
}

void QuantisedHead::attend(std::int64_t i, QuantisedExpectation& out) const {
  Product taken;
  if (k_.smoothed) {
    taken = product_of(
        c_.head_dim, [&](std::int64_t d) { return q_.x[i * q_.columns + d]; },
        [&](std::int64_t d) { return k_.mean[d]; });
  }
  std::vector<Score> row = scores(i, taken);
  if (row.empty()) {
    store_lse(i, rules_.sink(), 4 * kUnit * (c_.sink ? std::abs(rules_.sink()) : 0), out);
    return;
  }
  const double joins = c_.attention.softcap > 0 ? 0 : c_.scale() * taken.value;
  const double joins_error =
      c_.attention.softcap > 0 ? 0 : 4 * kUnit * std::abs(c_.scale()) * taken.norms;
  double highest = -kInfinity, highest_error = 0;
  bool invalid = std::isnan(joins);
  for (const Score& x : row) {
    invalid = invalid || std::isnan(x.s);
    highest = std::max(highest, x.s);
    highest_error = std::max(highest_error, x.error);
  }
  if (invalid) {
    store_lse(i, kNan, 0, out);
    store_output(i, {{0, kNan, 0, kNan, 1, 0}}, 0, 0, out);
    return;
  }
  const double base = std::ceil(highest * kLog2E);
  const bool coarse = std::ceil((highest + highest_error) * kLog2E) > base;
  const double about = std::abs(highest) + std::abs(joins);
  const double sink = c_.sink ? std::exp2((rules_.sink() - joins) * kLog2E - base) : 0;
  const double sink_error =
      c_.sink ? kUnit * (4 * (std::abs(rules_.sink()) + about) + 8) + joins_error : 0;
  double sum = sink, weighted = sink * sink_error;
  for (Score& x : row) {
    x.error += 4 * kUnit * std::abs(highest);
    const double p = std::exp2(x.s * kLog2E - base);
    const double y = p * std::exp2(quant::kWeightExponent);
    x.weight = format_.round(y);
    x.uncertainty = format_.uncertainty(y, x.error, coarse);
    sum += p;
    weighted += p * x.error;
  }
  const double terms = static_cast<double>(row.size());
  const double lse = (base + std::log2(sum)) / kLog2E + joins;
  store_lse(i, lse,
            weighted / sum + kUnit * (std::sqrt(terms) + 8) + joins_error +
                4 * kUnit * (about + std::abs(lse)),
            out);
  store_output(i, row, sink * std::exp2(quant::kWeightExponent), sink_error, out);
}

/// o of query i, and its tolerance.
void QuantisedHead::store_output(std::int64_t i, const std::vector<Score>& row, double sink,
                                 double sink_error, QuantisedExpectation& out) const {
  const std::int64_t Dv = c_.head_dim_v;
  double sum = sink, kept = 0, uncertain = sink * sink_error;
  std::vector<double> o(Dv), squares(Dv), unsure(Dv);
  for (const Score& x : row) {
    sum += x.weight;
    kept += x.weight * x.keep;
    uncertain += x.uncertainty;
    const double weight = x.weight * x.keep;
    for (std::int64_t d = 0; weight != 0 && d < Dv; ++d) {
      const double term = weight * values_[x.key * Dv + d];
      o[d] += term;
      squares[d] += term * term;
    }
  }
  for (const Score& x : row) {
    for (std::int64_t d = 0; x.uncertainty > 0 && d < Dv; ++d) {
      unsure[d] += x.uncertainty * std::abs(x.keep * values_[x.key * Dv + d] - o[d] / sum);
    }
  }
  const double terms = static_cast<double>(row.size());
  const double half_denormal = c_.dtype == DType::f16 ? 0x1p-25 : 0x1p-150;
  const bool short_sums = scheme_.pv == PvFormat::fp8;
  ShortSum short_weights;
  for (const Score& x : row) {
    if (short_sums) short_weights.add(x.key, x.weight);
  }
  const std::int64_t first = row_index(c_, out.values.o, b_, h_, span_.q_begin + i);
  for (std::int64_t d = 0; d < Dv; ++d) {
    const double smooth = o[d] / sum;
    const double mean = v_.smoothed ? kept / sum * v_.mean[d] : 0;
    const double exact = smooth + mean;
    out.values.o.set(first + d, exact);
    const double flips = (unsure[d] + sink * sink_error * std::abs(smooth) +
                          (v_.smoothed ? uncertain * std::abs(v_.mean[d]) : 0)) /
                         (sum - uncertain);
    const double sums = kUnit * (std::sqrt(terms) + 8) *
                        (std::sqrt(squares[d]) / sum + std::abs(smooth) + std::abs(mean));
    ShortSum short_terms;
    for (const Score& x : row) {
      if (short_sums) short_terms.add(x.key, x.weight * x.keep * code(x.key, d));
    }
    const double short_error = (short_terms.cut() * (short_sums ? v_.scale[d] : 0) +
                                short_weights.cut() * (std::abs(smooth) + std::abs(mean))) /
                               sum;
    const double stored = unit_roundoff(c_.dtype);
    out.o_f32.set(first + d,
                  (1 + stored) * (flips + sums) + stored * std::abs(exact) + half_denormal);
    out.o_short.set(first + d, short_sums ? (1 + stored) * short_error : 0);
  }
}

}  // namespace

QuantisedExpectation expect_quantised(const Case& c, const Workload& w) {
  QuantisedExpectation e;
  e.values = make_wide_results(c);
  e.o_f32 = make_wide_results(c).o;
  e.o_short = make_wide_results(c).o;
  e.lse_f32 = make_wide_results(c).lse;
  for (Tensor* t : {&e.values.o, &e.o_f32, &e.o_short, &e.lse_f32}) t->fill(0);
  e.values.lse.fill(-kInfinity);
  for (std::int64_t b = 0; b < c.batch; ++b) {
    for (std::int64_t h = 0; h < c.heads_q; ++h) QuantisedHead(c, w, b, h).run(e);
  }
  return e;
}

}  // namespace tessera::test
