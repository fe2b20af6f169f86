// Tessera's main entry: describe an attention, plan it, run it.
//
//   O = softmax(scale · Q Kᵀ + …) V,  row by row, in tiles (FlashAttention, Dao et al. 2022, 2023).
//
// Shapes, B sequences, Hq query heads, Hkv key/value heads (Hq a multiple of Hkv):
//   q [B, Hq, Sq, D]   k [B, Hkv, Skv, D]   v [B, Hkv, Skv, Dv]   o [B, Hq, Sq, Dv]
// or, when cu_seqlens are given, sequences packed along one token axis:
//   q [Tq, Hq, D]      k [Tk, Hkv, D]       v [Tk, Hkv, Dv]       o [Tq, Hq, Dv]
// 1 ≤ D, Dv ≤ 512; D and Dv may differ. Zero-size B, Sq and Skv are legal.
//
// Order of operations on one score, query i of head h against key j, a as Alignment says:
//   s = scale · (q · k)  →  softcap · tanh(s / softcap)  →  + bias − slope[h] · |i + a − j|  → mask
//   →  softmax over j (the sink joins the denominator)  →  dropout  →  · V
// A row with nothing to attend to gives O = 0, LSE = −inf and zero gradients.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tessera/block_mask.hpp"
#include "tessera/executor.hpp"
#include "tessera/export.h"
#include "tessera/mask.hpp"
#include "tessera/quant.hpp"
#include "tessera/status.hpp"
#include "tessera/tensor.hpp"

namespace tessera {

/// What to compute, without tensors.
struct Attention {
  std::optional<double> scale;  ///< Default 1/√D. Finite.
  bool causal = false;          ///< Key j is visible to query i if j ≤ i + a.
  Alignment alignment = Alignment::bottom_right;
  Window window;
  double softcap = 0;    ///< > 0: scores become softcap · tanh(s / softcap). 0: off.
  double dropout_p = 0;  ///< Probability in [0, 1) of dropping an element of the softmax.
  /// Of the forward pass's products; the backward pass is always exact.
  Precision precision = Precision::exact;
  /// The pieces of sage8's and sage4's scheme; those of adaptive come from its plan.
  Quantization quantization;
  /// adaptive: what chooses the precision of this (layer, step). Read while planning only.
  const AdaptivePlan* adaptive_plan = nullptr;
  std::int64_t layer = 0;
  std::int64_t step = 0;
  /// Ask for a backward pass whose results are bit-identical from run to run. Every CPU row's
  /// always are, for a given thread count.
  bool deterministic = false;
};

/// What the computation reads. All tensors live on one device. Absent (default) means "not used".
/// q, k and v share a dtype: f32, f16, bf16, or f64 (reference row only).
struct Inputs {
  TensorView q, k, v;
  /// Added to the scores; [B|1, Hq|1, Sq|1, Skv] in q's dtype or f32 (f64 with f64). −inf masks.
  /// Packed sequences index it per sequence: its last sizes are at least the longest lengths.
  TensorView bias;
  /// Dense boolean mask, true = attend; [B|1, Hq|1, Sq|1, Skv].
  TensorView mask;
  TensorView alibi_slopes;  ///< ALiBi (Press et al. 2022): f32 [Hq] or [B, Hq].
  TensorView sink;          ///< Attention sink logits: f32 [Hq]; exp(sink) joins the denominator.
  TensorView q_lens;        ///< i32 [B]: query rows used in each sequence; the rest give zeros.
  TensorView kv_lens;       ///< i32 [B]: keys used in each sequence; the rest are never read.
  TensorView cu_seqlens_q;  ///< i32 [B + 1]: first token of each sequence, and the end. Both or
  TensorView cu_seqlens_k;  ///< neither. From 0, not decreasing, at most Tq / Tk.
  const BlockMaskView* block_mask = nullptr;
  /// Dropout's random stream (Philox4x32-10): whether (b, h, i, j) is kept depends on seed, offset,
  /// b, h, i and j alone, on every backend, tiling and thread count. Backward replays the
  /// forward's.
  std::uint64_t seed = 0;
  std::uint64_t offset = 0;
};

/// What the forward pass writes: every element of o and, if present, of lse.
struct Outputs {
  TensorView o;  ///< q's dtype.
  /// log Σⱼ exp(score) (+ exp(sink)), natural log: f32 [B, Hq, Sq] ([Hq, Tq] packed); f64 when q is
  /// f64. The backward pass needs it.
  TensorView lse;
};

/// The gradients that come in.
struct OutputGradients {
  TensorView d_o;    ///< As o.
  TensorView d_lse;  ///< As lse, optional: the gradient with respect to the LSE.
};

/// The gradients that go out; every element is written. Any of them may be absent.
struct InputGradients {
  TensorView d_q, d_k, d_v;  ///< As q, k, v.
  TensorView d_bias;         ///< As bias; summed over its broadcast dimensions.
  TensorView d_sink;         ///< As sink.
};

/// How to run. On the CPU `executor` gives the threads (null: default_executor()). On CUDA `stream`
/// is a cudaStream_t and calls are asynchronous.
struct Run {
  void* workspace = nullptr;  ///< On the plan's device, aligned to 64 bytes.
  std::size_t workspace_bytes = 0;
  void* stream = nullptr;
  Executor* executor = nullptr;
};

/// Choices about the plan itself.
struct PlanOptions {
  bool forward = true;           ///< Plan a forward pass.
  bool backward = false;         ///< Plan a backward pass.
  bool bias_gradient = false;    ///< The backward pass will write d_bias.
  bool sink_gradient = false;    ///< The backward pass will write d_sink.
  std::string implementation;    ///< Force this row of the table; also TESSERA_FORCE=<row>.
  int threads = 0;               ///< CPU tasks run side by side; 0 = the executor's concurrency.
  Executor* executor = nullptr;  ///< Asked for its concurrency only; null = default_executor().
};

/// A chosen implementation for one problem. Made once, run many times: running allocates nothing,
/// reads no environment and may happen on many threads at once, each with its own workspace.
/// Copies are cheap and share state.
class TESSERA_API Plan {
 public:
  /// Validates the description against the tensors' shapes, dtypes and strides and picks the first
  /// row of the device's table that accepts it. Data pointers are not read and may be null here.
  /// TESSERA_LOG=1 prints the choice to standard error.
  static Result<Plan> create(const Attention& attention, const Inputs& inputs,
                             const PlanOptions& options = {});

