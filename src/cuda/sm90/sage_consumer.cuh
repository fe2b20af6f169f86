// The warpgroups of a quantised kernel that multiply. See sage.cuh.
#pragma once

#include "cuda/algo/quantised_softmax.cuh"
#include "cuda/algo/score_tile.cuh"
#include "cuda/ptx/copy_float.cuh"
#include "cuda/ptx/shared_float.cuh"
#include "cuda/sm90/consumer_side.cuh"
#include "cuda/sm90/sage_traits.cuh"
#include "cuda/sm90/store.cuh"
#include "cuda/tile/group_products_8bit.cuh"

namespace tessera::cuda::sm90 {

/// One warpgroup: 64 rows of each of the block's tiles of queries.
template <SageConfig C>
class SageConsumer : ConsumerSide<C> {
  using Base = ConsumerSide<C>;
  using Traits = KernelTraits<C>;
  static constexpr int kTiles = Traits::kScoreTiles;
  static constexpr int kGroupTiles = kKeyGroup / 8;
  using Rules = ScoreTile<__half, 1, kTiles>;

 public:
  /// `group`: 0 for the first consumer, which is the block's second warpgroup.
  __device__ SageConsumer(const Parameters& p, const SageOperands& operands, const Sharing& sharing,
                          const SharedMemory<C>& shared, int group)
      : Base(p, shared, group), operands_(operands), sharing_(sharing) {}

  /// One tile after another. Consumers compute weights in turns, each a part of the step behind the
  /// one before it, so that some multiply while others compute.
  __device__ __forceinline__ void run() {
    if (group_ == Traits::kConsumers - 1) pass_turn();
    for (Message visit = receive(); !visit.none(); visit = receive()) {
      GroupWork work = receive_work();
      ptx::make_opaque(work.whole.begin);
      ptx::make_opaque(work.whole.end);
      Registers r;
      QuantisedSoftmax softmax;
      read_q_scales(r, work);
      ask_for_channels(work);
      while (true) {
        multiply_scores(r);
        scale_scores(r, visit, work);
        weigh(r, softmax, visit, work);
        multiply_values(r);
        if (!visit.has(Message::more)) break;
        visit = receive();
      }
      store(r, softmax, work);
    }
  }

 private:
  using Base::group_, Base::k_, Base::p_, Base::q_, Base::shared_, Base::v_;
  using Base::receive, Base::receive_work, Base::release, Base::release_k, Base::wait_turn,
      Base::pass_turn;
  using typename Base::GroupWork;

  /// What the products read and write.
  struct Registers {
    std::int32_t s[kTiles][4];             ///< Q Kᵀ in integers,
    float w[1][kTiles][4];                 ///< scores where there is more to them,
    std::uint32_t weights[kTiles / 4][4];  ///< weights in E4M3.
    float o[Traits::kOutTiles][4] = {};    ///< P V,
    float sum[2] = {0, 0};                 ///< row sums of P,
    float exact[2] = {0, 0};               ///< and this thread's part of them before P was rounded.
    float q_factor[2];                     ///< Rows' scales; without extras the first is both's,
    float factor[Traits::kKeyGroups];  ///< and what scores are multiplied by, in exponents of 2.
    float offset[2];                   ///< q · k̄, to be added to scores before their scale.
  };

  /// Scales of the thread's two rows.
  __device__ __forceinline__ void read_q_scales(Registers& r, const GroupWork& work) const {
    if constexpr (Traits::kExtras) {
      const QuantisedOperands& x = operands_.tensors;
      const std::int64_t row = first_row(work);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::int64_t at = row + 8 * half;
        r.q_factor[half] = x.q_scales[x.token_scales ? at : at / kQueryWarp * 8 + at % 8];
        r.offset[half] = p_.softcap > 0 && x.row_offsets != nullptr ? x.row_offsets[at] : 0.0f;
      }
    } else {
      const float unit = C.scope == SageConfig::smooth_q ? 1 : p_.scale * kLog2e;
      const int row = 16 * static_cast<int>(threadIdx.x % kGroupThreads / kWarpSize);
      const int r8 = static_cast<int>(threadIdx.x % kWarpSize / 4);
      r.q_factor[0] = unit * ptx::load_shared_float(query_scales(shared_, q_.stage, group_) +
                                                    (row / kQueryWarp * 8 + r8) * 4);
    }
  }

