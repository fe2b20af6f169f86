#include "cpu/sage_operands.hpp"

#include <algorithm>
#include <bit>
#include <limits>

#include "core/listed_keys.hpp"

namespace tessera::cpu {
namespace {

/// Vectors of any instruction set are whole in rows of so many floats.
constexpr std::int64_t kPadding = 16;
/// Head dims end here.
constexpr std::int64_t kMostColumns = 512;
/// Blocks that one task goes through.
constexpr std::int64_t kBlocksPerTask = 4;

std::int64_t round_up(std::int64_t n, std::int64_t step) { return (n + step - 1) / step * step; }

}  // namespace

TokenBlocks::TokenBlocks(const Problem& problem, quant::Side side)
    : queries_(side == quant::Side::queries),
      varlen_(problem.varlen),
      batch_(problem.batch),
      block_(queries_ ? quant::kQueryBlock : quant::kKeyBlock),
      heads_per_batch_(queries_ ? problem.heads_q : problem.heads_kv),
      heads_((varlen_ ? 1 : batch_) * heads_per_batch_) {
  const std::int64_t rows = queries_ ? problem.seq_q : problem.seq_kv;
  per_head_ = varlen_ ? rows / block_ + batch_ + 1 : (rows + block_ - 1) / block_;
}

std::int64_t TokenBlocks::first(std::int64_t b, std::int64_t h, const Sequence& s) const {
  if (varlen_) return h * per_head_ + begin(s) / block_ + b;
  return (b * heads_per_batch_ + h) * per_head_;
}

std::optional<TokenBlocks::Place> TokenBlocks::place(const TileGrid& grid,
                                                     std::int64_t index) const {
  Place at;
  at.all = index;
  at.h = index / per_head_ % heads_per_batch_;
  if (varlen_) {
    // The last sequence whose first block is not behind this one.
    std::int64_t high = batch_;
    while (high - at.b > 1) {
      const std::int64_t middle = (at.b + high) / 2;
      (first(middle, at.h, grid.sequence(middle)) <= index ? at.b : high) = middle;
    }
  } else {
    at.b = index / per_head_ / heads_per_batch_;
  }
  at.sequence = grid.sequence(at.b);
  at.i = index - first(at.b, at.h, at.sequence);
  if (at.i < 0 || at.i * block_ >= length(at.sequence)) return std::nullopt;
  return at;
}

SageOperands::Side::Side(const Problem& problem, quant::Side side, std::int64_t channels)
    : blocks(problem, side), columns(channels), padded(round_up(channels, kPadding)) {}

SageOperands::SageOperands(const Problem& problem, const SageIsa& isa, WorkspaceLayout& layout)
    : problem_(problem),
      isa_(isa),
      levels_(quant::levels_of(problem.precision)),
      words_(round_up((problem.head_dim + isa.ints_per_word - 1) / isa.ints_per_word,
                      isa.exact->lanes)),
      value_columns_(round_up(problem.head_dim_v, isa.value_strips ? 32 : kPadding)),
      fp8_(problem.quantization.pv == PvFormat::fp8),
      value_dtype_(!fp8_ && problem.dtype == DType::f16 ? DType::f16 : DType::bf16),
      q_(problem, quant::Side::queries, problem.head_dim),
      k_(problem, quant::Side::keys, problem.head_dim),
      v_(problem, quant::Side::keys, problem.head_dim_v) {
  const Quantization& scheme = problem.quantization;
  const bool whole = scheme.granularity == ScaleGranularity::tensor;
  q_.sums = scheme.smooth_q != SmoothQ::none;
  q_.block_means = scheme.smooth_q == SmoothQ::block;
  k_.sums = scheme.smooth_k == Smoothing::on;
  v_.sums = scheme.smooth_v == Smoothing::on;
  q_.extremes = k_.extremes = whole;
  v_.extremes = fp8_;
  reserve(q_, Which::q, layout);
  reserve(k_, Which::k, layout);
  reserve(v_, Which::v, layout);
  corrections_ = layout.add(k_.blocks.tokens() * 4);
}

void SageOperands::reserve(Side& side, Which which, WorkspaceLayout& layout) {
  const std::int64_t blocks = side.blocks.heads() * side.blocks.per_head();
  const std::int64_t heads =
      problem_.batch * (which == Which::q ? problem_.heads_q : problem_.heads_kv);
  const std::int64_t row = side.padded * 4;
  if (side.sums || side.extremes) side.statistics = layout.add(blocks * 4 * row);
  if (side.sums) side.means = layout.add((side.block_means ? blocks : heads) * row);
  if (which == Which::v) {
    side.scales = layout.add(fp8_ ? heads * 2 * row : 0);
    side.data = layout.add(side.blocks.tokens() * value_columns_ * 2);
    return;
  }
  side.whole = layout.add(heads * static_cast<std::int64_t>(sizeof(quant::Scale)));
  side.scales = layout.add(side.blocks.tokens() * 4);
  side.data = layout.add(side.blocks.tokens() * words_ * 4);
}

const SageOperands::Side& SageOperands::side(Which which) const {
  return which == Which::q ? q_ : which == Which::k ? k_ : v_;
}

const TensorView& SageOperands::tensor(const Arguments& arguments, Which which) const {
  const Inputs& in = arguments.inputs;
  return which == Which::q ? in.q : which == Which::k ? in.k : in.v;
}

template <class Body>
void SageOperands::for_each_block(const Arguments& arguments, const TileGrid& grid,
                                  const Side& side, Body&& body) const {
  const std::int64_t blocks = side.blocks.heads() * side.blocks.per_head();
  const std::int64_t tasks = (blocks + kBlocksPerTask - 1) / kBlocksPerTask;
  for_each_task(*arguments.executor, problem_.threads, tasks, [&](int, std::int64_t task) {
    const std::int64_t end = std::min((task + 1) * kBlocksPerTask, blocks);
    for (std::int64_t index = task * kBlocksPerTask; index < end; ++index) {
      if (const auto place = side.blocks.place(grid, index)) body(*place);
    }
  });
}

/// One tensor after the other, so that a thread finds its blocks in its cache the second time.
void SageOperands::quantise(const Arguments& arguments, const TileGrid& grid) const {
  if (problem_.batch == 0) return;
  for (const Which which : {Which::k, Which::v, Which::q}) {
    const Side& x = side(which);
    if (x.sums || x.extremes) find_statistics(arguments, grid, which);
    for_each_block(arguments, grid, x, [&](const TokenBlocks::Place& place) {
      if (which == Which::v) {
        quantise_values(arguments, place);
      } else {
        quantise_block(arguments, which, place);
      }
    });
  }
}

void SageOperands::find_statistics(const Arguments& arguments, const TileGrid& grid,
                                   Which which) const {
  const Side& x = side(which);
  for_each_block(arguments, grid, x, [&](const TokenBlocks::Place& place) {
    isa_.statistics(tokens_of(arguments, which, place), statistics_at(arguments, x, place.all));
  });
  const std::int64_t heads = which == Which::q ? problem_.heads_q : problem_.heads_kv;
  for_each_task(*arguments.executor, problem_.threads, problem_.batch * heads,
                [&](int, std::int64_t index) {
                  TokenBlocks::Place first;
                  first.b = index / heads;
                  first.h = index % heads;
                  first.sequence = grid.sequence(first.b);
                  first.all = x.blocks.first(first.b, first.h, first.sequence);
                  finish_head(arguments, which, first);
                });
}

ChannelStatistics SageOperands::statistics_at(const Arguments& arguments, const Side& side,
                                              std::int64_t block) const {
  auto* base = at<float>(arguments, side.statistics, block * 4 * side.padded);
  ChannelStatistics s;
  if (side.sums) s.sum = base;
  if (!side.extremes) return s;
  s.low = base + side.padded;
  s.high = base + 2 * side.padded;
  s.magnitude = reinterpret_cast<std::uint32_t*>(base + 3 * side.padded);
  return s;
}

float* SageOperands::mean_of(const Arguments& arguments, const Side& side,
                             const TokenBlocks::Place& place) const {
  if (!side.sums) return nullptr;
  const bool queries = &side == &q_;
  const std::int64_t heads = queries ? problem_.heads_q : problem_.heads_kv;
  const std::int64_t row = side.block_means ? place.all : place.b * heads + place.h;
  return at<float>(arguments, side.means, row * side.padded);
}

/// Of the block's tokens those below the used length, and of keys those that some query's row of
/// blocks lists. Block sizes are multiples of 16.
void SageOperands::mark_used(const Arguments& arguments, Which which,
                             const TokenBlocks::Place& place, TokenBlock& block) const {
  const TokenBlocks& blocks = side(which).blocks;
  const std::int64_t first = place.i * blocks.block();
  const std::int64_t count = std::min(blocks.length(place.sequence) - first, blocks.block());
  for (std::int64_t i = 0; i < count; i += 16) {
    if (which != Which::q &&
        !is_key_listed(problem_, arguments.inputs, place.b, place.h, first + i)) {
      continue;
    }
    const std::uint64_t bits = (std::uint64_t{1} << std::min<std::int64_t>(count - i, 16)) - 1;
    block.used[i / 64] |= bits << (i % 64);
  }
}

TokenBlock SageOperands::tokens_of(const Arguments& arguments, Which which,
                                   const TokenBlocks::Place& place) const {
  const Side& x = side(which);
  const std::int64_t first = x.blocks.begin(place.sequence) + place.i * x.blocks.block();
  TokenBlock block;
  block.x = rows_of(problem_, tensor(arguments, which), place.b, place.h, first);
  block.count = x.blocks.block();
  block.columns = x.columns;
  block.mean = mean_of(arguments, x, place);
  mark_used(arguments, which, place, block);
  return block;
}

/// Means and, where a channel or the whole sequence has one, scales of a head from its blocks'
/// statistics. What subtracting a mean makes of the largest magnitude is known from the extremes,
/// because rounding is monotonic.
void SageOperands::finish_head(const Arguments& arguments, Which which,
                               const TokenBlocks::Place& first) const {
  const Side& x = side(which);
  const std::int64_t length = x.blocks.length(first.sequence);
  const std::int64_t blocks = (length + x.blocks.block() - 1) / x.blocks.block();
  const auto used_tokens = [&](std::int64_t i) {
    TokenBlocks::Place place = first;
    place.i = i;
    TokenBlock block;
    mark_used(arguments, which, place, block);
    return std::popcount(block.used[0]) + std::popcount(block.used[1]);
  };
  const auto place_of = [&](std::int64_t i) {
    TokenBlocks::Place place = first;
    place.all += i;
    place.i = i;
    return place;
  };
  const auto sum_of = [&](std::int64_t i) {
    return statistics_at(arguments, x, first.all + i).sum;
  };
  if (x.sums && x.block_means) {
    for (std::int64_t i = 0; i < blocks; ++i) {
      const float tokens = static_cast<float>(used_tokens(i));
      const float* sum = sum_of(i);
      float* mean = mean_of(arguments, x, place_of(i));
      for (std::int64_t d = 0; d < x.columns; ++d) mean[d] = sum[d] / tokens;
      std::fill(mean + x.columns, mean + x.padded, 0.0f);
    }
  } else if (x.sums) {
    quant::OrderedSum sums[kMostColumns];
    std::int64_t count = 0;
    for (std::int64_t i = 0; i < blocks; ++i) {
      const float* sum = sum_of(i);
      for (std::int64_t d = 0; d < x.columns; ++d) sums[d].add(i, sum[d]);
      count += used_tokens(i);
    }
    float* mean = mean_of(arguments, x, first);
    std::fill_n(mean, x.padded, 0.0f);
    for (std::int64_t d = 0; count > 0 && d < x.columns; ++d) {
      mean[d] = sums[d].total() / static_cast<float>(count);
    }
  }
  if (!x.extremes) return;

  std::uint32_t largest[kMostColumns] = {};
  for (std::int64_t i = 0; i < blocks; ++i) {
    const ChannelStatistics s = statistics_at(arguments, x, first.all + i);
    const float* mean = mean_of(arguments, x, place_of(i));
    for (std::int64_t d = 0; d < x.columns; ++d) {
      std::uint32_t magnitude = s.magnitude[d];
      // Without a token the lowest is above the highest.
      if (mean != nullptr && magnitude < 0x7f800000u && s.low[d] <= s.high[d]) {
        magnitude = std::max(quant::magnitude_bits(s.low[d] - mean[d]),
                             quant::magnitude_bits(s.high[d] - mean[d]));
      }
      largest[d] = std::max(largest[d], magnitude);
    }
  }
  const std::int64_t head =
      first.b * (which == Which::q ? problem_.heads_q : problem_.heads_kv) + first.h;
  if (which != Which::v) {
    *at<quant::Scale>(arguments, x.whole, head) =
        quant::scale_of(*std::max_element(largest, largest + x.columns), levels_);
    return;
  }
  float* scales = at<float>(arguments, x.scales, head * 2 * x.padded);
  for (std::int64_t d = 0; d < x.columns; ++d) {
    const quant::Scale scale = quant::scale_of(largest[d], quant::kE4M3Largest);
    scales[d] = scale.scale;
    scales[x.padded + d] = scale.inverse;
  }
}

void SageOperands::quantise_block(const Arguments& arguments, Which which,
                                  const TokenBlocks::Place& place) const {
  const Side& x = side(which);
  const quant::Side scale_side = which == Which::q ? quant::Side::queries : quant::Side::keys;
  const ScaleGranularity granularity = problem_.quantization.granularity;
  const TokenBlock block = tokens_of(arguments, which, place);
  float inverse[TokenBlock::kMostTokens];
  float* scales = at<float>(arguments, x.scales, place.all * block.count);
  if (granularity == ScaleGranularity::tensor) {
    const std::int64_t heads = which == Which::q ? problem_.heads_q : problem_.heads_kv;
    const auto& scale = *at<quant::Scale>(arguments, x.whole, place.b * heads + place.h);
    std::fill_n(inverse, block.count, scale.inverse);
    std::fill_n(scales, block.count, scale.scale);
  } else {
    // Groups do not straddle blocks.
    std::uint32_t magnitudes[TokenBlock::kMostTokens];
    std::uint32_t largest[TokenBlock::kMostTokens] = {};
    quant::Scale groups[TokenBlock::kMostTokens];
    isa_.magnitudes(block, magnitudes);
    const auto group = [&](std::int64_t i) { return quant::group_of(granularity, scale_side, i); };
    for (std::int64_t i = 0; i < block.count; ++i) {
      largest[group(i)] = std::max(largest[group(i)], magnitudes[i]);
    }
    const std::int64_t count = quant::group_count(granularity, scale_side, block.count);
    for (std::int64_t g = 0; g < count; ++g) groups[g] = quant::scale_of(largest[g], levels_);
    for (std::int64_t i = 0; i < block.count; ++i) {
      inverse[i] = groups[group(i)].inverse;
      scales[i] = groups[group(i)].scale;
    }
  }
  std::int32_t* correction =
      which == Which::k ? at<std::int32_t>(arguments, corrections_, place.all * block.count)
                        : nullptr;
  isa_.quantise(block, inverse, words_,
                at<std::int32_t>(arguments, x.data, place.all * block.count * words_), correction);
}

void SageOperands::quantise_values(const Arguments& arguments,
                                   const TokenBlocks::Place& place) const {
  ValueFormat format;
  format.dtype = value_dtype_;
  const std::int64_t head = place.b * problem_.heads_kv + place.h;
  if (fp8_) format.inverse = at<float>(arguments, v_.scales, (head * 2 + 1) * v_.padded);
  const TokenBlock block = tokens_of(arguments, Which::v, place);
  isa_.quantise_values(
      block, format, value_columns_,
      at<std::uint16_t>(arguments, v_.data, place.all * block.count * value_columns_));
}

void SageOperands::attach(const Arguments& arguments, std::int64_t b, std::int64_t h,
                          const Sequence& s, std::int64_t row, SageTile& tile) const {
  const std::int64_t h_kv = h / problem_.group();
  const std::int64_t head_kv = b * problem_.heads_kv + h_kv;
  TokenBlocks::Place queries{b, h, q_.blocks.first(b, h, s), 0, s};
  const std::int64_t query = queries.all * q_.blocks.block() + row;
  queries.i = row / q_.blocks.block();
  queries.all += queries.i;
  const TokenBlocks::Place keys{b, h_kv, k_.blocks.first(b, h_kv, s), 0, s};
  const std::int64_t key = keys.all * k_.blocks.block();

  tile.words = words_;
  tile.q_words = at<std::int32_t>(arguments, q_.data, query * words_);
  tile.q_scale = at<float>(arguments, q_.scales, query);
  tile.k_words = at<std::int32_t>(arguments, k_.data, key * words_);
  tile.k_scale = at<float>(arguments, k_.scales, key);
  tile.k_correction = at<std::int32_t>(arguments, corrections_, key);
  tile.values = {at<std::uint16_t>(arguments, v_.data, key * value_columns_), value_columns_,
                 value_dtype_};
  if (fp8_) tile.v_scale = at<float>(arguments, v_.scales, head_kv * 2 * v_.padded);
  tile.q_mean = mean_of(arguments, q_, queries);
  tile.k_mean = mean_of(arguments, k_, keys);
  tile.v_mean = mean_of(arguments, v_, keys);
  tile.scale = static_cast<float>(problem_.scale);
  tile.keep_scale = tile.rules.keep_scale;
  tile.rules.keep_scale = 1;
  tile.pairs_share_scales = problem_.quantization.granularity != ScaleGranularity::token;
  if (fp8_) {
    tile.weights = {0x1.8p20f, 0x1.8p14f};
  } else if (value_dtype_ == DType::f16) {
    tile.weights = {0x1.8p13f, 0};
  } else {
    tile.weights = {0x1.8p16f, 0};
  }
}

}  // namespace tessera::cpu
