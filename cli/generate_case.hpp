// Cases without files: sizes and features, with data made from a seed or with none at all.
#pragma once

#include <cstdint>
#include <string>

#include "attention_case.hpp"
#include "flags.hpp"
#include "tessera/attention.hpp"

namespace tessera::cli {

/// Sizes and the tensors that go with q, k and v.
struct CaseShape {
  std::string name;
  DType dtype = DType::f32;
  std::int64_t batch = 1;
  std::int64_t heads_q = 4;
  std::int64_t heads_kv = 4;
  std::int64_t seq_q = 512;  ///< Packed: batch · seq_q tokens in sequences of unequal lengths.
  std::int64_t seq_kv = 512;
  std::int64_t head_dim = 64;
  std::int64_t head_dim_v = 64;
  bool bshd = false;
  bool bias = false;
  bool mask = false;
  bool alibi = false;
  bool sink = false;
  bool q_lens = false;
  bool kv_lens = false;
  bool packed = false;
  bool block_mask = false;
  bool d_lse = false;
  BlockSize block;
  double density = 0.5;
};

/// Throws Error for flags that contradict one another.
CaseShape to_case_shape(const ShapeFlags& flags, const FeatureFlags& features,
                        const std::string& layout, DType dtype);

/// Tensors filled with normal data, random masks and lengths that differ between sequences; d_o,
/// too, if `backward`. What a kernel must not read (keys beyond kv_lens) is NaN. The same for the
/// same seed, but for the rounding to the dtype.
AttentionCase generate_case(const CaseShape& shape, const Attention& attention, std::uint64_t seed,
                            std::uint64_t offset, bool backward);

/// What planning needs of such a case and nothing more: views without data. `block_mask` must
/// outlive the result.
Inputs describe_case(const CaseShape& shape, BlockMaskView& block_mask);

}  // namespace tessera::cli
