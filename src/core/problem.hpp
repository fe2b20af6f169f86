// What is to be computed, as the table of implementations sees it: sizes and features, no pointers.
#pragma once

#include <cstdint>
#include <string>

#include "tessera/attention.hpp"

namespace tessera {

enum class Pass : std::uint8_t { forward, backward };

const char* name_of(Pass pass);

/// Plain, copyable and printable. Batched problems have tokens_q = seq_q and tokens_kv = seq_kv; in
/// packed (varlen) ones seq_q and seq_kv bound a single sequence's length by the token counts.
struct Problem {
  Pass pass = Pass::forward;
  Device device;
  DType dtype = DType::f32;
  std::int64_t batch = 0;
  std::int64_t heads_q = 0;
  std::int64_t heads_kv = 0;
  std::int64_t seq_q = 0;
  std::int64_t seq_kv = 0;
  std::int64_t head_dim = 0;
  std::int64_t head_dim_v = 0;

  double scale = 1;
  bool causal = false;
  Alignment alignment = Alignment::bottom_right;
  Window window;
  double softcap = 0;
  double dropout_p = 0;
  Precision precision = Precision::exact;  ///< exact, sage8 or sage4.
  Quantization quantization;               ///< Without automatic pieces, unless exact.
  bool deterministic = false;

  bool varlen = false;
  bool q_lens = false;
  bool kv_lens = false;
  bool bias = false;
  bool bias_gradient = false;
  bool mask = false;
  bool alibi = false;
  bool sink = false;
  bool sink_gradient = false;
  bool block_mask = false;
  std::int64_t block_q = 0;
  std::int64_t block_kv = 0;
  double block_density = 1;

  int threads = 1;  ///< CPU tasks that run side by side.

  std::int64_t group() const { return heads_q / heads_kv; }
  bool quantised() const { return precision != Precision::exact; }
  bool windowed() const { return window.left >= 0 || window.right >= 0; }
};

/// One line, e.g. "forward cpu bf16 B2 H16/4 S4096x4096 D128 causal softcap=30".
std::string to_string(const Problem& problem);

}  // namespace tessera
