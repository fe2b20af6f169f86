// What the benchmark measures: a problem, and the variants of computing it that are timed in turn.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/attention.hpp"

namespace tessera::cli::bench {

enum class Pass { forward, backward };

/// "forward" or "backward".
const char* name_of(Pass pass);

/// How the listed blocks of a block mask are chosen; `dense` is no block mask at all.
enum class Pattern { dense, butterfly, local_global, strided, random };

/// "dense", "butterfly", "local_global", "strided" or "random".
const char* name_of(Pattern pattern);
std::optional<Pattern> pattern_named(std::string_view name);

/// A block mask to build for a problem; shared by its sequences and heads.
struct MaskChoice {
  Pattern pattern = Pattern::dense;
  double density = 0;  ///< Aimed at by local_global and random; the others have their own.
  std::int64_t block_q = 128;
  std::int64_t block_kv = 128;

  friend bool operator==(const MaskChoice&, const MaskChoice&) = default;
};

/// One attention problem and the pass to time. Everything else about it is a Variant.
struct Case {
  Pass pass = Pass::forward;
  DType dtype = DType::f32;
  std::int64_t batch = 1;
  std::int64_t heads_q = 1;
  std::int64_t heads_kv = 1;
  std::int64_t seq_q = 0;
  std::int64_t seq_kv = 0;
  std::int64_t head_dim = 64;
  std::int64_t head_dim_v = 64;
  bool causal = false;
  Window window;
};

/// One way of computing a case. `impl` is "auto" (the table's choice), a row's name or "standard";
/// `config` one of the row's, if it is not the row's choice (bench/tune.hpp).
struct Variant {
  std::string impl = "auto";
  int threads = 1;
  MaskChoice mask;
  Precision precision = Precision::exact;
  std::string config{};
};

/// A case and its variants, measured in turn in one process: A B C A B C …
struct Group {
  std::string suite;
  Case problem;
  std::vector<Variant> variants;
};

/// What a variant of the case asks of the library.
Attention to_attention(const Case& problem, Precision precision = Precision::exact);

/// q, k, v and o (forward), and also lse, d_o, d_q, d_k and d_v (backward).
std::int64_t input_output_bytes(const Case& problem);

/// Half-open range of keys; never reversed.
struct KeyRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

/// The keys that causal mask and window leave to query i (bottom-right alignment).
KeyRange visible_keys(const Case& problem, std::int64_t i);

/// Score elements that the positional masks leave, all sequences and heads together. A square
/// causal problem counts half of them, as the FlashAttention papers do; other masks count exactly.
double visible_pairs(const Case& problem);

/// Score elements inside the listed blocks, all sequences and heads together.
double listed_pairs(const Case& problem, const BlockMaskView& mask);

/// Floating-point operations: 2 · (D + Dv) for each score element forward, 2.5 times that backward.
double flop_count(const Case& problem, double pairs);

/// "1x16x2048x128", with "/" where queries and keys or D and Dv differ: "1x16/4x1/4096x128".
std::string shape_label(const Case& problem);

/// "dense", "causal", "window 256,0", …; for a block mask its pattern.
std::string mask_label(const Case& problem, const MaskChoice& mask);

}  // namespace tessera::cli::bench
