#include "check/naive.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/philox.hpp"
#include "core/sequences.hpp"

namespace tessera::cli {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

enum Index : std::size_t { kO, kLse, kDQ, kDK, kDV, kDBias, kDSink };

class Matrix {
 public:
  Matrix(std::int64_t rows, std::int64_t columns)
      : columns_(columns), elements_(static_cast<std::size_t>(rows * columns)) {}
  float* operator[](std::int64_t row) { return elements_.data() + row * columns_; }
  const float* operator[](std::int64_t row) const { return elements_.data() + row * columns_; }
  double largest() const {
    float largest = 0;
    for (float x : elements_) largest = std::max(largest, std::abs(x));
    return largest;
  }

 private:
  std::int64_t columns_;
  std::vector<float> elements_;
};

void add_scaled(float factor, const float* x, std::int64_t n, float* sum) {
  for (std::int64_t d = 0; d < n; ++d) sum[d] += factor * x[d];
}

double norm(const float* x, std::int64_t n) {
  double sum = 0;
  for (std::int64_t d = 0; d < n; ++d) sum += static_cast<double>(x[d]) * x[d];
  return std::sqrt(sum);
}

float rounded(float value, DType dtype) {
  if (dtype == DType::f32) return value;
  std::uint16_t stored = 0;
  store_real(&stored, dtype, value);
  return static_cast<float>(load_real(&stored, dtype));
}

void raise(double& most, double value) { most = std::max(most, value); }

// The fields that say where sequences and keys lie.
Problem problem_of(const AttentionCase& c, const Inputs& in) {
  Problem p;
  p.varlen = c.packed();
  const int tokens = p.varlen ? 0 : 2;
  p.batch = p.varlen ? in.cu_seqlens_q.size[0] - 1 : in.q.size[0];
  p.heads_q = in.q.size[1];
  p.heads_kv = in.k.size[1];
  p.seq_q = in.q.size[tokens];
  p.seq_kv = in.k.size[tokens];
  p.head_dim = in.q.size[in.q.rank - 1];
  p.head_dim_v = in.v.size[in.v.rank - 1];
  p.scale = c.attention.scale.value_or(1 / std::sqrt(static_cast<double>(p.head_dim)));
  p.causal = c.attention.causal;
  p.alignment = c.attention.alignment;
  p.window = c.attention.window;
  p.q_lens = c.q_lens.present();
  p.kv_lens = c.kv_lens.present();
  return p;
}

// Offset of a token's row in q, k, v, o or a gradient of theirs.
std::int64_t row_of(const TensorView& t, std::int64_t b, std::int64_t h, std::int64_t token) {
  if (t.rank == 3) return token * t.stride[0] + h * t.stride[1];
  return b * t.stride[0] + h * t.stride[1] + token * t.stride[2];
}

// Offset of a row of bias or mask.
std::int64_t broadcast_row(const TensorView& t, std::int64_t b, std::int64_t h, std::int64_t i) {
  return (t.size[0] == 1 ? 0 : b * t.stride[0]) + (t.size[1] == 1 ? 0 : h * t.stride[1]) +
         (t.size[2] == 1 ? 0 : i * t.stride[2]);
}

Matrix load(const TensorView& t, std::int64_t b, std::int64_t h, std::int64_t begin,
            std::int64_t rows) {
  const std::int64_t n = t.size[t.rank - 1];
  const std::int64_t width = size_of(t.dtype);
  Matrix m(rows, n);
  for (std::int64_t i = 0; i < rows; ++i) {
    const auto* row = static_cast<const std::byte*>(t.data) + row_of(t, b, h, begin + i) * width;
    for (std::int64_t d = 0; d < n; ++d) {
      m[i][d] = static_cast<float>(load_real(row + d * width, t.dtype));
    }
  }
  return m;
}

void store(const TensorView& t, std::int64_t b, std::int64_t h, std::int64_t token,
           const float* values, double factor = 1) {
  const std::int64_t width = size_of(t.dtype);
  auto* row = static_cast<std::byte*>(t.data) + row_of(t, b, h, token) * width;
  for (std::int64_t d = 0; d < t.size[t.rank - 1]; ++d) {
    store_real(row + d * width, t.dtype, factor * values[d]);
  }
}

// Squares of the errors that several query rows add to a gradient.
struct Squares {
  double in_f32 = 0;
  double through_o = 0;

