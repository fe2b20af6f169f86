#include "support/naive.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace tessera::test {
namespace {

/// Standard deviations that the worst of many roundings may be off by.
constexpr double kDeviations = 4;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Dense row-major matrix.
class Matrix {
 public:
  Matrix(std::int64_t rows, std::int64_t columns) : columns_(columns), data_(rows * columns) {}
  float* operator[](std::int64_t i) { return data_.data() + i * columns_; }
  const float* operator[](std::int64_t i) const { return data_.data() + i * columns_; }
  std::int64_t columns() const { return columns_; }
  /// Largest magnitude, NaN left out: poison is not data.
  double largest() const {
    float most = 0;
    for (float x : data_) most = std::max(most, std::abs(x));
    return most;
  }

 private:
  std::int64_t columns_;
  std::vector<float> data_;
};

float dot(const float* x, const float* y, std::int64_t n) {
  float sums[8] = {};
  std::int64_t d = 0;
  for (; d + 8 <= n; d += 8) {
    for (int u = 0; u < 8; ++u) sums[u] += x[d + u] * y[d + u];
  }
  float sum = 0;
  for (; d < n; ++d) sum += x[d] * y[d];
  for (float part : sums) sum += part;
  return sum;
}

void add_scaled(float a, const float* x, std::int64_t n, float* y) {
  for (std::int64_t d = 0; d < n; ++d) y[d] += a * x[d];
}

double largest(const float* x, std::int64_t n) {
  float most = 0;
  for (std::int64_t d = 0; d < n; ++d) most = std::max(most, std::abs(x[d]));
  return most;
}

/// Root of Σ (x · y)², the spread of a dot product's terms.
double product_norm(const float* x, const float* y, std::int64_t n) {
  double sum = 0;
  for (std::int64_t d = 0; d < n; ++d) sum += double(x[d]) * y[d] * x[d] * y[d];
  return std::sqrt(sum);
}

double norm(const float* x, std::int64_t n) { return std::sqrt(double(dot(x, x, n))); }

Matrix load(const Case& c, const Tensor& t, std::int64_t b, std::int64_t h, std::int64_t begin,
            std::int64_t rows) {
  Matrix m(rows, t.size(t.view().rank - 1));
  for (std::int64_t i = 0; i < rows; ++i) {
    const auto row = t.row(row_index(c, t, b, h, begin + i));
    std::copy(row.begin(), row.end(), m[i]);
  }
  return m;
}

void store(const Case& c, Tensor& t, std::int64_t b, std::int64_t h, std::int64_t token,
           const float* row, double factor = 1) {
  const std::int64_t index = row_index(c, t, b, h, token);
  const std::int64_t n = t.size(t.view().rank - 1);
  for (std::int64_t d = 0; d < n; ++d) t.set(index + d, rounded(factor * row[d], c.dtype));
}

void raise(double& most, double value) { most = std::max(most, value); }

/// Sums of squares that make a Bound.
struct Squares {
  double spread = 0, direct = 0, through_o = 0;

  /// Adds one element's term: d_s, its dot product's |x| |y| and its share of delta's error.
  void add(double d_s, double norms, double delta) {
    spread += d_s * d_s;
    direct += norms * norms;
    through_o += delta * delta;
  }
  void raise_to(Bound& bound, double factor) const {
    raise(bound.spread, factor * std::sqrt(spread));
    raise(bound.direct, factor * std::sqrt(direct));
    raise(bound.through_o, factor * std::sqrt(through_o));
  }
};

/// Gradients of one key head, summed over its query heads.
struct KeyHead {
  Matrix d_k, d_v;
  std::vector<Squares> d_k_squares, d_v_squares;  // per key

