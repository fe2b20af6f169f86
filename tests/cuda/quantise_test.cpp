// What the quantise kernels leave in the workspace against the scalar model, bit for bit.
#include <cmath>
#include <cstring>
#include <limits>

#include "core/half.hpp"
#include "cuda/gpu_call.hpp"
#include "cuda/quant/workspace.hpp"
#include "quant/quantize.hpp"

namespace tessera::test {
namespace {

/// A row that quantises, and what it has in its workspace.
struct QuantisingRow {
  const char* name;
  bool packed;    ///< Two 4-bit integers a byte.
  bool half;      ///< Takes 16-bit PV.
  bool converts;  ///< Its kernels convert queries themselves where they have no softcap.
};
constexpr QuantisingRow kRows[] = {{"cuda_sage_sm90", false, false, true},
                                   {"cuda_sage_sm80", true, true, false}};

class Quantise : public Gpu {
 protected:
  void SetUp() override {
    for (const QuantisingRow& row : kRows) {
      for (const std::string& name : gpu_rows()) {
        if (name == row.name) rows_.push_back(row);
      }
    }
    if (rows_.empty()) GTEST_SKIP() << "no row that quantises can run on this machine";
  }
  void check(const Case& c, const Workload& w) const;
  void check(const Case& c) const { check(c, make_workload(c)); }

  std::vector<QuantisingRow> rows_;
};

Case quantised(Precision precision, const Quantization& pieces = {}) {
  Case c;
  c.backward = false;
  c.dtype = DType::bf16;
  c.heads_q = 4;
  c.heads_kv = 2;
  c.seq_q = 300;
  c.seq_kv = 421;
  c.attention.precision = precision;
  c.attention.quantization = pieces;
  return c;
}

/// What the workspace's layout depends on.
Problem problem_of(const Case& c) {
  Problem p;
  p.dtype = c.dtype;
  p.precision = c.attention.precision;
  p.quantization = resolved(p.precision, c.attention.quantization);
  p.varlen = c.varlen();
  p.batch = c.varlen() ? static_cast<std::int64_t>(c.cu_seqlens_q.size()) - 1 : c.batch;
  p.heads_q = c.heads_q;
  p.heads_kv = c.heads_kv;
  p.seq_q = c.seq_q;
  p.seq_kv = c.seq_kv;
  p.head_dim = c.head_dim;
  p.head_dim_v = c.head_dim_v;
  return p;
}

/// One head of one sequence on the host.
struct HeadTokens {
  std::vector<float> x;
  std::unique_ptr<bool[]> used;
  quant::TokenRows rows;
};

/// Runs a case and compares all that was quantised.
class Comparison {
 public:
  Comparison(const QuantisingRow& row, const Case& c, const Workload& w)
      : row_(row), c_(c), w_(w), problem_(problem_of(c)) {
    const GpuCall call(c, w, row.name);
    const Status status = call.run();
    EXPECT_TRUE(status.ok()) << status.message();
    bytes_.resize(call.forward_workspace.bytes());
    require(device::copy({bytes_.data(), {}}, {call.forward_workspace.data(), {DeviceType::cuda}},
                         bytes_.size()));
    to_ = cuda::quantised_workspace(problem_, bytes_.data(), row.packed);
  }

  void check() {
    for (std::int64_t b = 0; b < problem_.batch; ++b) {
      for (std::int64_t h = 0; has_queries() && h < c_.heads_q; ++h) {
        check_tokens(b, h, quant::Side::queries);
      }
      for (std::int64_t h = 0; h < c_.heads_kv; ++h) {
        check_tokens(b, h, quant::Side::keys);
        check_values(b, h);
      }
    }
    EXPECT_EQ(wrong_, 0) << row_.name << " " << c_.describe() << ": of " << compared_ << ", first "
                         << first_wrong_;
    EXPECT_GT(compared_, 0) << row_.name << " " << c_.describe();
  }