  void add(double its_error_in_f32, double its_share_through_o) {
    in_f32 += its_error_in_f32 * its_error_in_f32;
    through_o += its_share_through_o * its_share_through_o;
  }
};

void raise(RoundingBound& bound, const Squares& squares, double factor) {
  raise(bound.in_f32, factor * std::sqrt(squares.in_f32));
  raise(bound.through_o, factor * std::sqrt(squares.through_o));
}

// Sums over the query heads and rows that share a key head.
struct KeyHead {
  KeyHead(const Problem& p, const Sequence& s)
      : d_k(s.kv_len, p.head_dim),
        d_v(s.kv_len, p.head_dim_v),
        d_s(static_cast<std::size_t>(s.kv_len)),
        weighted_d_o(d_s.size()) {}

  Matrix d_k, d_v;
  std::vector<Squares> d_s, weighted_d_o;  // per key
};

// Sums over everything that reads one element of the bias or the sink.
struct ElementSums {
  explicit ElementSums(std::int64_t elements)
      : sum(static_cast<std::size_t>(elements)), squares(sum.size()) {}

  std::vector<float> sum;
  std::vector<Squares> squares;
};

struct ScoreGradients {
  ElementSums bias, sink;
};

class NaiveHead {
 public:
  NaiveHead(const AttentionCase& c, const Inputs& in, const Problem& p, std::int64_t b,
            std::int64_t h)
      : c_(c),
        in_(in),
        p_(p),
        b_(b),
        h_(h),
        s_(sequence_of(p, in, b)),
        dtype_(c.q.dtype()),
        q_(load(in.q, b, h, s_.q_begin, s_.q_len)),
        k_(load(in.k, b, h / p.group(), s_.kv_begin, s_.kv_len)),
        v_(load(in.v, b, h / p.group(), s_.kv_begin, s_.kv_len)),
        scores_(s_.q_len, s_.kv_len),
        cap_slope_(s_.q_len, s_.kv_len),
        keep_(s_.q_len, s_.kv_len),
        o_(s_.q_len, p.head_dim_v),
        lse_(static_cast<std::size_t>(s_.q_len), -kInfinity),
        weight_error_(lse_.size()) {}

  const Sequence& sequence() const { return s_; }

  void forward(NaiveRun& run);
  void backward(NaiveRun& run, KeyHead& key_head, ScoreGradients& gradients) const;

 private:
  void fill_visible(std::int64_t i, std::vector<std::uint8_t>& visible) const;
  void fill_scores();
  float slope() const;
  std::int64_t lse_index(std::int64_t i) const {
    return ((p_.varlen ? 0 : b_) * p_.heads_q + h_) * p_.seq_q + s_.q_begin + i;
  }
  double sink() const { return c_.sink.present() ? c_.sink.at(h_) : -kInfinity; }
  float bias(std::int64_t i, std::int64_t j) const {
    return c_.bias.present()
               ? static_cast<float>(c_.bias.at(broadcast_row(in_.bias, b_, h_, i) + j))
               : 0;
  }

