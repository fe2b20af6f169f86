// The scalar model of quantised attention: integers as quant/ makes them, everything else in
// double.
//
//   u_ij = s_q s_k (q̂_i · k̂_j) + q̄ · k'_j          k' = k − k̄; q̄ and k̄ only where smoothed
//   c_i  = q_i · k̄                                 what smoothing K took from every score of row i
//   s_ij = the score rules of scale · u_ij, or with a softcap of scale · (u_ij + c_i)
//   t = s log₂ e,  M_i = ⌈max_j t_ij⌉,  P_ij = round(2^(t_ij − M_i + 8))
//   o_i = s_v Σ_j P_ij z_ij v̂_j / Σ_j P_ij + v̄ Σ_j P_ij z_ij / Σ_j P_ij
//   lse_i = log Σ_j exp(s_ij) + scale · c_i          of the weights before their rounding
#include <algorithm>
#include <cmath>

#include "core/listed_keys.hpp"
#include "quant/quantize.hpp"
#include "reference/elements.hpp"
#include "reference/head.hpp"
#include "reference/passes.hpp"

namespace tessera::reference {
namespace {

constexpr double kLog2E = 1.44269504088896340736;

/// Hands out arrays from doubles; with a null base it only counts.
class DoubleCarver {
 public:
  explicit DoubleCarver(double* base) : base_(base) {}
  template <typename T>
  T* take(std::int64_t count) {
    T* p = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += (static_cast<std::size_t>(count) * sizeof(T) + sizeof(double) - 1) / sizeof(double);
    return p;
  }
  std::size_t used() const { return used_; }

 private:
  double* base_;
  std::size_t used_ = 0;
};

/// One head's tensors and what they are quantised to.
struct QuantisedHead {
  double *products, *weights, *o;
  float *q, *k, *v;  ///< As f32.
  bool* used;
  float *q_mean, *k_mean, *v_mean;
  float *q_scale, *k_scale, *v_scale;
  std::uint32_t* magnitudes;
  std::int8_t *q_int, *k_int;
  std::uint8_t* v_code;
  std::size_t doubles;

  QuantisedHead(const Problem& p, double* base) {
    DoubleCarver carver(base);
    const std::int64_t rows = std::max(p.seq_q, p.seq_kv) + quant::kQueryBlock;
    products = carver.take<double>(p.seq_kv);
    weights = carver.take<double>(p.seq_kv);
    o = carver.take<double>(p.head_dim_v);
    q = carver.take<float>(p.seq_q * p.head_dim);
    k = carver.take<float>(p.seq_kv * p.head_dim);
    v = carver.take<float>(p.seq_kv * p.head_dim_v);
    used = carver.take<bool>(p.seq_kv);
    q_mean = carver.take<float>((p.seq_q / quant::kQueryBlock + 1) * p.head_dim);
    k_mean = carver.take<float>(p.head_dim);
    v_mean = carver.take<float>(p.head_dim_v);
    q_scale = carver.take<float>(rows);
    k_scale = carver.take<float>(rows);
    v_scale = carver.take<float>(p.head_dim_v);
    magnitudes = carver.take<std::uint32_t>(rows);
    q_int = carver.take<std::int8_t>(p.seq_q * p.head_dim);
    k_int = carver.take<std::int8_t>(p.seq_kv * p.head_dim);
    v_code = carver.take<std::uint8_t>(p.seq_kv * p.head_dim_v);
    doubles = carver.used();
  }
};

float rounded_to_half(float x, DType dtype) {
  if (dtype == DType::f16) {
    f16 y;
    from_f32(x, y);
    return to_f32(y);
  }
  bf16 y;
  from_f32(x, y);
  return to_f32(y);
}

class QuantisedForward {
 public:
  QuantisedForward(const Problem& problem, const Arguments& arguments, double* memory)
      : problem_(problem),
        inputs_(arguments.inputs),
        outputs_(arguments.outputs),
        scheme_(problem.quantization),
        head_(problem, arguments.inputs, memory),
        x_(problem, memory + Head::doubles(problem)) {}

