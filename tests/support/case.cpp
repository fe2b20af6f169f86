#include "support/case.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace tessera::test {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

std::string describe(const Extents& e) {
  return std::string(e.batch ? "b" : "") + (e.heads ? "h" : "") + (e.queries ? "q" : "");
}

std::string describe(const std::vector<std::int32_t>& values) {
  std::string s;
  for (std::int32_t value : values) s += (s.empty() ? "" : ",") + std::to_string(value);
  return s;
}

/// The precision and those pieces of its scheme that are not automatic.
std::string describe(const Attention& a) {
  const Quantization& q = a.quantization;
  std::string s = tessera::name_of(a.precision);
  const auto add = [&s](bool on, const std::string& text) {
    if (on) s += ":" + text;
  };
  add(q.granularity != ScaleGranularity::automatic, tessera::name_of(q.granularity));
  add(q.smooth_q != SmoothQ::automatic, std::string("smooth_q=") + tessera::name_of(q.smooth_q));
  add(q.smooth_k != Smoothing::automatic, q.smooth_k == Smoothing::on ? "smooth_k" : "no_smooth_k");
  add(q.smooth_v != Smoothing::automatic, q.smooth_v == Smoothing::on ? "smooth_v" : "no_smooth_v");
  add(q.pv != PvFormat::automatic, std::string("pv=") + tessera::name_of(q.pv));
  return s;
}

const char* name_of(LayoutKind kind) {
  switch (kind) {
    case LayoutKind::contiguous:
      return "contiguous";
    case LayoutKind::bshd:
      return "bshd";
    case LayoutKind::padded:
      return "padded";
    case LayoutKind::reversed:
      return "reversed";
    case LayoutKind::packed_qkv:
      return "packed_qkv";
    case LayoutKind::broadcast_kv:
      return "broadcast_kv";
  }
  return "";
}

Layout tensor_layout(LayoutKind kind) {
  switch (kind) {
    case LayoutKind::bshd:
      return Layout::bshd;
    case LayoutKind::padded:
      return Layout::padded;
    case LayoutKind::reversed:
      return Layout::reversed;
    default:
      return Layout::contiguous;
  }
}

std::vector<std::int64_t> token_shape(const Case& c, std::int64_t heads, std::int64_t tokens,
                                      std::int64_t last) {
  if (c.varlen()) return {tokens, heads, last};
  return {c.batch, heads, tokens, last};
}

std::vector<std::int64_t> lse_shape(const Case& c) {
  if (c.varlen()) return {c.heads_q, c.seq_q};
  return {c.batch, c.heads_q, c.seq_q};
}

/// Shape of a bias or mask; in packed problems a little larger than the longest sequences.
std::vector<std::int64_t> score_shape(const Case& c, const Extents& e) {
  const std::int64_t queries = c.varlen() ? longest_q(c) + 2 : c.seq_q;
  const std::int64_t keys = c.varlen() ? longest_kv(c) + 3 : c.seq_kv;
  return {e.batch ? c.batch : 1, e.heads ? c.heads_q : 1, e.queries ? queries : 1, keys};
}

/// One tensor whose heads are all the same memory, as `expand` makes them.
Tensor broadcast_heads(DType dtype, const std::vector<std::int64_t>& sizes) {
  Tensor one(dtype, {sizes[0], 1, sizes[2], sizes[3]});
  return one.with_heads(sizes[1]);
}