  const AttentionCase& c_;
  const Inputs& in_;
  const Problem& p_;
  std::int64_t b_, h_;
  Sequence s_;
  DType dtype_;
  Matrix q_, k_, v_;
  Matrix scores_, cap_slope_, keep_;  // scores are −inf where masked
  Matrix o_;                          // as stored
  std::vector<float> lse_;
  std::vector<double> weight_error_;  // relative, of exp(s − lse) in each row, in units of f32's u
};

float NaiveHead::slope() const {
  if (!c_.alibi_slopes.present()) return 0;
  const std::int64_t index = c_.alibi_slopes.rank() == 1 ? h_ : b_ * p_.heads_q + h_;
  return static_cast<float>(c_.alibi_slopes.at(index));
}

void NaiveHead::fill_visible(std::int64_t i, std::vector<std::uint8_t>& visible) const {
  std::fill(visible.begin(), visible.end(), std::uint8_t{0});
  const KeyRange range = visible_keys(p_, s_, i);
  for (std::int64_t j = range.begin; j < range.end; ++j) visible[j] = in_.block_mask == nullptr;
  if (in_.block_mask != nullptr) {
    const BlockMaskView& m = *in_.block_mask;
    const std::int64_t row =
        ((m.batch == 1 ? 0 : b_) * m.heads + (m.heads == 1 ? 0 : h_)) * m.q_blocks + i / m.block_q;
    for (std::int64_t e = m.row_offsets[row]; e < m.row_offsets[row + 1]; ++e) {
      const std::int64_t corner = m.columns[e] * m.block_kv;
      const std::int64_t bits_row = (m.bits_index[e] * m.block_q + i % m.block_q);
      for (std::int64_t j = std::max(corner, range.begin);
           j < std::min(corner + m.block_kv, range.end); ++j) {
        const std::int64_t bit = j - corner;
        visible[j] = m.bits_index[e] < 0 ||
                     (m.bits[bits_row * m.words_per_row() + bit / 32] >> bit % 32 & 1u) != 0;
      }
    }
  }
  if (!c_.mask.present()) return;
  const std::uint8_t* mask = c_.mask.as<std::uint8_t>() + broadcast_row(in_.mask, b_, h_, i);
  for (std::int64_t j = range.begin; j < range.end; ++j) visible[j] &= mask[j] != 0;
}

void NaiveHead::fill_scores() {
  const auto scale = static_cast<float>(p_.scale);
  const auto cap = static_cast<float>(c_.attention.softcap);
  const double p_drop = c_.attention.dropout_p;
  const DropoutStream dropout(p_drop, c_.seed, c_.offset);
  Matrix k_transposed(p_.head_dim, s_.kv_len);
  std::vector<double> k_norm(static_cast<std::size_t>(s_.kv_len));
  for (std::int64_t j = 0; j < s_.kv_len; ++j) {
    k_norm[j] = norm(k_[j], p_.head_dim);
    for (std::int64_t d = 0; d < p_.head_dim; ++d) k_transposed[d][j] = k_[j][d];
  }
  const float alibi_slope = slope();
  std::vector<std::uint8_t> visible(k_norm.size());
  for (std::int64_t i = 0; i < s_.q_len; ++i) {
    double magnitude = c_.sink.present() ? std::abs(sink()) : 0;
    float* row = scores_[i];
    for (std::int64_t d = 0; d < p_.head_dim; ++d) {
      add_scaled(q_[i][d], k_transposed[d], s_.kv_len, row);
    }
    const double q_norm = norm(q_[i], p_.head_dim);
    fill_visible(i, visible);
    for (std::int64_t j = 0; j < s_.kv_len; ++j) {
      const float b = visible[j] ? bias(i, j) : -kInfinity;
      if (b == -kInfinity) {
        row[j] = -kInfinity;
        continue;
      }
      const float distance =
          alibi_slope * static_cast<float>(std::abs(static_cast<double>(i + s_.shift - j)));
      float score = scale * row[j];
      cap_slope_[i][j] = 1;
      if (cap > 0) {
        const float t = std::tanh(score / cap);
        cap_slope_[i][j] = 1 - t * t;
        score = cap * t;
      }
      row[j] = score + b - distance;
      keep_[i][j] = p_drop == 0 ? 1 : dropout.kept(b_, h_, i, j) ? dropout.keep_scale : 0;
      raise(magnitude, std::abs(p_.scale) * q_norm * k_norm[j] + cap + std::abs(b) + distance);
    }
    // A score and the LSE are rounded at that magnitude, and a few elementary steps come on top.
    weight_error_[i] = 2 * (magnitude + 4);
  }
}

void NaiveHead::forward(NaiveRun& run) {
  fill_scores();
  const TensorView o = c_.tokens_view(run.results.o);
  std::vector<float> sum(static_cast<std::size_t>(p_.head_dim_v));
  for (std::int64_t i = 0; i < s_.q_len; ++i) {
    float most = static_cast<float>(sink());
    for (std::int64_t j = 0; j < s_.kv_len; ++j) most = std::max(most, scores_[i][j]);
    std::fill(sum.begin(), sum.end(), 0.0f);
    if (most != -kInfinity) {
      float denominator = c_.sink.present() ? std::exp(static_cast<float>(sink()) - most) : 0;
      for (std::int64_t j = 0; j < s_.kv_len; ++j) denominator += std::exp(scores_[i][j] - most);
      lse_[i] = most + std::log(denominator);
      for (std::int64_t j = 0; j < s_.kv_len; ++j) {
        if (scores_[i][j] == -kInfinity) continue;
        const float p = std::exp(scores_[i][j] - most) / denominator;
        add_scaled(rounded(p * keep_[i][j], dtype_), v_[j], p_.head_dim_v, sum.data());
      }
    }
    for (std::int64_t d = 0; d < p_.head_dim_v; ++d) o_[i][d] = rounded(sum[d], dtype_);
    store(o, b_, h_, s_.q_begin + i, o_[i]);
    run.results.lse.set(lse_index(i), lse_[i]);
  }
  const auto terms = static_cast<double>(s_.kv_len);
  const double v_most = v_.largest() / (1 - c_.attention.dropout_p);
  for (double error : weight_error_) {
    raise(run.bounds[kO].in_f32, (error + std::sqrt(terms)) * v_most);
    raise(run.bounds[kLse].in_f32, error + std::sqrt(terms));
  }
  for (std::size_t index : {kO, kLse}) {
    raise(run.bounds[index].terms, terms);
  }
}

void NaiveHead::backward(NaiveRun& run, KeyHead& key_head, ScoreGradients& gradients) const {
  const std::int64_t Dv = p_.head_dim_v;
  const Matrix d_o = load(c_.tokens_view(c_.d_o), b_, h_, s_.q_begin, s_.q_len);
  Matrix v_transposed(Dv, s_.kv_len);
  std::vector<double> v_norm(static_cast<std::size_t>(s_.kv_len));
  for (std::int64_t j = 0; j < s_.kv_len; ++j) {
    v_norm[j] = norm(v_[j], Dv);
    for (std::int64_t d = 0; d < Dv; ++d) v_transposed[d][j] = v_[j][d];
  }
  const double root_terms = std::sqrt(static_cast<double>(std::max(s_.kv_len, s_.q_len)));
  const double to_d_q = std::abs(p_.scale) * k_.largest();
  std::vector<float> d_p(v_norm.size());
  std::vector<float> d_q(static_cast<std::size_t>(p_.head_dim));
  for (std::int64_t i = 0; i < s_.q_len; ++i) {
    if (lse_[i] == -kInfinity) continue;
    const float d_lse = c_.d_lse.present() ? static_cast<float>(c_.d_lse.at(lse_index(i))) : 0;
    float delta = 0;
    double products = 0;
    double d_o_most = 0;
    for (std::int64_t d = 0; d < Dv; ++d) {
      const float product = d_o[i][d] * o_[i][d];
      delta += product;
      products += static_cast<double>(product) * product;
      raise(d_o_most, std::abs(d_o[i][d]));
    }
    const double through_o = std::sqrt(products);
    std::fill(d_p.begin(), d_p.end(), 0.0f);
    std::fill(d_q.begin(), d_q.end(), 0.0f);
    for (std::int64_t d = 0; d < Dv; ++d) {
      add_scaled(d_o[i][d], v_transposed[d], s_.kv_len, d_p.data());
    }
    const double d_o_norm = norm(d_o[i], Dv);
    const double delta_magnitude = d_o_norm * norm(o_[i], Dv) + std::abs(d_lse);
    double row_error = 0;
    for (std::int64_t j = 0; j < s_.kv_len; ++j) {
      if (scores_[i][j] == -kInfinity) continue;
      const float p = std::exp(scores_[i][j] - lse_[i]);
      const float z = keep_[i][j];
      const float d_s = p * (z * d_p[j] - delta + d_lse);
      const float d_qk = rounded(d_s * cap_slope_[i][j], dtype_);
      add_scaled(rounded(p * z, dtype_), d_o[i], Dv, key_head.d_v[j]);
      add_scaled(d_qk, q_[i], p_.head_dim, key_head.d_k[j]);
      add_scaled(d_qk, k_[j], p_.head_dim, d_q.data());
      // dS = p (z dP − delta + d_lse): the weight's error, and that of the two inner products.
      const double error = (weight_error_[i] + root_terms) * std::abs(d_s) +
                           p * std::sqrt(Dv) * (d_o_norm * v_norm[j] * z + delta_magnitude);
      row_error += error;
      key_head.d_s[j].add(error, p * through_o);
      key_head.weighted_d_o[j].add((weight_error_[i] + root_terms) * p * z * d_o_most, 0);
      if (c_.bias.present()) {
        const std::int64_t at = broadcast_row(in_.bias, b_, h_, i) + j;
        gradients.bias.sum[at] += d_s;
        gradients.bias.squares[at].add(error, p * through_o);
      }
    }
    if (run.results.d_q.present()) {
      store(c_.tokens_view(run.results.d_q), b_, h_, s_.q_begin + i, d_q.data(), p_.scale);
    }
    raise(run.bounds[kDQ].in_f32, to_d_q * row_error);
    raise(run.bounds[kDQ].through_o, to_d_q * through_o);
    if (c_.sink.present()) {
      const float p_sink = std::exp(static_cast<float>(sink()) - lse_[i]);
      gradients.sink.sum[h_] += p_sink * (d_lse - delta);
      gradients.sink.squares[h_].add(
          (weight_error_[i] + root_terms + std::sqrt(Dv)) * p_sink * delta_magnitude,
          p_sink * through_o);
    }
  }
  raise(run.bounds[kDQ].terms, static_cast<double>(s_.kv_len));
  const double to_d_k = std::abs(p_.scale) * q_.largest();
  for (std::int64_t j = 0; j < s_.kv_len; ++j) {
    raise(run.bounds[kDV], key_head.weighted_d_o[j], 1);
    raise(run.bounds[kDK], key_head.d_s[j], to_d_k);
  }
}

// Query heads that share a key head, one after another.
void run_key_head(const AttentionCase& c, const Inputs& in, const Problem& p, std::int64_t b,
                  std::int64_t h_kv, NaiveRun& run, ScoreGradients& gradients) {
  KeyHead key_head(p, sequence_of(p, in, b));
  std::int64_t queries = 0;
  for (std::int64_t h = h_kv * p.group(); h < (h_kv + 1) * p.group(); ++h) {
    NaiveHead head(c, in, p, b, h);
    head.forward(run);
    if (!c.backward()) continue;
    head.backward(run, key_head, gradients);
    queries += head.sequence().q_len;
  }
  if (!c.backward()) return;
  const Sequence s = sequence_of(p, in, b);
  for (std::int64_t j = 0; j < s.kv_len; ++j) {
    store(c.tokens_view(run.results.d_k), b, h_kv, s.kv_begin + j, key_head.d_k[j], p.scale);
    store(c.tokens_view(run.results.d_v), b, h_kv, s.kv_begin + j, key_head.d_v[j]);
  }
  const auto terms = static_cast<double>(queries);
  raise(run.bounds[kDK].terms, terms);
  raise(run.bounds[kDV].terms, terms);
  run.bounds[kDBias].terms += terms;
  run.bounds[kDSink].terms += terms;
}

}  // namespace