  void run(std::int64_t b, std::int64_t h) {
    head_.select(b, h);
    const Sequence& s = head_.sequence();
    load(b, h, s);
    quantise_head(s);
    for (std::int64_t i = 0; i < s.q_rows; ++i) {
      std::fill_n(x_.o, problem_.head_dim_v, 0.0);
      const double lse = i < s.q_len ? attend(i) : -kInfinity;
      const std::int64_t token = s.q_begin + i;
      store_row(outputs_.o, row_offset(outputs_.o, b, h, token), problem_.head_dim_v, x_.o);
      if (outputs_.lse.present()) store(outputs_.lse, lse_offset(outputs_.lse, b, h, token), lse);
    }
  }

 private:
  void load(std::int64_t b, std::int64_t h, const Sequence& s) {
    const std::int64_t h_kv = h / problem_.group();
    const auto load_f32 = [](const TensorView& t, std::int64_t offset, std::int64_t count,
                             float* out) {
      for (std::int64_t d = 0; d < count; ++d) {
        out[d] = static_cast<float>(reference::load(t, offset + d));
      }
    };
    for (std::int64_t i = 0; i < s.q_len; ++i) {
      load_f32(inputs_.q, row_offset(inputs_.q, b, h, s.q_begin + i), problem_.head_dim,
               x_.q + i * problem_.head_dim);
    }
    for (std::int64_t j = 0; j < s.kv_len; ++j) {
      const std::int64_t token = s.kv_begin + j;
      x_.used[j] = b < problem_.batch && is_key_listed(problem_, inputs_, b, h_kv, j);
      load_f32(inputs_.k, row_offset(inputs_.k, b, h_kv, token), problem_.head_dim,
               x_.k + j * problem_.head_dim);
      load_f32(inputs_.v, row_offset(inputs_.v, b, h_kv, token), problem_.head_dim_v,
               x_.v + j * problem_.head_dim_v);
    }
  }

  quant::Means q_means() const {
    if (scheme_.smooth_q == SmoothQ::none) return {};
    if (scheme_.smooth_q == SmoothQ::tensor) return {x_.q_mean};
    return {x_.q_mean, quant::kQueryBlock};
  }
  quant::Means k_means() const {
    return scheme_.smooth_k == Smoothing::on ? quant::Means{x_.k_mean} : quant::Means{};
  }
  quant::Means v_means() const {
    return scheme_.smooth_v == Smoothing::on ? quant::Means{x_.v_mean} : quant::Means{};
  }

  void quantise_head(const Sequence& s) {
    q_rows_ = {x_.q, s.q_len, problem_.head_dim, nullptr};
    k_rows_ = {x_.k, s.kv_len, problem_.head_dim, x_.used};
    v_rows_ = {x_.v, s.kv_len, problem_.head_dim_v, x_.used};
    if (scheme_.smooth_q == SmoothQ::tensor) {
      quant::channel_means(q_rows_, quant::kQueryBlock, x_.q_mean);
    } else if (scheme_.smooth_q == SmoothQ::block) {
      quant::block_means(q_rows_, quant::kQueryBlock, x_.q_mean);
    }
    quant::channel_means(k_rows_, quant::kKeyBlock, x_.k_mean);
    quant::channel_means(v_rows_, quant::kKeyBlock, x_.v_mean);
    const float levels = quant::levels_of(problem_.precision);
    quant::quantise_tokens(q_rows_, q_means(), scheme_.granularity, quant::Side::queries, levels,
                           x_.q_int, x_.q_scale, x_.magnitudes);
    quant::quantise_tokens(k_rows_, k_means(), scheme_.granularity, quant::Side::keys, levels,
                           x_.k_int, x_.k_scale, x_.magnitudes);
    quant::quantise_channels(v_rows_, v_means(), x_.v_code, x_.v_scale);
  }

  /// s_q s_k (q̂ · k̂) + q̄ · k'.
  double product(std::int64_t i, std::int64_t j) const {
    const std::int64_t D = problem_.head_dim;
    std::int64_t sum = 0;
    for (std::int64_t d = 0; d < D; ++d) {
      sum += std::int64_t{x_.q_int[i * D + d]} * x_.k_int[j * D + d];
    }
    const auto scale = [&](const float* scales, quant::Side side, std::int64_t token) {
      return double{scales[quant::group_of(scheme_.granularity, side, token)]};
    };
    double u = scale(x_.q_scale, quant::Side::queries, i) *
               scale(x_.k_scale, quant::Side::keys, j) * static_cast<double>(sum);
    const quant::Means means = q_means();
    for (std::int64_t d = 0; means.data != nullptr && d < D; ++d) {
      u += double{means.data[i / means.tokens_per_mean * D + d]} *
           k_means().subtract_from(k_rows_.at(j, d), k_rows_, j, d);
    }
    return u;
  }