  /// Scales of V's channels, on their way until o is stored: those of a work lie in the place that
  /// the work before the last has left.
  __device__ __forceinline__ void ask_for_channels(const GroupWork& work) const {
    const int channel = static_cast<int>(threadIdx.x % kGroupThreads);
    if (channel < C.head_dim_v) {
      const bool exists = channel < p_.head_dim_v;
      ptx::copy_float(channels(q_.stage) + 4 * channel,
                      operands_.tensors.v_scales + first_channel(work) + (exists ? channel : 0),
                      exists);
    }
    ptx::cp_async_commit();
  }
  __device__ __forceinline__ void wait_for_channels() const {
    ptx::cp_async_wait<0>();
    ptx::sync_group(kGroupBarrier + group_, kGroupThreads);
  }
  __device__ __forceinline__ std::uint32_t channels(int stage) const {
    return shared_.q(0, 0).base + Traits::kChannels + (2 * group_ + stage) * 4 * C.head_dim_v;
  }
  __device__ __forceinline__ std::int64_t first_channel(const GroupWork& work) const {
    return (std::int64_t{work.tile.b} * p_.heads_kv + work.tile.h / p_.group) *
           operands_.tensors.v_stride;
  }

  /// Number of the thread's first row among all rows of q.
  __device__ __forceinline__ std::int64_t first_row(const GroupWork& work) const {
    const int lane = static_cast<int>(threadIdx.x % kWarpSize);
    const int warp = static_cast<int>(threadIdx.x % kGroupThreads / kWarpSize);
    const std::int64_t plane =
        (p_.varlen ? 0 : work.tile.b) * std::int64_t{p_.heads_q} + work.tile.h;
    const int begin = p_.varlen ? padded_begin(work.sequence.q_begin, work.tile.b) : 0;
    const int rows = operands_.tensors.rows_q;
    const int row = begin + work.tile.begin + 16 * warp + lane / 4;
    return plane * rows + min(row, rows - 9);  // Warpgroups may lie behind the last row.
  }

  /// S [64 × tile_n] = Q Kᵀ.
  __device__ __forceinline__ void multiply_scores(Registers& r) const {
    ptx::wgmma_fence();
    start_rows_s8(r.s, shared_.q(q_.stage, group_), shared_.k(k_.stage));
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    wait_turn();
    ptx::hold(r.s);
  }

  /// What scores are multiplied by. Then K and its scales may be overwritten, and behind its last
  /// key tile Q.
  __device__ __forceinline__ void scale_scores(Registers& r, const Message& visit,
                                               const GroupWork& work) {
    if constexpr (Traits::kExtras) {
      dequantise(r, visit, work);
    } else {
      const int t = static_cast<int>(threadIdx.x % 4);
#pragma unroll
      for (int group = 0; group < Traits::kKeyGroups; ++group) {
        r.factor[group] =
            r.q_factor[0] * ptx::load_shared_float(shared_.scales(k_.stage) + (4 * group + t) * 4);
      }
      if constexpr (C.scope == SageConfig::smooth_q) add_offsets(r, t);
    }
    release_k(visit);
  }