 private:
  /// Else conformance's windows of one key show what became of them.
  bool has_queries() const { return !row_.converts || c_.attention.softcap > 0; }

  HeadTokens load(const Tensor& t, std::int64_t b, std::int64_t h, std::int64_t begin,
                  std::int64_t length, bool keys) const {
    HeadTokens head;
    const std::int64_t columns = t.size(c_.varlen() ? 2 : 3);
    head.x.resize(length * columns);
    head.used = std::make_unique<bool[]>(length + 1);
    for (std::int64_t i = 0; i < length; ++i) {
      head.used[i] = !keys || listed(b, h, i);
      for (std::int64_t d = 0; d < columns; ++d) {
        head.x[i * columns + d] =
            static_cast<float>(c_.varlen() ? t.at({begin + i, h, d}) : t.at({b, h, begin + i, d}));
      }
    }
    head.rows = {head.x.data(), length, columns, head.used.get()};
    return head;
  }

  bool listed(std::int64_t b, std::int64_t h_kv, std::int64_t j) const {
    if (!c_.blocks) return true;
    const BlockMaskView& mask = w_.block_view;
    for (std::int64_t h = h_kv * problem_.group(); h < (h_kv + 1) * problem_.group(); ++h) {
      const std::int64_t plane = (mask.batch == 1 ? 0 : b) * mask.heads + (mask.heads == 1 ? 0 : h);
      const std::int64_t* at = mask.transposed_offsets + plane * mask.kv_blocks + j / mask.block_kv;
      if (at[1] > at[0]) return true;
    }
    return false;
  }

  template <typename T>
  void compare(T got, T expected, const char* what, std::int64_t b, std::int64_t h, std::int64_t i,
               std::int64_t d) {
    ++compared_;
    bool same = std::memcmp(&got, &expected, sizeof(T)) == 0;
    if constexpr (std::is_floating_point_v<T>) same |= std::isnan(got) && std::isnan(expected);
    if (same) return;
    if (wrong_++ == 0) {
      first_wrong_ = std::string(what) + " of sequence " + std::to_string(b) + " head " +
                     std::to_string(h) + " token " + std::to_string(i) + " channel " +
                     std::to_string(d) + ": " + std::to_string(got) + ", expected " +
                     std::to_string(expected);
    }
  }

  /// A head's plane in the workspace, and the sequence's first row there.
  std::int64_t plane(std::int64_t b, std::int64_t h, std::int64_t heads) const {
    return c_.varlen() ? h : b * heads + h;
  }
  std::int64_t first_row(std::int64_t b, std::int64_t begin) const {
    return c_.varlen() ? (begin / cuda::kTileTokens + b) * cuda::kTileTokens : 0;
  }

  /// The integer of channel d in a row of q or k.
  int integer(const std::int8_t* row, std::int64_t d) const {
    if (!to_.operands.packed) return row[d];
    const int nibble = row[d / 2] >> (d % 2 * 4) & 15;
    return nibble < 8 ? nibble : nibble - 16;
  }