  KeyHead(const Case& c, const Span& span)
      : d_k(span.kv_len, c.head_dim),
        d_v(span.kv_len, c.head_dim_v),
        d_k_squares(span.kv_len),
        d_v_squares(span.kv_len) {}
};

/// Sums across heads: d_bias's terms, element by element, and the sinks'.
struct SharedSums {
  std::vector<Squares> d_bias;
  Squares d_sink;
};

/// One query head of one sequence, everything dense.
class NaiveHead {
 public:
  NaiveHead(const Case& c, const Workload& w, std::int64_t b, std::int64_t h)
      : c_(c),
        w_(w),
        b_(b),
        h_(h),
        rules_(c, w, b, h),
        span_(rules_.span()),
        q_(load(c, w.q, b, h, span_.q_begin, span_.q_len)),
        k_(load(c, w.k, b, h / (c.heads_q / c.heads_kv), span_.kv_begin, span_.kv_len)),
        v_(load(c, w.v, b, h / (c.heads_q / c.heads_kv), span_.kv_begin, span_.kv_len)),
        sink_(rules_.sink()),
        s_(span_.q_len, span_.kv_len),
        cap_slope_(span_.q_len, span_.kv_len),
        z_(span_.q_len, span_.kv_len),
        p_(span_.q_len, span_.kv_len),
        o_(span_.q_len, c.head_dim_v),
        lse_(span_.q_len) {}

  double q_largest() const { return q_.largest(); }
  void forward(Naive& out);
  void backward(Naive& out, KeyHead& key_head, SharedSums& shared) const;

 private:
  void fill_scores(Bounds& bounds);
  float round(double x) const { return static_cast<float>(rounded(x, c_.dtype)); }