  /// From integers to q · k with what smoothing Q has subtracted; it remains to multiply by the
  /// softmax's scale.
  __device__ __forceinline__ void add_offsets(Registers& r, int t) const {
    const std::uint32_t offsets = shared_.scales(k_.stage + 1) - Traits::kOffsetBytes + 2 * t * 4;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const float2 offset = ptx::load_shared_pair(offsets + 8 * n * 4);
      const float factor = r.factor[n / kGroupTiles];
#pragma unroll
      for (int at = 0; at < 4; ++at) {
        r.w[0][n][at] =
            fmaf(static_cast<float>(r.s[n][at]), factor, at % 2 == 0 ? offset.x : offset.y);
      }
    }
#pragma unroll
    for (float& factor : r.factor) factor = p_.scale * kLog2e;
  }

  /// From integers to q · k: scales of rows and keys, and what smoothing has subtracted.
  __device__ __forceinline__ void dequantise(Registers& r, const Message& visit,
                                             const GroupWork& work) const {
    const QuantisedOperands& x = operands_.tensors;
    const int t = static_cast<int>(threadIdx.x % 4);
    const std::uint32_t scales = shared_.scales(k_.stage);
    const float* offsets = nullptr;
    if (x.key_offsets != nullptr) {
      const std::int64_t plane =
          (p_.varlen ? 0 : work.tile.b) * std::int64_t{p_.heads_q} + work.tile.h;
      const int q_begin = p_.varlen ? padded_begin(work.sequence.q_begin, work.tile.b) : 0;
      const int block = min((q_begin + work.tile.begin) / kTileTokens, x.offset_blocks - 1);
      const int begin = p_.varlen ? padded_begin(work.sequence.kv_begin, work.tile.b) : 0;
      offsets = x.key_offsets + (plane * x.offset_blocks + block) * x.rows_kv + begin +
                visit.begin() + 2 * t;
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      float2 key;
      if (x.token_scales) {
        key = ptx::load_shared_pair(scales + (8 * n + 2 * t) * 4);
      } else {
        key.x = key.y = ptx::load_shared_float(scales + (n / kGroupTiles * 4 + t) * 4);
      }
      float2 offset = {0, 0};
      if (offsets != nullptr) offset = *reinterpret_cast<const float2*>(offsets + 8 * n);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float q = r.q_factor[half];
        r.w[0][n][2 * half] =
            fmaf(static_cast<float>(r.s[n][2 * half]), q * key.x, offset.x + r.offset[half]);
        r.w[0][n][2 * half + 1] =
            fmaf(static_cast<float>(r.s[n][2 * half + 1]), q * key.y, offset.y + r.offset[half]);
      }
    }
  }

  /// Scores, then weights.
  __device__ __forceinline__ void weigh(Registers& r, QuantisedSoftmax& softmax,
                                        const Message& visit, const GroupWork& work) const {
    const Rules rules(p_, work.sequence, work.tile.b, work.tile.h,
                      work.tile.begin - (group_ + 1) * kGroupRows);
    const bool inside =
        visit.begin() >= work.whole.begin && visit.begin() + C.tile_n <= work.whole.end;
    if constexpr (Traits::kExtras) {
      rules.score(r.w, visit.begin());
    } else {
      constexpr bool kIntegers = C.scope == SageConfig::plain;
      if (visit.has(Message::full) && inside) {
        if constexpr (kIntegers) return weigh_tile(r, softmax, r.s);
        return weigh_tile(r, softmax, r.w[0]);
      }
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int at = 0; at < 4; ++at) {
          const float x = kIntegers ? static_cast<float>(r.s[n][at]) : r.w[0][n][at];
          r.w[0][n][at] = x * r.factor[n / kGroupTiles];
        }
      }
    }