void make_tokens(const Case& c, Workload& w) {
  const auto q_shape = token_shape(c, c.heads_q, c.seq_q, c.head_dim);
  const auto k_shape = token_shape(c, c.heads_kv, c.seq_kv, c.head_dim);
  const auto v_shape = token_shape(c, c.heads_kv, c.seq_kv, c.head_dim_v);
  const Layout layout = tensor_layout(c.layout);
  if (c.layout == LayoutKind::packed_qkv) {
    auto qkv = Tensor::packed_qkv(c.dtype, c.batch, c.heads_q, c.heads_kv, c.seq_q, c.head_dim);
    w.q = qkv[0];
    w.k = qkv[1];
    w.v = qkv[2];
  } else if (c.layout == LayoutKind::broadcast_kv) {
    w.q = Tensor(c.dtype, q_shape);
    w.k = broadcast_heads(c.dtype, k_shape);
    w.v = broadcast_heads(c.dtype, v_shape);
  } else {
    w.q = Tensor(c.dtype, q_shape, layout);
    w.k = Tensor(c.dtype, k_shape, layout);
    w.v = Tensor(c.dtype, v_shape, layout);
  }
  w.d_o = Tensor(c.dtype, token_shape(c, c.heads_q, c.seq_q, c.head_dim_v), layout);
}

/// Adds a number of each channel's own.
void add_to_channels(Random& random, double scale, Tensor& t) {
  std::vector<double> bias(t.size(t.view().rank - 1));
  for (double& x : bias) x = scale * random.normal();
  const auto channels = static_cast<std::int64_t>(bias.size());
  for (std::int64_t x = 0; x < t.count(); ++x) t.set(x, t.get(x) + bias[x % channels]);
}

/// Sets every element of tokens that `used` does not cover to NaN.
template <typename Used>
void poison_tokens(const Case& c, Tensor& t, const Used& used) {
  const int rank = t.view().rank;
  const std::int64_t row = t.size(rank - 1);
  for (std::int64_t index = 0; row > 0 && index < t.count(); index += row) {
    std::int64_t b = 0, h = 0, token = 0;
    if (c.varlen()) {
      h = index / row % t.size(1);
      token = index / row / t.size(1);
    } else {
      token = index / row % t.size(2);
      h = index / row / t.size(2) % t.size(1);
      b = index / row / t.size(2) / t.size(1);
    }
    if (used(b, h, token)) continue;
    for (std::int64_t d = 0; d < row; ++d) t.set(index + d, kNan);
  }
}

/// The sequence that a token of a packed problem belongs to, or −1.
std::int64_t sequence_of_token(const std::vector<std::int32_t>& cu_seqlens, std::int64_t token) {
  for (std::size_t b = 0; b + 1 < cu_seqlens.size(); ++b) {
    if (token >= cu_seqlens[b] && token < cu_seqlens[b + 1]) return static_cast<std::int64_t>(b);
  }
  return -1;
}

bool query_used(const Case& c, std::int64_t b, std::int64_t token) {
  if (c.varlen()) b = sequence_of_token(c.cu_seqlens_q, token);
  if (b < 0) return false;
  const Span s = span_of(c, b);
  return token - s.q_begin < s.q_len;
}

/// What the block mask covers; in packed problems a little more than the longest sequences.
BlockShape block_shape(const Case& c) {
  const std::int64_t extra = c.varlen() ? 5 : 0;
  return {longest_q(c) + extra, longest_kv(c) + extra, c.blocks->block_q, c.blocks->block_kv};
}

/// The same of a token, which in packed problems counts across all sequences.
bool key_used(const Case& c, std::int64_t b, std::int64_t h_kv, std::int64_t token) {
  if (c.varlen()) b = sequence_of_token(c.cu_seqlens_k, token);
  return b >= 0 && key_takes_part(c, b, h_kv, token - span_of(c, b).kv_begin);
}

/// Sets the bias of elements that lie in no sequence's used lengths to NaN.
void poison_unused_bias(const Case& c, Tensor& bias) {
  for (std::int64_t x = 0; x < bias.count(); ++x) {
    const std::int64_t j = x % bias.size(3);
    const std::int64_t i = x / bias.size(3) % bias.size(2);
    const std::int64_t b_bias = x / bias.size(3) / bias.size(2) / bias.size(1);
    bool used = false;
    for (std::int64_t b = 0; b < c.batch; ++b) {
      if (c.bias->batch && b != b_bias) continue;
      const Span s = span_of(c, b);
      used = used || (j < s.kv_len && (!c.bias->queries || i < s.q_len));
    }
    if (!used) bias.set(x, kNan);
  }
}

