#include "core/problem.hpp"

#include "core/format.hpp"

namespace tessera {

const char* name_of(Pass pass) { return pass == Pass::forward ? "forward" : "backward"; }

std::string to_string(const Problem& p) {
  std::string s = formatted("{} {} {} B{} H{}", name_of(p.pass), name_of(p.device.type),
                            name_of(p.dtype), p.batch, p.heads_q);
  if (p.heads_kv != p.heads_q) s += formatted("/{}", p.heads_kv);
  s += formatted(" {}{}x{} D{}", p.varlen ? "T" : "S", p.seq_q, p.seq_kv, p.head_dim);
  if (p.head_dim_v != p.head_dim) s += formatted("/{}", p.head_dim_v);
  s += formatted(" scale={:.6g}", p.scale);
  const auto flag = [&s](bool on, const char* name) {
    if (on) s += formatted(" {}", name);
  };
  flag(p.causal, "causal");
  if (p.windowed()) s += formatted(" window={},{}", p.window.left, p.window.right);
  flag(p.alignment == Alignment::top_left && (p.causal || p.windowed() || p.alibi), "top-left");
  if (p.softcap > 0) s += formatted(" softcap={:g}", p.softcap);
  if (p.dropout_p > 0) s += formatted(" dropout={:g}", p.dropout_p);
  flag(p.varlen, "varlen");
  flag(p.q_lens, "q_lens");
  flag(p.kv_lens, "kv_lens");
  flag(p.bias, p.bias_gradient ? "bias+gradient" : "bias");
  flag(p.mask, "mask");
  flag(p.alibi, "alibi");
  flag(p.sink, p.sink_gradient ? "sink+gradient" : "sink");
  if (p.block_mask) {
    s += formatted(" block_mask={}x{}@{:.3g}", p.block_q, p.block_kv, p.block_density);
  }
  if (p.quantised()) {
    const Quantization& q = p.quantization;
    s += formatted(" {} scales={} smooth_q={} smooth_k={} smooth_v={} pv={}", name_of(p.precision),
                   name_of(q.granularity), name_of(q.smooth_q),
                   q.smooth_k == Smoothing::on ? "on" : "off",
                   q.smooth_v == Smoothing::on ? "on" : "off", name_of(q.pv));
  }
  flag(p.deterministic, "deterministic");
  if (p.device.type == DeviceType::cpu) s += formatted(" threads={}", p.threads);
  return s;
}

}  // namespace tessera