#pragma unroll
    for (float& factor : r.factor) factor = 1;
    if (!visit.has(Message::full)) rules.mask_blocks(r.w, visit.begin());
    if (!inside) rules.mask_positions(r.w, visit.begin());
    weigh_tile(r, softmax, r.w[0]);
  }

  template <typename Number>
  __device__ __forceinline__ void weigh_tile(Registers& r, QuantisedSoftmax& softmax,
                                             const Number (&s)[kTiles][4]) const {
    float top[2];
    find_tops(r, s, top);
    float by[2];
    if (softmax.prepare(top, by)) rescale(r, by);
    if (p_.lse.data != nullptr) {
      exponentiate<true>(r, softmax, s);
    } else {
      exponentiate<false>(r, softmax, s);
    }
  }

  /// This thread's largest exponents.
  template <typename Number>
  __device__ __forceinline__ static void find_tops(const Registers& r, const Number (&s)[kTiles][4],
                                                   float (&top)[2]) {
    if constexpr (C.scope == SageConfig::smooth_q) {  // floats with one factor
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        top[half] = r.factor[0] * QuantisedSoftmax::top_unless_negative(s, half);
      }
      if (__all_sync(~0u, top[0] >= 0 && top[1] >= 0)) return;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      top[half] = minus_infinity();
#pragma unroll
      for (int group = 0; group < Traits::kKeyGroups; ++group) {
        top[half] = fmaxf(top[half], r.factor[group] * QuantisedSoftmax::top(s, group * kGroupTiles,
                                                                             kGroupTiles, half));
      }
    }
  }

  /// Weights as the A operand of the second product, in the order in which V has its keys; with
  /// kExact also their sums before they are rounded, which the lse is made of. The turn is passed
  /// on in between.
  ///
  /// They come in parts, each of which takes its reference from the first weights of the one before
  /// it, times zero: else the compiler puts all conversions in front of all exponentials, and the
  /// unit of neither is busy all the time. Where Q was smoothed conversions are done by now.
  template <bool kExact, typename Number>
  __device__ __forceinline__ void exponentiate(Registers& r, const QuantisedSoftmax& softmax,
                                               const Number (&s)[kTiles][4]) const {
    constexpr int kParts = C.scope == SageConfig::smooth_q ? 0 : Traits::kOutTiles > 8 ? 2 : 1;
    int bits = 0;
    ptx::make_opaque(bits);
    const float zero = __int_as_float(bits);
    float first[2], reference[2] = {softmax.reference(0), softmax.reference(1)};
#pragma unroll
    for (int k = 0; k < kTiles / 4; ++k) {
      if (k == kTiles / 8) pass_turn();
#pragma unroll
      for (int at = 0; at < 4; ++at) {
        const int half = at % 2;
        const bool begins = kParts > 0 && (at < 2 || kParts == 2);
        if (begins && (k > 0 || at > 1)) {
          reference[half] = fmaf(first[half], zero, softmax.reference(half));
        }
        float p[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int n = 4 * k + at / 2 * 2 + e / 2;
          p[e] = QuantisedSoftmax::weight_above(s[n][2 * half + e % 2], r.factor[n / kGroupTiles],
                                                reference[half]);
          if (kExact) r.exact[half] += p[e];
        }
        if (begins) first[half] = p[0];
        r.weights[k][at] = ptx::pack_e4m3(p[0], p[1], p[2], p[3]);
      }
    }
  }

  __device__ __forceinline__ static void rescale(Registers& r, const float (&by)[2]) {
#pragma unroll
    for (int n = 0; n < Traits::kOutTiles; ++n) {
#pragma unroll
      for (int at = 0; at < 4; ++at) r.o[n][at] *= by[at / 2];
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      r.sum[half] *= by[half];
      r.exact[half] *= by[half];
    }
  }

  /// O [64 × Dv] += P V, and the row sums of P.
  __device__ __forceinline__ void multiply_values(Registers& r) {
    ptx::mbarrier_wait(shared_.v_full(v_.stage), v_.parity);
    if constexpr (Traits::kOutTiles > 8) {
      multiply_channels<0, 8>(r);
      multiply_channels<8, Traits::kOutTiles - 7>(r);
    } else {
      multiply_channels<0, Traits::kOutTiles + 1>(r);
    }
    release(shared_.v_empty(v_.stage));
    v_.advance();
  }

  /// The product with kCount tiles of channels; those behind the last are the ones. It is added up
  /// in f32: sums of the product itself keep 13 bits only.
  template <int kFirst, int kCount>
  __device__ __forceinline__ void multiply_channels(Registers& r) const {
    float part[kCount][4];
    ptx::wgmma_fence();
    start_registers_e4m3(part, r.weights, shared_.v(v_.stage), 8 * kFirst);
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    ptx::hold(part);
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      if (kFirst + n == Traits::kOutTiles) {
        r.sum[0] += part[n][0];
        r.sum[1] += part[n][2];
      } else {
#pragma unroll
        for (int at = 0; at < 4; ++at) r.o[kFirst + n][at] += part[n][at];
      }
    }
  }

  /// Leaves a share's sums to the others of its work. Whoever comes last puts all of them together;
  /// false: others will. Each warp does so for itself.
  __device__ __forceinline__ bool join_shares(Registers& r, QuantisedSoftmax& softmax,
                                              int share) const {
    constexpr int kVectors = Traits::kOutTiles + 2;  // of a thread
    constexpr int kWarps = Traits::kConsumers * kGroupThreads / kWarpSize;
    const int lane = static_cast<int>(threadIdx.x % kWarpSize);
    const int warp = static_cast<int>(threadIdx.x / kWarpSize) - kGroupThreads / kWarpSize;
    const int of_work = share / sharing_.parts;
    const auto vectors = [&](int number) {
      return reinterpret_cast<float4*>(sharing_.sums) +
             (std::int64_t{number} * kWarps + warp) * kVectors * kWarpSize + lane;
    };
    float4* const own = vectors(share);
#pragma unroll
    for (int n = 0; n < Traits::kOutTiles; ++n) {
      own[n * kWarpSize] = {r.o[n][0], r.o[n][1], r.o[n][2], r.o[n][3]};
    }
    own[Traits::kOutTiles * kWarpSize] = {r.sum[0], r.sum[1], r.exact[0], r.exact[1]};
    own[(Traits::kOutTiles + 1) * kWarpSize] = {softmax.reference(0), softmax.reference(1), 0, 0};
    __threadfence();
    __syncwarp();
    int before = 0;
    if (lane == 0) before = atomicAdd(sharing_.arrivals + of_work * kWarps + warp, 1);
    if (__shfl_sync(~0u, before, 0) + 1 < sharing_.parts) return false;
    __threadfence();
    r = {};
    softmax = {};
#pragma unroll 1
    for (int part = 0; part < sharing_.parts; ++part) {
      const float4* const from = vectors(of_work * sharing_.parts + part);
      const float4 sums = __ldcg(from + Traits::kOutTiles * kWarpSize);
      const float4 references = __ldcg(from + (Traits::kOutTiles + 1) * kWarpSize);
      const float others[2] = {references.x, references.y};
      float by[2], with[2];
      softmax.join(others, by, with);
      rescale(r, by);
      r.sum[0] += with[0] * sums.x;
      r.sum[1] += with[1] * sums.y;
      r.exact[0] += with[0] * sums.z;
      r.exact[1] += with[1] * sums.w;
#pragma unroll
      for (int n = 0; n < Traits::kOutTiles; ++n) {
        const float4 o = __ldcg(from + n * kWarpSize);
        r.o[n][0] += with[0] * o.x;
        r.o[n][1] += with[0] * o.y;
        r.o[n][2] += with[1] * o.z;
        r.o[n][3] += with[1] * o.w;
      }
    }
    return true;
  }

  /// Divides by the row sums, and stores o and lse of every row that exists.
  __device__ __forceinline__ void store(Registers& r, QuantisedSoftmax& softmax,
                                        const GroupWork& work) const {
    const QuantisedOperands& x = operands_.tensors;
    const int warp = static_cast<int>(threadIdx.x % kGroupThreads / kWarpSize);
    const int lane = static_cast<int>(threadIdx.x % kWarpSize);
    const bool shifted = x.row_offsets != nullptr && !(p_.softcap > 0);
    if constexpr (Traits::kShares) {
      wait_for_channels();
      if (work.split > 0 && !join_shares(r, softmax, work.split - 1)) return;
    }
    float scale[2], weight[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = work.tile.begin + 16 * warp + 8 * half + lane / 4;
      const float taken = shifted ? p_.scale * x.row_offsets[first_row(work) + 8 * half] : 0.0f;
      const float sink =
          Traits::kExtras && p_.sink != nullptr ? p_.sink[work.tile.h] : minus_infinity();
      auto result = softmax.finish(half, r.sum[half], r.exact[half], sink - taken);
      result.lse = r.sum[half] == 0 ? sink : result.lse + taken;
      const bool used = i < work.sequence.q_len;
      if (p_.lse.data != nullptr && lane % 4 == 0 && i < work.sequence.q_rows) {
        *scalar_of(p_.lse, work.tile.b, work.tile.h, work.sequence.q_begin + i) =
            used ? result.lse : minus_infinity();
      }
      scale[half] = used ? result.scale : 0;
      weight[half] = result.weight;
    }
    if constexpr (!Traits::kShares) wait_for_channels();
    scale_channels(r, scale);
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      const int i = work.tile.begin + 16 * warp + 8 * half + lane / 4;
      const bool stored = (half == 0 ? scale[0] : scale[1]) != 0;
      float row[Traits::kOutTiles][2];
#pragma unroll
      for (int n = 0; n < Traits::kOutTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float o = half == 0 ? r.o[n][e] : r.o[n][2 + e];
          row[n][e] = stored ? o : 0.0f;
        }
      }
      if (stored && x.v_means != nullptr) {
        add_means(row, half == 0 ? weight[0] : weight[1], x.v_means + first_channel(work));
      }
      store_as(row, i < work.sequence.q_rows, work, work.sequence.q_begin + i);
    }
  }

  /// O times V's scales and what its rows are divided by.
  __device__ __forceinline__ void scale_channels(Registers& r, const float (&rows)[2]) const {
    unsigned thread = threadIdx.x;
    ptx::make_opaque(thread);  // Else addresses hold registers through all tiles.
    const std::uint32_t own = channels(q_.stage ^ 1) + thread % 4 * 8;
#pragma unroll
    for (int n = 0; n < Traits::kOutTiles; ++n) {
      const float2 channel = ptx::load_shared_pair(own + 8 * n * 4);
      r.o[n][0] *= rows[0] * channel.x;
      r.o[n][1] *= rows[0] * channel.y;
      r.o[n][2] *= rows[1] * channel.x;
      r.o[n][3] *= rows[1] * channel.y;
    }
  }

  /// What smoothing V has subtracted.
  __device__ __forceinline__ void add_means(float (&row)[Traits::kOutTiles][2], float weight,
                                            const float* means) const {
    unsigned thread = threadIdx.x;
    ptx::make_opaque(thread);
    const int own = static_cast<int>(thread % 4) * 2;
    const int left = p_.head_dim_v - own;
#pragma unroll
    for (int n = 0; n < Traits::kOutTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int d = 8 * n + e;
        row[n][e] += weight * (d < left ? __ldg(means + own + d) : 0.0f);
      }
    }
  }

  __device__ __forceinline__ void store_as(const float (&row)[Traits::kOutTiles][2], bool exists,
                                           const GroupWork& work, int token) const {
    const auto to = [&]<typename T>() {
      return exists ? row_of<T>(p_.o, work.tile.b, work.tile.h, token) : nullptr;
    };
    if (operands_.out == DType::f16) {
      store_row_of(to.template operator()<__half>(), row, p_.head_dim_v, p_.o.vectors);
    } else if (operands_.out == DType::bf16) {
      store_row_of(to.template operator()<__nv_bfloat16>(), row, p_.head_dim_v, p_.o.vectors);
    } else {
      store_row_f32(to.template operator()<float>(), row, p_.head_dim_v);
    }
  }

  const SageOperands& operands_;
  const Sharing& sharing_;
};

}  // namespace tessera::cuda::sm90
