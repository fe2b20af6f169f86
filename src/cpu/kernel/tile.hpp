// What the driver hands to the kernels: one tile of query rows of one head, and where everything it
// needs lies. Plain structs only: the kernels that include this are compiled for one instruction
// set each, and no inline function may leak from one to another.
#pragma once

#include <cstdint>

#include "cpu/simd/storage.hpp"
#include "tessera/tensor.hpp"

namespace tessera::cpu {

/// Rows of a caller's tensor, unit stride within a row. `stride` counts elements between rows.
struct Rows {
  const void* data = nullptr;
  std::int64_t stride = 0;
  DType dtype = DType::f32;
};

/// The same, written to.
struct OutputRows {
  void* data = nullptr;
  std::int64_t stride = 0;
  DType dtype = DType::f32;
};

/// A run of keys that a tile visits: keys [begin, end). With `bits`, element (i, j) of the sequence
/// exists iff bit (j − column) of row (i − row) is set; without, no element test of the block mask.
struct KeySegment {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  const std::uint32_t* bits = nullptr;
  std::int64_t words_per_row = 0;
  std::int64_t row = 0;
  std::int64_t column = 0;
};

/// Walks the segments of one tile in ascending order: a single one without a block mask, else the
/// listed blocks of the tile's block row with neighbouring full blocks joined.
struct KeyWalk {
  std::int64_t begin = 0;  ///< Keys that positional masks leave to any row of the tile.
  std::int64_t end = 0;
  bool blocks = false;
  const std::int32_t* columns = nullptr;  ///< Entries of the block row.
  const std::int32_t* bits_index = nullptr;
  std::int64_t entry = 0;
  std::int64_t entries = 0;
  std::int64_t block_kv = 0;
  std::int64_t block_q = 0;
  std::int64_t row = 0;  ///< First query row of the block row.
  std::int64_t words_per_row = 0;
  const std::uint32_t* bits = nullptr;
  /// Backward shares one head's keys out among `parts`: this walk sees the runs of `unit` keys
  /// whose number is `part` modulo `parts`. One part sees everything.
  std::int64_t unit = 0;
  std::int64_t part = 0;
  std::int64_t parts = 1;
  KeySegment pending;  ///< What is left of a segment that other parts' keys cut.
};

/// Writes the next segment, or returns false at the end. Defined in key_walk.cpp, outside the
/// instruction-set-specific units.
bool next_segment(KeyWalk& walk, KeySegment& segment);

/// How a raw product becomes a score, in base-2 units: everything is pre-multiplied by log₂e so
/// that the softmax uses exp2.
struct ScoreRules {
  float q_scale = 1;  ///< scale · log₂e, or scale / softcap.
  float softcap = 0;  ///< softcap · log₂e, 0 = off.
  float slope = 0;    ///< ALiBi slope · log₂e, 0 = off.
  bool alibi = false;
  bool has_bias = false;
  bool has_mask = false;
  Rows bias;  ///< Row 0 = the tile's first row, column 0 = key 0; stride 0 = one row for all.
  Rows mask;
  std::int64_t shift = 0;  ///< a: row i of the sequence stands at key position i + a.
  std::int64_t row0 = 0;   ///< The tile's first row within the sequence.
  bool dropout = false;
  std::uint32_t dropout_key[2] = {};
  std::uint32_t dropout_threshold = 0;
  float keep_scale = 1;
  std::uint32_t b = 0;
  std::uint32_t h = 0;
};

/// Block sizes and scratch layout; the same for every tile of a run.
struct Blocking {
  std::int64_t tile_q = 0;    ///< Query rows of a tile, a multiple of the lane count.
  std::int64_t block_kv = 0;  ///< Keys per inner step.
  std::int64_t head_dim = 0;
  std::int64_t head_dim_v = 0;
};

/// 32 keys of one head, to be packed for products on matrix tiles.
struct StripSource {
  Blocking blocking;
  Rows k, v;               ///< From the strip's first key.
  std::uint32_t used = 0;  ///< Bit j: key j exists and some query may see it.
  bool backward = false;
  bool k_in_place = false;  ///< Rows of K are not packed, …
  bool v_in_place = false;  ///< … nor those of V that the backward pass would read.
};

/// Both passes: one tile of query rows against all the keys it may see.
struct TileBase {
  Blocking blocking;
  std::int64_t rows = 0;  ///< Used rows, 1 … tile_q.
  Rows q, k, v;           ///< q from the tile's first row; k, v from the sequence's first key.
  ScoreRules rules;
  KeyWalk keys;
  std::int32_t* key_begin = nullptr;  ///< [tile_q] per row: keys [key_begin, key_end) are visible;
  std::int32_t* key_end = nullptr;    ///< the entries past `rows` repeat the last row's.
  /// Packed K and V from the sequence's first key, and the elements of one strip; null where the
  /// kernels read the caller's rows.
  const bf16* strips = nullptr;
  std::int64_t strip_elements = 0;
  /// So many of the first strips have no packed rows of K, or of V: read them where they lie.
  std::int64_t k_in_place = 0;
  std::int64_t v_in_place = 0;
};

struct ForwardTile : TileBase {
  float sink = 0;  ///< Sink · log₂e.
  bool has_sink = false;
  OutputRows o;
  float* lse = nullptr;  ///< Null: not wanted.
  std::int64_t lse_stride = 0;
};

/// Gives a worker its tiles. Those in different slots may be in work at the same time.
struct TileSource {
  static constexpr int kSlots = 4;
  void* context = nullptr;
  bool (*next_tile)(void* context, int slot, ForwardTile& tile) = nullptr;