  void check_tokens(std::int64_t b, std::int64_t h, quant::Side side) {
    const bool queries = side == quant::Side::queries;
    const Span span = span_of(c_, b);
    const Quantization& scheme = problem_.quantization;
    const HeadTokens head =
        load(queries ? w_.q : w_.k, b, h, queries ? span.q_begin : span.kv_begin,
             queries ? span.q_len : span.kv_len, !queries);
    const std::int64_t length = head.rows.rows, columns = head.rows.columns;
    std::vector<float> mean((length / quant::kQueryBlock + 1) * columns);
    quant::Means means;
    if (queries && scheme.smooth_q == SmoothQ::block) {
      quant::block_means(head.rows, quant::kQueryBlock, mean.data());
      means = {mean.data(), quant::kQueryBlock};
    } else if (queries ? scheme.smooth_q == SmoothQ::tensor : scheme.smooth_k == Smoothing::on) {
      quant::channel_means(head.rows, queries ? quant::kQueryBlock : quant::kKeyBlock, mean.data());
      means = {mean.data()};
    }
    const std::int64_t groups = quant::group_count(scheme.granularity, side, length);
    std::vector<std::int8_t> values(length * columns);
    std::vector<float> scales(groups);
    std::vector<std::uint32_t> magnitudes(groups);
    quant::quantise_tokens(head.rows, means, scheme.granularity, side,
                           quant::levels_of(problem_.precision), values.data(), scales.data(),
                           magnitudes.data());
    const cuda::QuantisedOperands& x = to_.operands;
    const std::int64_t rows = queries ? x.rows_q : x.rows_kv;
    const std::int64_t first = plane(b, h, queries ? c_.heads_q : c_.heads_kv) * rows +
                               first_row(b, queries ? span.q_begin : span.kv_begin);
    const std::int8_t* got = queries ? x.q : x.k;
    const float* got_scales = queries ? x.q_scales : x.k_scales;
    const char* name = queries ? "q" : "k";
    const std::int64_t whole = (length + cuda::kTileTokens - 1) / cuda::kTileTokens;
    for (std::int64_t i = 0; i < whole * cuda::kTileTokens; ++i) {
      for (std::int64_t d = 0; d < x.pitch * (x.packed ? 2 : 1); ++d) {
        const bool exists = i < length && d < columns;
        compare<int>(integer(got + (first + i) * x.pitch, d), exists ? values[i * columns + d] : 0,
                     name, b, h, i, d);
      }
      if (i >= length || !head.used[i]) continue;
      const std::int64_t at = first + i;
      const std::int64_t scale = x.token_scales ? at
                                 : queries      ? at / 32 * 8 + at % 8
                                                : at / 64 * 4 + at % 8 / 2;
      compare(got_scales[scale], scales[quant::group_of(scheme.granularity, side, i)],
              queries ? "q scale" : "k scale", b, h, i, 0);
    }
  }

  void check_values(std::int64_t b, std::int64_t h) {
    const Span span = span_of(c_, b);
    const HeadTokens head = load(w_.v, b, h, span.kv_begin, span.kv_len, true);
    const std::int64_t length = head.rows.rows, columns = head.rows.columns;
    if (length == 0) return;  // nobody multiplies these
    const bool smooth = problem_.quantization.smooth_v == Smoothing::on;
    std::vector<float> mean(columns), scales(columns);
    quant::channel_means(head.rows, quant::kKeyBlock, mean.data());
    const quant::Means means = smooth ? quant::Means{mean.data()} : quant::Means{};
    const cuda::QuantisedOperands& x = to_.operands;
    const std::int64_t of_sequence = (b * c_.heads_kv + h) * columns;
    for (std::int64_t d = 0; smooth && d < columns; ++d) {
      compare(x.v_means[of_sequence + d], mean[d], "v mean", b, h, 0, d);
    }
    if (problem_.quantization.pv == PvFormat::half) {
      if (c_.dtype == DType::f16) {
        check_half_values(b, h, head, means, static_cast<const f16*>(x.v_half));
      } else {
        check_half_values(b, h, head, means, static_cast<const bf16*>(x.v_half));
      }
      return;
    }
    std::vector<std::uint8_t> codes(length * columns);
    quant::quantise_channels(head.rows, means, codes.data(), scales.data());
    for (std::int64_t d = 0; d < columns; ++d) {
      compare(x.v_scales[of_sequence + d], scales[d], "v scale", b, h, 0, d);
      const std::uint8_t* row =
          x.v + (plane(b, h, c_.heads_kv) * columns + d) * x.rows_kv + first_row(b, span.kv_begin);
      for (std::int64_t j = 0; j < length; ++j) {
        const std::int64_t in = j % 16;
        const std::int64_t at = j - in + in % 8 / 2 * 4 + in / 8 * 2 + in % 2;
        // −0 and 0 are different codes of the same number.
        const std::uint8_t got = row[at], expected = codes[j * columns + d];
        const bool zeros = (got & 0x7f) == 0 && (expected & 0x7f) == 0;
        compare<int>(zeros ? 0 : got, zeros ? 0 : expected, "v", b, h, j, d);
      }
    }
  }

