#include "api/validate.hpp"

#include <array>
#include <cmath>
#include <limits>

#include "api/overlap.hpp"
#include "api/tensor_checker.hpp"
#include "core/format.hpp"

namespace tessera {

namespace {

constexpr std::int64_t kMaxSequence = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kMaxHeadDim = 512;

Status check_attention(const Attention& a) {
  if (a.scale && !std::isfinite(*a.scale)) {
    return invalid(formatted("scale: {}, expected a finite number", *a.scale));
  }
  if (!std::isfinite(a.softcap) || a.softcap < 0) {
    return invalid(formatted("softcap: {}, expected 0 (off) or a positive number", a.softcap));
  }
  if (!(a.dropout_p >= 0 && a.dropout_p < 1)) {
    return invalid(formatted("dropout_p: {}, expected a number in [0, 1)", a.dropout_p));
  }
  for (const auto& [name, value] :
       {std::pair{"window.left", a.window.left}, std::pair{"window.right", a.window.right}}) {
    if (value < -1 || value > kMaxSequence) {
      return invalid(formatted("{}: {}, expected −1 (unbounded) to {}", name, value, kMaxSequence));
    }
  }
  if (a.alignment != Alignment::bottom_right && a.alignment != Alignment::top_left) {
    return invalid(formatted("alignment: {}, expected bottom_right or top_left",
                             static_cast<unsigned>(a.alignment)));
  }
  if (static_cast<unsigned>(a.precision) > static_cast<unsigned>(Precision::adaptive)) {
    return invalid(formatted("precision: {}, expected exact, sage8, sage4 or adaptive",
                             static_cast<unsigned>(a.precision)));
  }
  const auto known = [](const char* name, auto value, auto last) -> Status {
    if (value <= last) return {};
    return invalid(formatted("quantization.{}: {}, expected 0 to {}", name,
                             static_cast<unsigned>(value), static_cast<unsigned>(last)));
  };
  const Quantization& q = a.quantization;
  TESSERA_RETURN_IF_ERROR(known("granularity", q.granularity, ScaleGranularity::token));
  TESSERA_RETURN_IF_ERROR(known("smooth_q", q.smooth_q, SmoothQ::block));
  TESSERA_RETURN_IF_ERROR(known("smooth_k", q.smooth_k, Smoothing::on));
  TESSERA_RETURN_IF_ERROR(known("smooth_v", q.smooth_v, Smoothing::on));
  TESSERA_RETURN_IF_ERROR(known("pv", q.pv, PvFormat::half));
  if (a.precision != Precision::adaptive && a.adaptive_plan != nullptr) {
    return invalid(formatted("adaptive_plan: present with precision {}, expected adaptive",
                             name_of(a.precision)));
  }
  if (a.precision == Precision::adaptive && a.adaptive_plan == nullptr) {
    return invalid("adaptive_plan: absent, expected a plan to go with precision adaptive");
  }
  if (a.precision == Precision::adaptive && !(q == Quantization{})) {
    return invalid("quantization: set, expected defaults: with adaptive the plan says it");
  }
  return {};
}

/// The device must be one of this build's backends' and exist. A backend without rows says why
/// later.
Status check_device(const Device& device) {
  const Backend& backend = backend_of(device.type);
  if (backend.device != device.type) {
    return invalid(
        formatted("q: device type {}, expected cpu or cuda", static_cast<unsigned>(device.type)));
  }
  // Without any device the rows say why, which is more than that there is no such index.
  if (!backend.absent().empty() || backend.count() == 0) return {};
  if (device.index < 0 || device.index >= backend.count()) {
    return invalid(formatted("q: device {}:{}, expected an index of 0 to {}", name_of(device.type),
                             device.index, backend.count() - 1));
  }
  return {};
}

Status check_sizes(const Problem& p) {
  const auto bounded = [](const char* name, std::int64_t value, std::int64_t low,
                          std::int64_t high) -> Status {
    if (value >= low && value <= high) return {};
    return invalid(formatted("{}: {}, expected {} to {}", name, value, low, high));
  };
  TESSERA_RETURN_IF_ERROR(bounded("q: batch", p.batch, 0, kMaxSequence));
  TESSERA_RETURN_IF_ERROR(bounded("q: heads", p.heads_q, 1, kMaxSequence));
  TESSERA_RETURN_IF_ERROR(bounded("k: heads", p.heads_kv, 1, kMaxSequence));
  TESSERA_RETURN_IF_ERROR(bounded("q: sequence length", p.seq_q, 0, kMaxSequence));
  TESSERA_RETURN_IF_ERROR(bounded("k: sequence length", p.seq_kv, 0, kMaxSequence));
  TESSERA_RETURN_IF_ERROR(bounded("q: head dim", p.head_dim, 1, kMaxHeadDim));
  TESSERA_RETURN_IF_ERROR(bounded("v: head dim", p.head_dim_v, 1, kMaxHeadDim));
  if (p.heads_q % p.heads_kv != 0) {
    return invalid(formatted("q: heads {}, expected a multiple of k's {}", p.heads_q, p.heads_kv));
  }
  std::int64_t product = p.batch;
  for (std::int64_t size : {p.heads_q, std::max<std::int64_t>(p.seq_q, p.seq_kv),
                            std::max(p.head_dim, p.head_dim_v), std::int64_t{64}}) {
    if (__builtin_mul_overflow(product, size, &product)) {
      return invalid(formatted(
          "q: batch {} · heads {} · sequence {} · head dim {}, expected a "
          "product that fits 64 bits",
          p.batch, p.heads_q, std::max(p.seq_q, p.seq_kv), std::max(p.head_dim, p.head_dim_v)));
    }
  }
  return {};
}

/// Precision and pieces of the scheme: an adaptive plan's for this layer and step, or the caller's.
/// A backward pass is exact: it starts from the saved o and lse, whichever way they were computed.
Status choose_precision(const Attention& a, Problem& p) {
  p.precision = a.precision;
  Quantization pieces = a.quantization;
  if (a.precision == Precision::adaptive) {
    const AdaptivePlan& plan = *a.adaptive_plan;
    if (plan.heads_q() != p.heads_q || plan.heads_kv() != p.heads_kv ||
        plan.head_dim() != p.head_dim) {
      return invalid(formatted(
          "adaptive_plan: made for {} with heads {}/{}, head dim {}, expected q's {}/{}, {}",
          plan.model(), plan.heads_q(), plan.heads_kv(), plan.head_dim(), p.heads_q, p.heads_kv,
          p.head_dim));
    }
    const Result<AdaptivePlan::Choice> choice = plan.choose(a.layer, a.step);
    if (!choice.ok()) return choice.status();
    p.precision = choice->precision;
    pieces = choice->quantization;
  }
  if (p.pass == Pass::backward) p.precision = Precision::exact;
  if (p.quantised()) p.quantization = resolved(p.precision, pieces);
  return {};
}

}  // namespace

Result<Problem> make_problem(const Attention& a, const Inputs& in, Pass pass,
                             const PlanOptions& options, int threads) {
  TESSERA_RETURN_IF_ERROR(check_attention(a));
  if (in.cu_seqlens_q.present() != in.cu_seqlens_k.present()) {
    return invalid(formatted("cu_seqlens_{}: absent, expected both cu_seqlens or neither",
                             in.cu_seqlens_q.present() ? "k" : "q"));
  }
  Problem p;
  p.varlen = in.cu_seqlens_q.present();
  const int rank = p.varlen ? 3 : 4;
  for (const auto& [name, view] :
       {std::pair{"q", &in.q}, std::pair{"k", &in.k}, std::pair{"v", &in.v}}) {
    if (view->rank != rank) {
      return invalid(
          formatted("{}: rank {}, expected {}", name, view->rank,
                    p.varlen ? "3 ([T, H, D], as cu_seqlens are given)" : "4 ([B, H, S, D])"));
    }
    TESSERA_RETURN_IF_ERROR(check_layout(name, *view));
  }
  if (in.q.dtype == DType::i32 || in.q.dtype == DType::boolean) {
    return invalid(formatted("q: dtype {}, expected f32, f16, bf16 or f64", name_of(in.q.dtype)));
  }
  TESSERA_RETURN_IF_ERROR(check_device(in.q.device));
  p.pass = pass;
  p.device = in.q.device;
  p.dtype = in.q.dtype;
  const int heads = 1;  // [B, H, S, D] and [T, H, D] agree on it
  const int tokens = p.varlen ? 0 : 2;
  if (p.varlen) {
    TESSERA_RETURN_IF_ERROR(check_layout("cu_seqlens_q", in.cu_seqlens_q));
    if (in.cu_seqlens_q.size[0] < 1) {
      return invalid(
          formatted("cu_seqlens_q: shape {}, expected [B + 1]", shape_of(in.cu_seqlens_q)));
    }
  }
  p.batch = p.varlen ? in.cu_seqlens_q.size[0] - 1 : in.q.size[0];
  p.heads_q = in.q.size[heads];
  p.heads_kv = in.k.size[heads];
  p.seq_q = in.q.size[tokens];
  p.seq_kv = in.k.size[tokens];
  p.head_dim = in.q.size[rank - 1];
  p.head_dim_v = in.v.size[rank - 1];
  TESSERA_RETURN_IF_ERROR(check_sizes(p));

  p.scale = a.scale.value_or(1.0 / std::sqrt(static_cast<double>(p.head_dim)));
  p.causal = a.causal;
  p.alignment = a.alignment;
  p.window = a.window;
  p.softcap = a.softcap;
  p.dropout_p = a.dropout_p;
  TESSERA_RETURN_IF_ERROR(choose_precision(a, p));
  p.deterministic = a.deterministic;
  p.q_lens = in.q_lens.present();
  p.kv_lens = in.kv_lens.present();
  p.bias = in.bias.present();
  p.mask = in.mask.present();
  p.alibi = in.alibi_slopes.present();
  p.sink = in.sink.present();
  p.bias_gradient = pass == Pass::backward && options.bias_gradient;
  p.sink_gradient = pass == Pass::backward && options.sink_gradient;
  if (p.bias_gradient && !p.bias)
    return invalid("bias_gradient: true, expected a bias to go with it");
  if (p.sink_gradient && !p.sink)
    return invalid("sink_gradient: true, expected a sink to go with it");
  if (in.block_mask != nullptr) {
    p.block_mask = true;
    p.block_q = in.block_mask->block_q;
    p.block_kv = in.block_mask->block_kv;
    p.block_density = in.block_mask->density();
  }
  p.threads = threads;
  TESSERA_RETURN_IF_ERROR(check_input_shapes(p, in));
  return p;
}

namespace {

bool is_empty(const TensorView& view) {
  for (int d = 0; d < view.rank; ++d) {
    if (view.size[d] == 0) return true;
  }
  return false;
}

struct Named {
  const char* name;
  const TensorView* view;
};

Status check_pointers(std::initializer_list<Named> tensors) {
  for (const Named& t : tensors) {
    if (t.view->present() && t.view->data == nullptr && !is_empty(*t.view)) {
      return invalid(formatted("{}: null data, expected {} elements of {}", t.name,
                               shape_of(*t.view), name_of(t.view->dtype)));
    }
  }
  return {};
}

std::int32_t at(const TensorView& view, std::int64_t i) {
  return static_cast<const std::int32_t*>(view.data)[i * view.stride[0]];
}

/// cu_seqlens and used lengths, and that score-shaped tensors reach the longest sequence.
Status check_lengths(const Problem& p, const Inputs& in) {
  std::int64_t longest_q = 0;
  std::int64_t longest_kv = 0;
  if (p.varlen) {
    const auto check = [&](const char* name, const TensorView& cu, std::int64_t tokens,
                           std::int64_t& longest) -> Status {
      if (at(cu, 0) != 0) return invalid(formatted("{}[0]: {}, expected 0", name, at(cu, 0)));
      for (std::int64_t b = 0; b < p.batch; ++b) {
        const std::int64_t begin = at(cu, b);
        const std::int64_t end = at(cu, b + 1);
        if (end < begin || end > tokens) {
          return invalid(
              formatted("{}[{}]: {}, expected {} to {}", name, b + 1, end, begin, tokens));
        }
        longest = std::max(longest, end - begin);
      }
      return {};
    };
    TESSERA_RETURN_IF_ERROR(check("cu_seqlens_q", in.cu_seqlens_q, p.seq_q, longest_q));
    TESSERA_RETURN_IF_ERROR(check("cu_seqlens_k", in.cu_seqlens_k, p.seq_kv, longest_kv));
    const auto reach = [&](const char* name, const TensorView& view) -> Status {
      const bool q_ok = view.size[2] >= longest_q || view.size[2] == 1;
      if (q_ok && view.size[3] >= longest_kv) return {};
      return invalid(
          formatted("{}: shape {}, expected at least [·,·,{}|1,{}] (the longest "
                    "sequence)",
                    name, shape_of(view), longest_q, longest_kv));
    };
    if (p.bias) TESSERA_RETURN_IF_ERROR(reach("bias", in.bias));
    if (p.mask) TESSERA_RETURN_IF_ERROR(reach("mask", in.mask));
    if (p.block_mask && (in.block_mask->seq_q < longest_q || in.block_mask->seq_kv < longest_kv)) {
      return invalid(
          formatted("block_mask: seq_q {} and seq_kv {}, expected at least {} and {} "
                    "(the longest sequence)",
                    in.block_mask->seq_q, in.block_mask->seq_kv, longest_q, longest_kv));
    }
  }
  const auto used = [&](const char* name, const TensorView& lens, const TensorView& cu,
                        std::int64_t rows) -> Status {
    for (std::int64_t b = 0; b < p.batch; ++b) {
      const std::int64_t limit = p.varlen ? at(cu, b + 1) - at(cu, b) : rows;
      if (at(lens, b) < 0 || at(lens, b) > limit) {
        return invalid(formatted("{}[{}]: {}, expected 0 to {}", name, b, at(lens, b), limit));
      }
    }
    return {};
  };
  if (p.q_lens) TESSERA_RETURN_IF_ERROR(used("q_lens", in.q_lens, in.cu_seqlens_q, p.seq_q));
  if (p.kv_lens) TESSERA_RETURN_IF_ERROR(used("kv_lens", in.kv_lens, in.cu_seqlens_k, p.seq_kv));
  return {};
}

/// Outputs must keep their own elements apart and share none with each other or with what is read.
Status check_overlap(std::initializer_list<Named> written, std::initializer_list<Named> read) {
  for (const Named* w = written.begin(); w != written.end(); ++w) {
    if (!w->view->present()) continue;
    if (overlaps_itself(*w->view)) {
      return invalid(
          formatted("{}: strides that make its elements overlap, expected distinct "
                    "addresses for an output",
                    w->name));
    }
    for (const Named* other = w + 1; other != written.end(); ++other) {
      if (views_overlap(*w->view, *other->view)) {
        return invalid(
            formatted("{}: overlaps {}, expected separate memory", w->name, other->name));
      }
    }
    for (const Named& r : read) {
      if (views_overlap(*w->view, *r.view)) {
        return invalid(formatted("{}: overlaps {}, expected separate memory", w->name, r.name));
      }
    }
  }
  return {};
}

}  // namespace

Status check_run(const Problem& p, const Arguments& arguments, bool host_readable) {
  const Inputs& in = arguments.inputs;
  const auto same_presence = [](const char* name, bool given, bool planned) -> Status {
    if (given == planned) return {};
    return invalid(formatted("{}: {}, expected it {} as planned", name,
                             given ? "present" : "absent", planned ? "present" : "absent"));
  };
  TESSERA_RETURN_IF_ERROR(same_presence("bias", in.bias.present(), p.bias));
  TESSERA_RETURN_IF_ERROR(same_presence("mask", in.mask.present(), p.mask));
  TESSERA_RETURN_IF_ERROR(same_presence("alibi_slopes", in.alibi_slopes.present(), p.alibi));
  TESSERA_RETURN_IF_ERROR(same_presence("sink", in.sink.present(), p.sink));
  TESSERA_RETURN_IF_ERROR(same_presence("q_lens", in.q_lens.present(), p.q_lens));
  TESSERA_RETURN_IF_ERROR(same_presence("kv_lens", in.kv_lens.present(), p.kv_lens));
  TESSERA_RETURN_IF_ERROR(same_presence("cu_seqlens_q", in.cu_seqlens_q.present(), p.varlen));
  TESSERA_RETURN_IF_ERROR(same_presence("cu_seqlens_k", in.cu_seqlens_k.present(), p.varlen));
  TESSERA_RETURN_IF_ERROR(same_presence("block_mask", in.block_mask != nullptr, p.block_mask));
  TESSERA_RETURN_IF_ERROR(check_input_shapes(p, in));
  if (p.block_mask &&
      (in.block_mask->block_q != p.block_q || in.block_mask->block_kv != p.block_kv)) {
    return invalid(formatted("block_mask: blocks {}x{}, expected {}x{} as planned",
                             in.block_mask->block_q, in.block_mask->block_kv, p.block_q,
                             p.block_kv));
  }
  TESSERA_RETURN_IF_ERROR(check_pointers({{"q", &in.q},
                                          {"k", &in.k},
                                          {"v", &in.v},
                                          {"bias", &in.bias},
                                          {"mask", &in.mask},
                                          {"alibi_slopes", &in.alibi_slopes},
                                          {"sink", &in.sink},
                                          {"q_lens", &in.q_lens},
                                          {"kv_lens", &in.kv_lens},
                                          {"cu_seqlens_q", &in.cu_seqlens_q},
                                          {"cu_seqlens_k", &in.cu_seqlens_k}}));
  if (host_readable) {
    if (p.block_mask) TESSERA_RETURN_IF_ERROR(validate(*in.block_mask));
    TESSERA_RETURN_IF_ERROR(check_lengths(p, in));
  }

  const TensorChecker checker(p);
  const Outputs& out = arguments.outputs;
  if (!out.o.present()) return invalid("o: absent, expected a tensor");
  TESSERA_RETURN_IF_ERROR(checker.check_tokens("o", out.o, p.heads_q, p.seq_q, p.head_dim_v));
  if (out.lse.present()) TESSERA_RETURN_IF_ERROR(checker.check_rows("lse", out.lse));
  TESSERA_RETURN_IF_ERROR(check_pointers({{"o", &out.o}, {"lse", &out.lse}}));
  const std::initializer_list<Named> inputs_read = {{"q", &in.q},
                                                    {"k", &in.k},
                                                    {"v", &in.v},
                                                    {"bias", &in.bias},
                                                    {"mask", &in.mask},
                                                    {"alibi_slopes", &in.alibi_slopes},
                                                    {"sink", &in.sink},
                                                    {"q_lens", &in.q_lens},
                                                    {"kv_lens", &in.kv_lens},
                                                    {"cu_seqlens_q", &in.cu_seqlens_q},
                                                    {"cu_seqlens_k", &in.cu_seqlens_k}};
  if (p.pass == Pass::forward) {
    return check_overlap({{"o", &out.o}, {"lse", &out.lse}}, inputs_read);
  }

  if (!out.lse.present()) return invalid("lse: absent, expected the forward pass's LSE");
  const OutputGradients& d_out = arguments.d_outputs;
  const InputGradients& d_in = arguments.d_inputs;
  if (!d_out.d_o.present()) return invalid("d_o: absent, expected a tensor");
  TESSERA_RETURN_IF_ERROR(checker.check_tokens("d_o", d_out.d_o, p.heads_q, p.seq_q, p.head_dim_v));
  if (d_out.d_lse.present()) TESSERA_RETURN_IF_ERROR(checker.check_rows("d_lse", d_out.d_lse));
  if (d_in.d_q.present()) {
    TESSERA_RETURN_IF_ERROR(checker.check_tokens("d_q", d_in.d_q, p.heads_q, p.seq_q, p.head_dim));
  }
  if (d_in.d_k.present()) {
    TESSERA_RETURN_IF_ERROR(
        checker.check_tokens("d_k", d_in.d_k, p.heads_kv, p.seq_kv, p.head_dim));
  }
  if (d_in.d_v.present()) {
    TESSERA_RETURN_IF_ERROR(
        checker.check_tokens("d_v", d_in.d_v, p.heads_kv, p.seq_kv, p.head_dim_v));
  }
  TESSERA_RETURN_IF_ERROR(same_presence("d_bias", d_in.d_bias.present(), p.bias_gradient));
  if (p.bias_gradient) {
    const auto& size = in.bias.size;
    TESSERA_RETURN_IF_ERROR(checker.check("d_bias", d_in.d_bias, {in.bias.dtype},
                                          {{size[0]}, {size[1]}, {size[2]}, {size[3]}}));
  }
  TESSERA_RETURN_IF_ERROR(same_presence("d_sink", d_in.d_sink.present(), p.sink_gradient));
  if (p.sink_gradient) {
    TESSERA_RETURN_IF_ERROR(checker.check("d_sink", d_in.d_sink, {DType::f32}, {{p.heads_q}}));
  }
  const std::initializer_list<Named> written = {{"d_q", &d_in.d_q},
                                                {"d_k", &d_in.d_k},
                                                {"d_v", &d_in.d_v},
                                                {"d_bias", &d_in.d_bias},
                                                {"d_sink", &d_in.d_sink}};
  TESSERA_RETURN_IF_ERROR(check_pointers({{"d_o", &d_out.d_o}, {"d_lse", &d_out.d_lse}}));
  TESSERA_RETURN_IF_ERROR(check_pointers(written));
  TESSERA_RETURN_IF_ERROR(check_overlap(written, inputs_read));
  return check_overlap(
      written, {{"o", &out.o}, {"lse", &out.lse}, {"d_o", &d_out.d_o}, {"d_lse", &d_out.d_lse}});
}

}  // namespace tessera