NaiveRun run_naive(const AttentionCase& attention_case) {
  const AttentionCase& c = attention_case;
  const Inputs in = c.inputs();
  const Problem p = problem_of(c, in);
  NaiveRun run;
  run.results = allocate_results(c, all_gradients(c));
  for (const NamedResult& result : kResults) {
    HostTensor& tensor = run.results.*result.tensor;
    if (tensor.present()) tensor.fill_zero();
  }
  for (std::int64_t i = 0; i < run.results.lse.elements(); ++i) run.results.lse.set(i, -kInfinity);
  ScoreGradients gradients{ElementSums(c.backward() ? c.bias.elements() : 0),
                           ElementSums(c.backward() ? c.sink.elements() : 0)};
  for (std::int64_t b = 0; b < p.batch; ++b) {
    for (std::int64_t h = 0; h < p.heads_kv; ++h) run_key_head(c, in, p, b, h, run, gradients);
  }
  const auto finish = [](const ElementSums& sums, HostTensor& tensor, RoundingBound& bound) {
    for (std::size_t i = 0; i < sums.sum.size(); ++i) {
      tensor.set(static_cast<std::int64_t>(i), sums.sum[i]);
      raise(bound, sums.squares[i], 1);
    }
  };
  finish(gradients.bias, run.results.d_bias, run.bounds[kDBias]);
  finish(gradients.sink, run.results.d_sink, run.bounds[kDSink]);
  return run;
}

double unit_roundoff(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return 0x1p-53;
    case DType::f16:
      return 0x1p-11;
    case DType::bf16:
      return 0x1p-8;
    default:
      return 0x1p-24;
  }
}

double rounding_allowance(const NaiveRun& naive, std::size_t index, DType dtype, DType stored,
                          const HostTensor& exact) {
  const RoundingBound& bound = naive.bounds[index];
  double largest = 0;
  for (std::int64_t i = 0; i < exact.elements(); ++i) {
    if (std::isfinite(exact.at(i))) raise(largest, std::abs(exact.at(i)));
  }
  const double u = unit_roundoff(DType::f32);
  const double extreme = 1 + std::sqrt(2 * std::log(std::max<double>(exact.elements(), 1)));
  const double half_denormal = stored == DType::f16 ? 0x1p-25 : 0x1p-150;
  return extreme * (u * bound.in_f32 + unit_roundoff(dtype) * bound.through_o) +
         (u * std::sqrt(bound.terms) + unit_roundoff(stored)) * largest + half_denormal;
}

}  // namespace tessera::cli