void poison_unused(const Case& c, Workload& w) {
  const auto query = [&](std::int64_t b, std::int64_t, std::int64_t token) {
    return query_used(c, b, token);
  };
  const bool lengths = c.varlen() || !c.q_lens.empty() || !c.kv_lens.empty();
  if (lengths) {
    if (c.bias) poison_unused_bias(c, w.bias);
    poison_tokens(c, w.q, query);
    poison_tokens(c, w.d_o, query);
    for (std::int64_t index = 0; index < w.d_lse.count(); ++index) {
      const std::int64_t token = c.seq_q > 0 ? index % c.seq_q : 0;
      const std::int64_t b = c.varlen() ? 0 : index / c.seq_q / c.heads_q;
      if (!query_used(c, b, token)) w.d_lse.set(index, kNan);
    }
  }
  if (!lengths && !c.blocks) return;
  std::vector<signed char> known((c.varlen() ? 1 : c.batch) * c.heads_kv * c.seq_kv, -1);
  const auto key = [&](std::int64_t b, std::int64_t h, std::int64_t token) {
    signed char& cached = known[(b * c.heads_kv + h) * c.seq_kv + token];
    if (cached < 0) cached = key_used(c, b, h, token) ? 1 : 0;
    return cached == 1;
  };
  if (c.layout == LayoutKind::broadcast_kv) return;  // its heads share memory
  poison_tokens(c, w.k, key);
  poison_tokens(c, w.v, key);
}

void make_score_tensors(const Case& c, Random& random, Workload& w) {
  const Layout layout = c.layout == LayoutKind::padded ? Layout::padded : Layout::contiguous;
  if (c.bias) {
    const DType dtype = c.bias_f32 ? DType::f32 : c.dtype;
    w.bias = Tensor(dtype, score_shape(c, *c.bias), layout);
    w.bias.fill_normal(random, c.logits);
    for (std::int64_t x = 0; c.bias_minus_infinity > 0 && x < w.bias.count(); ++x) {
      if (random.chance(c.bias_minus_infinity)) {
        w.bias.set(x, -std::numeric_limits<double>::infinity());
      }
    }
  }
  if (c.mask) {
    w.mask = Tensor(DType::boolean, score_shape(c, *c.mask), layout);
    const std::int64_t row = w.mask.size(3);
    for (std::int64_t x = 0; row > 0 && x < w.mask.count(); x += row) {
      const bool empty = random.chance(c.mask_empty_rows);
      for (std::int64_t j = 0; j < row; ++j) w.mask.set(x + j, !empty && random.chance(0.7));
    }
  }
}

}  // namespace

double Case::scale() const {
  return attention.scale.value_or(1 / std::sqrt(static_cast<double>(head_dim)));
}

std::string Case::describe() const {
  const Attention& a = attention;
  std::string s = fmt::format("{} B{} H{}/{} S{}x{} D{}/{}", tessera::name_of(dtype), batch,
                              heads_q, heads_kv, seq_q, seq_kv, head_dim, head_dim_v);
  const auto add = [&s](bool on, const std::string& text) {
    if (on) s += " " + text;
  };
  add(a.scale.has_value(), fmt::format("scale={}", a.scale.value_or(0)));
  add(a.causal, "causal");
  add(a.window.left >= 0 || a.window.right >= 0,
      fmt::format("window={},{}", a.window.left, a.window.right));
  add(a.alignment == Alignment::top_left, "top_left");
  add(a.softcap > 0, fmt::format("softcap={}", a.softcap));
  add(a.dropout_p > 0, fmt::format("dropout={}", a.dropout_p));
  add(a.deterministic, "deterministic");
  if (a.precision != Precision::exact) s += " " + test::describe(a);
  if (bias) {
    s += fmt::format(" bias[{}]{}", test::describe(*bias), bias_f32 ? ":f32" : "");
    add(bias_minus_infinity > 0, fmt::format("bias_minus_infinity={}", bias_minus_infinity));
  }
  if (mask) s += fmt::format(" mask[{}] empty_rows={}", test::describe(*mask), mask_empty_rows);
  add(alibi_rank > 0, fmt::format("alibi{}", alibi_rank));
  add(sink, "sink");
  add(!q_lens.empty(), "q_lens=" + test::describe(q_lens));
  add(!kv_lens.empty(), "kv_lens=" + test::describe(kv_lens));
  add(varlen(), "cu_q=" + test::describe(cu_seqlens_q) + " cu_k=" + test::describe(cu_seqlens_k));
  if (blocks) {
    s += fmt::format(" blocks={}x{}{}{}@{}p{}", blocks->block_q, blocks->block_kv,
                     blocks->per_batch ? "b" : "", blocks->per_head ? "h" : "", blocks->density,
                     blocks->partial);
  }
  add(layout != LayoutKind::contiguous, test::name_of(layout));
  add(logits != 1, fmt::format("logits={}", logits));
  add(channel_bias != 0, fmt::format("channel_bias={}", channel_bias));
  add(d_lse, "d_lse");
  add(!backward, "forward-only");
  add(threads > 0, fmt::format("threads={}", threads));
  return s;
}