  double weight(double exponent) const {
    const float p = static_cast<float>(std::exp2(exponent));
    return scheme_.pv == PvFormat::fp8 ? quant::round_to_e4m3(p)
                                       : rounded_to_half(p, problem_.dtype);
  }

  double value(std::int64_t j, std::int64_t d) const {
    const std::int64_t Dv = problem_.head_dim_v;
    if (scheme_.pv == PvFormat::fp8) {
      return double{quant::decode_e4m3(x_.v_code[j * Dv + d])} * x_.v_scale[d];
    }
    return rounded_to_half(v_means().subtract_from(v_rows_.at(j, d), v_rows_, j, d),
                           problem_.dtype);
  }

  /// The output row of query i, and its lse.
  double attend(std::int64_t i) {
    const std::int64_t kv_len = head_.sequence().kv_len;
    const std::int64_t D = problem_.head_dim;
    double taken = 0;  // c_i
    for (std::int64_t d = 0; scheme_.smooth_k == Smoothing::on && d < D; ++d) {
      taken += double{x_.q[i * D + d]} * x_.k_mean[d];
    }
    const double joins_before_cap = problem_.softcap > 0 ? taken : 0;
    for (std::int64_t j = 0; j < kv_len; ++j) {
      if (head_.attends(i, j)) x_.products[j] = product(i, j) + joins_before_cap;
    }
    head_.score(i, x_.products);
    const double joins_lse = problem_.softcap > 0 ? 0 : problem_.scale * taken;
    double highest = -kInfinity;
    for (std::int64_t j = 0; j < kv_len; ++j) {
      const double t = head_.s(j) * kLog2E;
      if (std::isnan(t) || t > highest) highest = t;
      if (std::isnan(highest)) break;
    }
    if (highest == -kInfinity) return head_.sink();  // no key to attend to

    const double base = std::ceil(highest);
    const double sink = std::exp2((head_.sink() - joins_lse) * kLog2E - base);
    double sum = sink * 0x1p8, exact = sink, applied = 0;
    for (std::int64_t j = 0; j < kv_len; ++j) {
      const double exponent = head_.s(j) * kLog2E - base;
      const double p = weight(exponent + quant::kWeightExponent);
      sum += p;
      exact += std::exp2(exponent);
      x_.weights[j] = head_.s(j) == -kInfinity ? 0 : p * head_.keep(i, j);
      applied += x_.weights[j];
    }
    const std::int64_t Dv = problem_.head_dim_v;
    for (std::int64_t j = 0; j < kv_len; ++j) {
      if (x_.weights[j] == 0) continue;
      for (std::int64_t d = 0; d < Dv; ++d) x_.o[d] += x_.weights[j] / sum * value(j, d);
    }
    for (std::int64_t d = 0; d < Dv; ++d) {
      if (scheme_.smooth_v == Smoothing::on) x_.o[d] += applied / sum * x_.v_mean[d];
    }
    return (base + std::log2(exact)) / kLog2E + joins_lse;
  }

  const Problem& problem_;
  const Inputs& inputs_;
  const Outputs& outputs_;
  const Quantization& scheme_;
  Head head_;
  QuantisedHead x_;
  quant::TokenRows q_rows_, k_rows_, v_rows_;
};

}  // namespace

std::size_t quantised_doubles(const Problem& problem) {
  return Head::doubles(problem) + QuantisedHead(problem, nullptr).doubles;
}

void quantised_forward(const Problem& problem, const Arguments& arguments) {
  const std::int64_t units = sequence_count(problem) * problem.heads_q;
  for_each_unit(problem, arguments, units, quantised_doubles(problem),
                [&](std::int64_t unit, double* memory) {
                  QuantisedForward pass(problem, arguments, memory);
                  pass.run(unit / problem.heads_q, unit % problem.heads_q);
                });
}

}  // namespace tessera::reference