  const Case& c_;
  const Workload& w_;
  std::int64_t b_, h_;
  HeadRules rules_;
  Span span_;
  Matrix q_, k_, v_;
  double sink_;
  Matrix s_, cap_slope_, z_, p_, o_;
  std::vector<double> lse_;
};

/// s_ (−inf where masked), cap_slope_ and z_.
void NaiveHead::fill_scores(Bounds& bounds) {
  const double scale = c_.scale();
  const double cap = c_.attention.softcap;
  const double slope = rules_.slope();
  std::vector<double> k_norm(span_.kv_len);
  for (std::int64_t j = 0; j < span_.kv_len; ++j) k_norm[j] = norm(k_[j], c_.head_dim);

  double magnitude = c_.sink ? std::abs(sink_) : 0;
  for (std::int64_t i = 0; i < span_.q_len; ++i) {
    const double q_norm = norm(q_[i], c_.head_dim);
    for (std::int64_t j = 0; j < span_.kv_len; ++j) {
      s_[i][j] = -kInfinity;
      if (!rules_.visible(i, j)) continue;
      const auto bias = static_cast<float>(rules_.bias(i, j));
      if (bias == -kInfinity) continue;
      const double distance = rules_.distance(i, j);
      float s = round(scale * dot(q_[i], k_[j], c_.head_dim));
      cap_slope_[i][j] = 1;
      if (cap > 0) {
        const auto t = static_cast<float>(std::tanh(s / cap));
        cap_slope_[i][j] = 1 - t * t;
        s = round(cap * t);
      }
      if (c_.bias) s = round(s + bias);
      if (c_.alibi_rank > 0) s = round(s - slope * distance);
      s_[i][j] = s;
      z_[i][j] = static_cast<float>(rules_.keep(i, j));
      raise(magnitude,
            std::abs(scale) * q_norm * k_norm[j] + cap + std::abs(bias) + slope * distance);
    }
  }
  raise(bounds.weight, 2 * (magnitude + 4));
}

void NaiveHead::forward(Naive& out) {
  fill_scores(out.bounds);
  const double v_most = v_.largest();
  for (std::int64_t i = 0; i < span_.q_len; ++i) {
    Squares squares;
    auto m = static_cast<float>(sink_);
    for (std::int64_t j = 0; j < span_.kv_len; ++j) m = std::max(m, s_[i][j]);
    lse_[i] = m;
    if (m != -kInfinity) {
      auto l = static_cast<float>(std::exp(sink_ - m));
      for (std::int64_t j = 0; j < span_.kv_len; ++j) l += std::exp(s_[i][j] - m);
      for (std::int64_t j = 0; j < span_.kv_len; ++j) {
        if (s_[i][j] == -kInfinity) continue;
        p_[i][j] = round(std::exp(s_[i][j] - m) / l);
        add_scaled(round(p_[i][j] * z_[i][j]), v_[j], c_.head_dim_v, o_[i]);
        squares.add(p_[i][j] * z_[i][j], 0, 0);
      }
      squares.raise_to(out.bounds.o, v_most);
      lse_[i] += std::log(l);
    }
    store(c_, out.results.o, b_, h_, span_.q_begin + i, o_[i]);
  }
  raise(out.bounds.o.terms, static_cast<double>(span_.kv_len));
  out.bounds.lse.spread = 1;  // an error of the weights is one of the LSE
  raise(out.bounds.lse.terms, static_cast<double>(span_.kv_len));
}

void NaiveHead::backward(Naive& out, KeyHead& key_head, SharedSums& shared) const {
  const std::int64_t D = c_.head_dim;
  const std::int64_t Dv = c_.head_dim_v;
  const Matrix d_o = load(c_, w_.d_o, b_, h_, span_.q_begin, span_.q_len);
  const double k_most = std::abs(c_.scale()) * k_.largest();
  std::vector<double> v_norm(span_.kv_len);
  for (std::int64_t j = 0; j < span_.kv_len; ++j) v_norm[j] = norm(v_[j], Dv);
  std::vector<float> d_p(span_.kv_len), d_q(D);
  for (std::int64_t i = 0; i < span_.q_len; ++i) {
    const std::int64_t token = span_.q_begin + i;
    float d_lse = 0;
    if (c_.d_lse) {
      d_lse =
          static_cast<float>(c_.varlen() ? w_.d_lse.at({h_, token}) : w_.d_lse.at({b_, h_, token}));
    }
    float delta = 0;
    for (std::int64_t j = 0; j < span_.kv_len; ++j) {
      if (s_[i][j] == -kInfinity) continue;
      d_p[j] = round(round(dot(d_o[i], v_[j], Dv)) * z_[i][j]);
      delta += p_[i][j] * d_p[j];
    }
    const double d_o_norm = norm(d_o[i], Dv);
    const double d_o_most = largest(d_o[i], Dv);
    const double delta_error = product_norm(d_o[i], o_[i], Dv);
    Squares d_q_squares;
    std::fill(d_q.begin(), d_q.end(), 0.0f);
    for (std::int64_t j = 0; j < span_.kv_len; ++j) {
      if (s_[i][j] == -kInfinity) continue;
      const float p = p_[i][j];
      const float d_s = round(p * (d_p[j] - delta + d_lse));
      const float d_qk = round(d_s * cap_slope_[i][j]);
      add_scaled(round(p * z_[i][j]), d_o[i], Dv, key_head.d_v[j]);
      add_scaled(d_qk, q_[i], D, key_head.d_k[j]);
      add_scaled(d_qk, k_[j], D, d_q.data());

      const double norms = p * (d_o_norm * v_norm[j] * z_[i][j] + std::abs(d_lse));
      d_q_squares.add(d_s, norms, 0);
      key_head.d_k_squares[j].add(d_s, norms, p * delta_error);
      key_head.d_v_squares[j].add(p * z_[i][j] * d_o_most, 0, 0);
      if (c_.bias) {
        const std::int64_t at = rules_.bias_index(out.results.d_bias, i, j);
        out.results.d_bias.set(at, out.results.d_bias.get(at) + d_s);
        shared.d_bias[at].add(d_s, norms, p * delta_error);
      }
    }
    store(c_, out.results.d_q, b_, h_, token, d_q.data(), c_.scale());
    // delta's error is the same for the whole row, whose weights add up to at most 1.
    d_q_squares.add(0, 0, delta_error);
    d_q_squares.raise_to(out.bounds.d_q, k_most);
    if (c_.sink) {
      const double p_sink = std::exp(sink_ - lse_[i]);
      out.results.d_sink.put({h_}, out.results.d_sink.at({h_}) + p_sink * (d_lse - delta));
      shared.d_sink.add(p_sink * (d_lse - delta), p_sink * (std::abs(d_lse) + delta_error),
                        p_sink * delta_error);
    }
  }
  raise(out.bounds.d_q.terms, static_cast<double>(span_.kv_len));
}

/// Results in f32, all zero.
Results zero_results(const Case& c) {
  Case single = c;
  single.dtype = DType::f32;
  single.layout = LayoutKind::contiguous;
  Results r = make_results(single);
  for (Tensor* t : {&r.o, &r.d_q, &r.d_k, &r.d_v, &r.d_bias, &r.d_sink}) {
    if (t->present()) t->fill(0);
  }
  return r;
}

}  // namespace

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