Span span_of(const Case& c, std::int64_t b) {
  Span s;
  s.q_len = c.seq_q;
  s.kv_len = c.seq_kv;
  if (c.varlen()) {
    s.q_begin = c.cu_seqlens_q[b];
    s.kv_begin = c.cu_seqlens_k[b];
    s.q_len = c.cu_seqlens_q[b + 1] - s.q_begin;
    s.kv_len = c.cu_seqlens_k[b + 1] - s.kv_begin;
  }
  if (!c.q_lens.empty()) s.q_len = c.q_lens[b];
  if (!c.kv_lens.empty()) s.kv_len = c.kv_lens[b];
  if (c.attention.alignment == Alignment::bottom_right) s.shift = s.kv_len - s.q_len;
  return s;
}

std::int64_t longest_q(const Case& c) {
  if (!c.varlen()) return c.seq_q;
  std::int64_t longest = 0;
  for (std::int64_t b = 0; b < c.batch; ++b) {
    longest = std::max<std::int64_t>(longest, c.cu_seqlens_q[b + 1] - c.cu_seqlens_q[b]);
  }
  return longest;
}

std::int64_t longest_kv(const Case& c) {
  if (!c.varlen()) return c.seq_kv;
  std::int64_t longest = 0;
  for (std::int64_t b = 0; b < c.batch; ++b) {
    longest = std::max<std::int64_t>(longest, c.cu_seqlens_k[b + 1] - c.cu_seqlens_k[b]);
  }
  return longest;
}

bool block_pattern_allows(const Case& c, std::int64_t b, std::int64_t h, std::int64_t i,
                          std::int64_t j) {
  const BlockPattern& p = *c.blocks;
  const auto fraction = [](std::uint64_t x) { return static_cast<double>(mix(x) >> 11) * 0x1p-53; };
  const std::uint64_t plane = (p.per_batch ? b * 131 : 0) + (p.per_head ? h * 17 : 0);
  const std::uint64_t block = mix(plane * 0x10001 + mix(i / p.block_q) * 3 + mix(j / p.block_kv));
  if (fraction(block) >= p.density) return false;
  if (fraction(block + 1) >= p.partial) return true;
  return fraction(block ^ mix(i * 0x100003 + j)) < 0.6;
}

bool key_takes_part(const Case& c, std::int64_t b, std::int64_t h_kv, std::int64_t j) {
  if (j >= span_of(c, b).kv_len) return false;
  if (!c.blocks) return true;
  const BlockShape shape = block_shape(c);
  const std::int64_t first = j / shape.block_kv * shape.block_kv;
  const std::int64_t end = std::min(first + shape.block_kv, shape.seq_kv);
  const std::int64_t group = c.heads_q / c.heads_kv;
  for (std::int64_t h = h_kv * group; h < (h_kv + 1) * group; ++h) {
    for (std::int64_t i = 0; i < shape.seq_q; ++i) {
      for (std::int64_t key = first; key < end; ++key) {
        if (block_pattern_allows(c, b, h, i, key)) return true;
      }
    }
  }
  return false;
}