  /// Whole rows, of keys that nothing visits and of padding, too.
  template <typename T>
  void check_half_values(std::int64_t b, std::int64_t h, const HeadTokens& head,
                         const quant::Means& means, const T* values) {
    const cuda::QuantisedOperands& x = to_.operands;
    const std::int64_t length = head.rows.rows, columns = head.rows.columns;
    const std::int64_t first =
        plane(b, h, c_.heads_kv) * x.rows_kv + first_row(b, span_of(c_, b).kv_begin);
    const std::int64_t whole = (length + cuda::kTileTokens - 1) / cuda::kTileTokens;
    for (std::int64_t j = 0; j < whole * cuda::kTileTokens; ++j) {
      for (std::int64_t d = 0; d < x.v_pitch; ++d) {
        T expected{};
        if (j < length && d < columns && head.used[j]) {
          from_f32(means.subtract_from(head.rows.at(j, d), head.rows, j, d), expected);
        }
        compare(to_f32(values[(first + j) * x.v_pitch + d]), to_f32(expected), "v", b, h, j, d);
      }
    }
  }

  const QuantisingRow& row_;
  const Case& c_;
  const Workload& w_;
  const Problem problem_;
  std::vector<std::byte> bytes_;
  cuda::QuantisedWorkspace to_;
  std::int64_t compared_ = 0, wrong_ = 0;
  std::string first_wrong_;
};

void Quantise::check(const Case& c, const Workload& w) const {
  for (const QuantisingRow& row : rows_) {
    if (!row.half && c.attention.quantization.pv == PvFormat::half) continue;
    Comparison(row, c, w).check();
    if (!row.converts) continue;
    Case capped = c;
    capped.attention.softcap = 30;
    Comparison(row, capped, w).check();
  }
}

TEST_F(Quantise, EveryScheme) {
  for (const Precision precision : {Precision::sage8, Precision::sage4}) {
    for (int granularity = 1; granularity <= 5; ++granularity) {
      for (int smooth_q = 1; smooth_q <= 3; ++smooth_q) {
        for (int bits = 0; bits < 4; ++bits) {
          Quantization pieces;
          pieces.granularity = static_cast<ScaleGranularity>(granularity);
          pieces.smooth_q = static_cast<SmoothQ>(smooth_q);
          pieces.smooth_k = bits & 1 ? Smoothing::on : Smoothing::off;
          pieces.smooth_v = bits & 2 ? Smoothing::on : Smoothing::off;
          Case c = quantised(precision, pieces);
          c.dtype = smooth_q == 1 ? DType::f32 : smooth_q == 2 ? DType::f16 : DType::bf16;
          check(c);
        }
      }
    }
  }
}

TEST_F(Quantise, EveryHeadDimAndLength) {
  constexpr std::int64_t kLengths[] = {1, 63, 64, 65, 127, 129, 1151};
  int turn = 0;
  for (const std::int64_t dim : {8, 40, 59, 64, 96, 128, 192, 256}) {
    for (const DType dtype : {DType::f16, DType::bf16, DType::f32}) {
      Case c = quantised(turn % 2 == 0 ? Precision::sage8 : Precision::sage4);
      c.dtype = dtype;
      c.head_dim = dim;
      c.head_dim_v = turn % 3 == 0 ? 64 : dim;
      c.seq_q = kLengths[turn % 7];
      c.seq_kv = kLengths[(turn + 3) % 7];
      c.attention.quantization.smooth_v = Smoothing::on;
      if (turn % 4 == 1) c.layout = LayoutKind::padded;
      if (turn % 4 == 3) c.layout = LayoutKind::bshd;
      check(c);
      ++turn;
    }
  }
}

/// Sequences that fit into the shared memory of clusters of every size, and some that do not.
TEST_F(Quantise, LongSequences) {
  int turn = 0;
  for (const std::int64_t length : {257, 600, 1500, 2048, 4000, 4300, 8193}) {
    for (const std::int64_t dim : {64, 128}) {
      Case c = quantised(turn % 3 == 0 ? Precision::sage4 : Precision::sage8);
      c.dtype = turn % 2 == 0 ? DType::f16 : DType::bf16;
      c.batch = 1;
      c.heads_q = c.heads_kv = 2;
      c.head_dim = c.head_dim_v = dim;
      c.seq_q = turn % 3 == 0 ? length : 130;
      c.seq_kv = length;
      if (turn % 4 == 3) c.layout = LayoutKind::bshd;
      check(c);
      ++turn;
    }
  }
}

TEST_F(Quantise, ValuesOf16Bits) {
  int turn = 0;
  for (const std::int64_t dim : {8, 59, 64, 128, 192, 256}) {
    for (const DType dtype : {DType::f16, DType::bf16, DType::f32}) {
      Case c = quantised(turn % 2 == 0 ? Precision::sage8 : Precision::sage4);
      c.attention.quantization.pv = PvFormat::half;
      c.attention.quantization.smooth_v = turn % 3 == 0 ? Smoothing::off : Smoothing::on;
      c.dtype = dtype;
      c.head_dim = c.head_dim_v = dim;
      if (turn % 4 == 1) c.layout = LayoutKind::padded;
      if (turn % 4 == 2) {
        c.seq_q = c.seq_kv = 400;
        c.blocks = BlockPattern{};
        c.blocks->density = 0.1;
      }
      if (turn % 4 == 3) {
        c.cu_seqlens_q = {0, 5, 5, 133, 300};
        c.cu_seqlens_k = {0, 130, 131, 131, 421};
        c.kv_lens = {100, 1, 0, 288};
      }
      check(c);
      ++turn;
    }
  }
}

TEST_F(Quantise, PackedSequencesAndLengths) {
  for (const Precision precision : {Precision::sage8, Precision::sage4}) {
    Case c = quantised(precision);
    c.attention.quantization.smooth_v = Smoothing::on;
    c.cu_seqlens_q = {0, 5, 5, 133, 300};
    c.cu_seqlens_k = {0, 130, 131, 131, 421};
    check(c);
    c.kv_lens = {100, 1, 0, 288};
    c.q_lens = {5, 0, 100, 167};
    check(c);
    Case batched = quantised(precision);
    batched.kv_lens = {200, 421};
    batched.q_lens = {300, 129};
    check(batched);
  }
}

TEST_F(Quantise, BlocksThatNothingVisits) {
  for (const double density : {0.05, 0.3}) {
    Case c = quantised(Precision::sage8);
    c.attention.quantization.smooth_v = Smoothing::on;
    c.seq_q = c.seq_kv = 700;
    c.blocks = BlockPattern{};
    c.blocks->density = density;
    c.blocks->per_head = c.blocks->per_batch = true;
    check(c);
  }
}

TEST_F(Quantise, InfinitiesNansAndZeros) {
  Case c = quantised(Precision::sage8);
  c.dtype = DType::f16;
  Workload w = make_workload(c);
  const double infinity = std::numeric_limits<double>::infinity();
  w.q.put({0, 1, 17, 3}, infinity);
  w.k.put({1, 0, 70, 5}, -infinity);
  w.v.put({0, 1, 400, 9}, std::numeric_limits<double>::quiet_NaN());
  for (std::int64_t j = 0; j < c.seq_kv; ++j) {
    for (std::int64_t d = 0; d < c.head_dim; ++d) w.k.put({0, 0, j, d}, 0);
    w.v.put({1, 1, j, 2}, 0);
  }
  check(c, w);
}

}  // namespace
}  // namespace tessera::test
