// One attention with its tensors, and what running it gives.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "host_tensor.hpp"
#include "tessera/attention.hpp"

namespace tessera::cli {

/// Everything that a run reads. Absent tensors are not used. Movable.
struct AttentionCase {
  std::string name;
  Attention attention;
  /// [B, H, S, D]; [B, S, H, D] if `bshd`; [T, H, D] if cu_seqlens are present.
  HostTensor q, k, v;
  HostTensor bias, mask;                 ///< Rank 4.
  std::vector<std::int64_t> bias_sizes;  ///< The bias's sizes as the user gave them.
  HostTensor alibi_slopes, sink;
  HostTensor q_lens, kv_lens;
  HostTensor cu_seqlens_q, cu_seqlens_k;
  std::optional<BlockMask> block_mask;
  BlockMaskView block_mask_view;  ///< Of `block_mask`, if there is one.
  std::uint64_t seed = 0;
  std::uint64_t offset = 0;
  bool bshd = false;

  HostTensor d_o;    ///< As o; present if there is a backward pass.
  HostTensor d_lse;  ///< As the LSE, optional.

  bool packed() const { return cu_seqlens_q.present(); }
  bool backward() const { return d_o.present(); }

  /// Views of the tensors above; valid as long as this object stays where it is.
  Inputs inputs() const;
  /// A view as the library wants it of a tensor in the layout of q: [B, H, S, D] or [T, H, D].
  TensorView tokens_view(const HostTensor& tensor) const;

  void set_block_mask(BlockMask owned);

  /// The sizes of o and of the LSE, in this case's layout.
  std::vector<std::int64_t> o_sizes() const;
  std::vector<std::int64_t> lse_sizes() const;
  /// f64 if q is, else f32.
  DType lse_dtype() const { return q.dtype() == DType::f64 ? DType::f64 : DType::f32; }

  /// The same case with q, k, v, d_o (and bias, d_lse) converted: to f64, say, for the oracle.
  AttentionCase converted(DType dtype) const;
};

/// Where each input that may be absent lies in a case and in the library's Inputs.
struct OptionalInput {
  HostTensor AttentionCase::*tensor;
  TensorView Inputs::*view;
};
inline constexpr std::array kOptionalInputs = {
    OptionalInput{&AttentionCase::bias, &Inputs::bias},
    OptionalInput{&AttentionCase::mask, &Inputs::mask},
    OptionalInput{&AttentionCase::alibi_slopes, &Inputs::alibi_slopes},
    OptionalInput{&AttentionCase::sink, &Inputs::sink},
    OptionalInput{&AttentionCase::q_lens, &Inputs::q_lens},
    OptionalInput{&AttentionCase::kv_lens, &Inputs::kv_lens},
    OptionalInput{&AttentionCase::cu_seqlens_q, &Inputs::cu_seqlens_q},
    OptionalInput{&AttentionCase::cu_seqlens_k, &Inputs::cu_seqlens_k}};

/// What a run writes; tensors in the case's layout, absent where not asked for.
struct Results {
  HostTensor o, lse;
  HostTensor d_q, d_k, d_v, d_bias, d_sink;
};

/// The results by name, in the order in which tables list them.
struct NamedResult {
  const char* name;
  HostTensor Results::*tensor;
};
inline constexpr std::array kResults = {
    NamedResult{"o", &Results::o},         NamedResult{"lse", &Results::lse},
    NamedResult{"dq", &Results::d_q},      NamedResult{"dk", &Results::d_k},
    NamedResult{"dv", &Results::d_v},      NamedResult{"dbias", &Results::d_bias},
    NamedResult{"dsink", &Results::d_sink}};
inline constexpr std::size_t kForwardResults = 2;  ///< The first two come from the forward pass.

/// Which results are wanted. The gradients are ignored in a case without d_o.
struct Wanted {
  bool d_q = true;
  bool d_k = true;
  bool d_v = true;
  bool d_bias = false;
  bool d_sink = false;
};

/// Wanted: every gradient that `attention_case` has.
Wanted all_gradients(const AttentionCase& attention_case);

/// Allocates the wanted results and fills them with NaN.
Results allocate_results(const AttentionCase& attention_case, const Wanted& wanted);

/// Plan options for `attention_case` on row `implementation` (empty: the table's choice).
PlanOptions plan_options(const AttentionCase& attention_case, const Wanted& wanted,
                         const std::string& implementation, Executor* executor);

}  // namespace tessera::cli