std::int64_t row_index(const Case& c, const Tensor& t, std::int64_t b, std::int64_t h,
                       std::int64_t token) {
  if (c.varlen()) return (token * t.size(1) + h) * t.size(2);
  return ((b * t.size(1) + h) * t.size(2) + token) * t.size(3);
}

HeadRules::HeadRules(const Case& c, const Workload& w, std::int64_t b, std::int64_t h)
    : c_(c),
      w_(w),
      b_(b),
      h_(h),
      span_(span_of(c, b)),
      dropout_(c.attention.dropout_p, w.inputs().seed, w.inputs().offset),
      sink_(c.sink ? w.sink.at({h}) : -std::numeric_limits<double>::infinity()) {
  if (c.alibi_rank == 1) slope_ = w.alibi_slopes.at({h});
  if (c.alibi_rank == 2) slope_ = w.alibi_slopes.at({b, h});
}

bool HeadRules::visible(std::int64_t i, std::int64_t j) const {
  const Attention& a = c_.attention;
  const std::int64_t ahead = j - (i + span_.shift);  // how far the key is ahead of the query
  if (a.causal && ahead > 0) return false;
  if (a.window.left >= 0 && -ahead > a.window.left) return false;
  if (a.window.right >= 0 && ahead > a.window.right) return false;
  if (c_.mask && w_.mask.at({c_.mask->batch ? b_ : 0, c_.mask->heads ? h_ : 0,
                             c_.mask->queries ? i : 0, j}) == 0) {
    return false;
  }
  return !c_.blocks || block_pattern_allows(c_, b_, h_, i, j);
}

std::int64_t HeadRules::bias_index(const Tensor& t, std::int64_t i, std::int64_t j) const {
  const std::int64_t b = c_.bias->batch ? b_ : 0;
  const std::int64_t h = c_.bias->heads ? h_ : 0;
  return ((b * t.size(1) + h) * t.size(2) + (c_.bias->queries ? i : 0)) * t.size(3) + j;
}

double HeadRules::bias(std::int64_t i, std::int64_t j) const {
  return c_.bias ? w_.bias.get(bias_index(w_.bias, i, j)) : 0;
}

double HeadRules::distance(std::int64_t i, std::int64_t j) const {
  return std::abs(static_cast<double>(i + span_.shift - j));
}

double HeadRules::keep(std::int64_t i, std::int64_t j) const {
  if (c_.attention.dropout_p == 0) return 1;
  return dropout_.kept(b_, h_, i, j) ? 1 / (1 - c_.attention.dropout_p) : 0;
}

Inputs Workload::inputs() const {
  Inputs in;
  in.q = q.view();
  in.k = k.view();
  in.v = v.view();
  in.bias = bias.view();
  in.mask = mask.view();
  in.alibi_slopes = alibi_slopes.view();
  in.sink = sink.view();
  in.q_lens = q_lens.view();
  in.kv_lens = kv_lens.view();
  in.cu_seqlens_q = cu_seqlens_q.view();
  in.cu_seqlens_k = cu_seqlens_k.view();
  in.block_mask = block_mask ? &block_view : nullptr;
  in.seed = 0x5eed0123456789abu;
  in.offset = 7;
  return in;
}