double rounding_allowance(const Bounds& bounds, const Bound& bound, DType dtype, DType stored,
                          double largest) {
  const double half_denormal = stored == DType::f16 ? 0x1p-25 : 0x1p-150;
  const double weighted = (bounds.weight + std::sqrt(bound.terms)) * (bound.spread + largest);
  // Rounding o to nearest errs by u / √3 of an element or less, in the root of the mean square.
  const double through_o = unit_roundoff(dtype) / std::sqrt(3.0) * bound.through_o;
  return unit_roundoff(DType::f32) * (weighted + kDeviations * bound.direct) +
         kDeviations * through_o + unit_roundoff(stored) * largest + half_denormal;
}

double naive_allowance(const Bounds& bounds, const Bound& bound, DType dtype, double largest) {
  // A score is rounded once after each of scale · QKᵀ, softcap, bias and ALiBi; P, dP and dS once
  // each.
  const double weight = 4 * bounds.weight + 4;
  const double half_denormal = dtype == DType::f16 ? 0x1p-25 : 0x1p-150;
  const double weighted = (weight + std::sqrt(bound.terms)) * (bound.spread + largest);
  return unit_roundoff(dtype) * (weighted + kDeviations * bound.direct + bound.through_o) +
         half_denormal * (bound.terms + 1);
}

Naive naive_attention(const Case& c, const Workload& w) {
  Naive out;
  out.results = zero_results(c);
  SharedSums shared;
  shared.d_bias.resize(out.results.d_bias.count());
  Bounds& bounds = out.bounds;
  const std::int64_t group = c.heads_q / c.heads_kv;
  for (std::int64_t b = 0; b < c.batch; ++b) {
    const Span span = span_of(c, b);
    for (std::int64_t h_kv = 0; h_kv < c.heads_kv; ++h_kv) {
      KeyHead key_head(c, span);
      double q_most = 0;
      for (std::int64_t h = h_kv * group; h < (h_kv + 1) * group; ++h) {
        NaiveHead head(c, w, b, h);
        head.forward(out);
        if (c.backward) head.backward(out, key_head, shared);
        raise(q_most, std::abs(c.scale()) * head.q_largest());
      }
      if (!c.backward) continue;
      for (std::int64_t j = 0; j < span.kv_len; ++j) {
        store(c, out.results.d_k, b, h_kv, span.kv_begin + j, key_head.d_k[j], c.scale());
        store(c, out.results.d_v, b, h_kv, span.kv_begin + j, key_head.d_v[j]);
        key_head.d_k_squares[j].raise_to(bounds.d_k, q_most);
        key_head.d_v_squares[j].raise_to(bounds.d_v, 1);
      }
    }
    raise(bounds.d_k.terms, static_cast<double>(group * span.q_len));
    bounds.d_v.terms = bounds.d_k.terms;
    bounds.d_sink.terms += static_cast<double>(span.q_len);
    bounds.d_bias.terms += static_cast<double>(c.heads_q * span.q_len);
  }
  for (const Squares& squares : shared.d_bias) squares.raise_to(bounds.d_bias, 1);
  shared.d_sink.raise_to(bounds.d_sink, 1);
  return out;
}

}  // namespace tessera::test
