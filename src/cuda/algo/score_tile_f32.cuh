// score_tile.cuh for f32: scores in natural units, every step rounded to f32 and no coarser.
#pragma once

#include "cuda/algo/score_tile.cuh"

namespace tessera::cuda {

template <int kRowTiles, int kColumnTiles>
class ScoreTileF32 : public ScoreTile<float, kRowTiles, kColumnTiles> {
  using Base = ScoreTile<float, kRowTiles, kColumnTiles>;

 public:
  using Base::Base;
  using typename Base::Scores;

  /// From q · k to the score: scale, softcap, bias, ALiBi and the boolean mask. Reads bias and mask
  /// within used lengths only; what lies beyond them is for mask_positions.
  __device__ __forceinline__ void score(Scores& s, int j0) const {
    const Parameters& p = this->p_;
    if (p.softcap > 0) {
      const float to_cap = p.scale / p.softcap;
      Base::for_each(s, [&](float& x, int, int, int) { x = p.softcap * tanhf(to_cap * x); });
    } else {
      Base::for_each(s, [&](float& x, int, int, int) { x *= p.scale; });
    }
    if (p.bias.data != nullptr) {
      this->template for_each_element<float>(s, p.bias, j0, [](float& x, float b) { x += b; });
    }
    if (p.alibi_slopes != nullptr) {
      const float slope = p.alibi_slopes[this->b_ * p.alibi_stride_b + this->h_];
      const typename Base::Lane lane;
      Base::for_each(s, [&](float& x, int r, int half, int column) {
        const int distance =
            this->row(lane, r, half) + this->sequence_.shift - j0 - 2 * lane.t - column;
        x -= slope * static_cast<float>(abs(distance));
      });
    }
    if (p.mask.data != nullptr) {
      this->template for_each_element<std::uint8_t>(s, p.mask, j0,
                                                    [](float& x, std::uint8_t attends) {
                                                      if (attends == 0) x = minus_infinity();
                                                    });
    }
  }

  /// Dropout: zero where Philox says so.
  __device__ __forceinline__ void drop(Scores& weights, int j0) const {
    this->for_each_drawn(j0, [&](int r, int n, int half, unsigned low, unsigned high) {
      if (low == 0) weights[r][n][2 * half] = 0;
      if (high == 0) weights[r][n][2 * half + 1] = 0;
    });
  }
};

}  // namespace tessera::cuda