Workload make_workload(const Case& c) {
  Random random(hash_of(c.describe()));
  Workload w;
  make_tokens(c, w);
  // q·k has a standard deviation of √D.
  const double unit = std::abs(c.scale()) * std::sqrt(static_cast<double>(c.head_dim));
  const double spread = unit == 0 ? 1 : c.logits / unit;
  w.q.fill_normal(random, spread);
  w.k.fill_normal(random);
  w.v.fill_normal(random);
  w.d_o.fill_normal(random);
  if (c.channel_bias != 0) {
    for (Tensor* t : {&w.q, &w.k, &w.v}) {
      add_to_channels(random, c.channel_bias * (t == &w.q ? spread : 1), *t);
    }
  }
  if (c.d_lse) {
    w.d_lse = Tensor(DType::f32, lse_shape(c));
    w.d_lse.fill_normal(random);
  }
  make_score_tensors(c, random, w);
  if (c.alibi_rank > 0) {
    w.alibi_slopes = c.alibi_rank == 1 ? Tensor(DType::f32, {c.heads_q})
                                       : Tensor(DType::f32, {c.batch, c.heads_q});
    for (std::int64_t x = 0; x < w.alibi_slopes.count(); ++x) {
      w.alibi_slopes.set(x, 0.5 * random.uniform());
    }
  }
  if (c.sink) {
    w.sink = Tensor(DType::f32, {c.heads_q});
    w.sink.fill_normal(random, c.logits);
  }
  if (!c.q_lens.empty()) w.q_lens = Tensor::of_i32(c.q_lens);
  if (!c.kv_lens.empty()) w.kv_lens = Tensor::of_i32(c.kv_lens);
  if (c.varlen()) {
    w.cu_seqlens_q = Tensor::of_i32(c.cu_seqlens_q);
    w.cu_seqlens_k = Tensor::of_i32(c.cu_seqlens_k);
  }
  if (c.blocks) {
    Result<BlockMask> mask = BlockMask::from_predicate(
        block_shape(c), c.blocks->per_batch ? c.batch : 1, c.blocks->per_head ? c.heads_q : 1,
        [&c](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
          return block_pattern_allows(c, b, h, i, j);
        });
    if (!mask.ok()) throw std::runtime_error(mask.status().message());
    w.block_mask.emplace(std::move(mask).value());
    w.block_view = w.block_mask->view();
  }
  poison_unused(c, w);
  return w;
}

Workload widened(const Workload& w) {
  Workload wide = w;  // shares the tensors that keep their dtype
  wide.q = w.q.converted(DType::f64);
  wide.k = w.k.converted(DType::f64);
  wide.v = w.v.converted(DType::f64);
  wide.bias = w.bias.converted(DType::f64);
  wide.d_o = w.d_o.converted(DType::f64);
  wide.d_lse = w.d_lse.converted(DType::f64);
  if (wide.block_mask) wide.block_view = wide.block_mask->view();
  return wide;
}

Results make_results(const Case& c) {
  const Layout layout = tensor_layout(c.layout);
  Results r;
  r.o = Tensor(c.dtype, token_shape(c, c.heads_q, c.seq_q, c.head_dim_v), layout);
  r.lse = Tensor(DType::f32, lse_shape(c),
                 c.layout == LayoutKind::padded ? Layout::padded : Layout::contiguous);
  if (!c.backward) return r;
  if (c.layout == LayoutKind::packed_qkv) {
    auto qkv = Tensor::packed_qkv(c.dtype, c.batch, c.heads_q, c.heads_kv, c.seq_q, c.head_dim);
    r.d_q = qkv[0];
    r.d_k = qkv[1];
    r.d_v = qkv[2];
  } else {
    r.d_q = Tensor(c.dtype, token_shape(c, c.heads_q, c.seq_q, c.head_dim), layout);
    r.d_k = Tensor(c.dtype, token_shape(c, c.heads_kv, c.seq_kv, c.head_dim), layout);
    r.d_v = Tensor(c.dtype, token_shape(c, c.heads_kv, c.seq_kv, c.head_dim_v), layout);
  }
  if (c.bias) {
    r.d_bias = Tensor(c.bias_f32 ? DType::f32 : c.dtype, score_shape(c, *c.bias),
                      c.layout == LayoutKind::padded ? Layout::padded : Layout::contiguous);
  }
  if (c.sink) r.d_sink = Tensor(DType::f32, {c.heads_q});
  return r;
}

Results make_wide_results(const Case& c) {
  Case wide = c;
  wide.dtype = DType::f64;
  wide.bias_f32 = false;
  wide.layout = LayoutKind::contiguous;
  Results r = make_results(wide);
  r.lse = Tensor(DType::f64, lse_shape(c));
  return r;
}

}  // namespace tessera::test