  bool next(int slot, ForwardTile& tile) const { return next_tile(context, slot, tile); }
};

/// Rows that will be read soon.
struct RowsToCome {
  Rows rows;
  std::int64_t count = 0;
  std::int64_t bytes = 0;  ///< Of a row.
};

struct BackwardTile : TileBase {
  float scale = 1;
  /// What the worker's next tile begins with: Q, O, dO and sums of dQ; counts of 0 where unknown.
  static constexpr int kComing = 4;
  RowsToCome coming[kComing];
  Rows o, d_o;
  const float* lse = nullptr;
  std::int64_t lse_stride = 0;
  const float* d_lse = nullptr;  ///< Null: zero.
  std::int64_t d_lse_stride = 0;
  OutputRows d_q;  ///< Null data: not wanted.
  /// f32 sums of dQ from earlier parts of the keys to start from; null data: start from zero.
  Rows d_q_so_far;
  /// f32 accumulators [kv_len][stride] that the tile adds to; null: not wanted. Rows are padded to
  /// whole vectors, or the head dim is a multiple of the lane count. With packed strips there are
  /// as many rows as the strips have.
  float* d_k = nullptr;
  float* d_v = nullptr;
  std::int64_t d_k_stride = 0;
  std::int64_t d_v_stride = 0;
  float* d_sink = nullptr;  ///< Null, or where to store the tile's share of Σ p_sink (dLSE − δ).
  float sink = 0;           ///< The sink logit (natural units).
};

/// The bias gradient of rows [0, rows) × keys [begin, end): dS past the softcap, written in full
/// (zeros where nothing is visible).
struct BiasGradientTile : BackwardTile {
  std::int64_t begin = 0;
  std::int64_t end = 0;     ///< At most begin + block_kv.
  float* d_bias = nullptr;  ///< [rows][d_bias_stride]
  std::int64_t d_bias_stride = 0;
};

/// Forward for few query rows, keys in parts: kernel/few_rows.hpp.
struct FewRowsFunctions {
  std::int64_t (*scratch_floats)(const Blocking&) = nullptr;
  /// Floats of the partial result of one head's `rows`, which must start cleared.
  std::int64_t (*partial_floats)(const Blocking&, std::int64_t rows) = nullptr;
  void (*clear)(const Blocking&, std::int64_t rows, float* partial) = nullptr;
  void (*add_keys)(const ForwardTile&, float* partial, float* scratch) = nullptr;
  void (*merge)(const ForwardTile&, float* partials, std::int64_t stride,
                std::int64_t count) = nullptr;
};

/// The functions of one instruction set.
struct Isa {
  int lanes = 0;
  int tile_rows = 0;
  int tile_vectors = 0;
  std::int64_t (*forward_scratch_floats)(const Blocking&);
  std::int64_t (*backward_scratch_floats)(const Blocking&);
  void (*forward)(const ForwardTile&, float* scratch);
  void (*backward)(const BackwardTile&, float* scratch);
  void (*bias_gradient)(const BiasGradientTile&, float* scratch);
  /// out[r][c] = in[r][c] for `count` rows of `columns`, from f32 accumulators to any dtype.
  void (*store_rows)(const float* in, std::int64_t in_stride, std::int64_t count,
                     std::int64_t columns, OutputRows out);
  FewRowsFunctions few_rows;
  /// Elements of a packed strip of K and V, and how to pack one; null where nothing is packed.
  std::int64_t (*strip_elements)(const Blocking&, bool backward) = nullptr;
  void (*pack_strip)(const StripSource&, bf16* out) = nullptr;
  /// Instead of `forward` where one tile's end goes on beside the next one's beginning.
  void (*forward_all)(const TileSource&, float* scratch) = nullptr;
};

extern const Isa kIsaPortable;
extern const Isa kIsaAvx2;
extern const Isa kIsaAvx512;
extern const Isa kIsaAvx512Bf16;
extern const Isa kIsaAmx;

}  // namespace tessera::cpu