  /// Bytes of workspace `forward` and `backward` need; 0 for a pass that was not planned.
  std::size_t forward_workspace_bytes() const;
  std::size_t backward_workspace_bytes() const;

  /// Row names, e.g. "cpu_avx512"; empty for a pass that was not planned.
  std::string forward_implementation() const;
  std::string backward_implementation() const;

  /// Computes outputs from inputs of the planned shapes (strides may differ from the planned ones).
  /// On an error nothing has been written.
  Status forward(const Inputs& inputs, const Outputs& outputs, const Run& run) const;

  /// Computes the gradients from the forward's inputs, its o and lse, and their gradients
  /// (FlashAttention-2's backward with recomputation). On an error nothing has been written.
  Status backward(const Inputs& inputs, const Outputs& outputs, const OutputGradients& d_outputs,
                  const InputGradients& d_inputs, const Run& run) const;

  /// Several lines: the problem, then every row of the table with why it was passed over or its
  /// config if it was chosen, for each planned pass.
  std::string explain() const;

 private:
  struct State;
  explicit Plan(std::shared_ptr<const State> state) : state_(std::move(state)) {}
  std::shared_ptr<const State> state_;
};

/// Plans, allocates the workspace, runs. The convenient call; a loop should keep a Plan.
TESSERA_API Status attention_forward(const Attention& attention, const Inputs& inputs,
                                     const Outputs& outputs, const PlanOptions& options = {});
TESSERA_API Status attention_backward(const Attention& attention, const Inputs& inputs,
                                      const Outputs& outputs, const OutputGradients& d_outputs,
                                      const InputGradients& d_inputs,
                                      const PlanOptions& options = {});

/// One row of the table of implementations, for people and tools to list.
struct Implementation {
  std::string name;
  DeviceType device = DeviceType::cpu;
  bool available = false;   ///< Usable on this machine.
  std::string unavailable;  ///< Why not, if not.
  std::string supports;     ///< One line: dtypes, passes, features.
};

/// The whole table in the order in which rows are tried, device by device.
TESSERA_API std::vector<Implementation> implementations();

/// One line per device that this build can use, with what it found ("cpu: …", "cuda:0: …" or why
/// there is none).
TESSERA_API std::vector<std::string> describe_devices();

/// Tessera's version, "major.minor.patch".
TESSERA_API const char* version();

}  // namespace tessera
