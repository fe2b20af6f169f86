// The forward kernels of row cuda_sm80_f32: which there are, and how one is chosen.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <span>
#include <string>

#include "core/registry.hpp"
#include "cuda/algo/parameters.hpp"
#include "cuda/algo/split_rows.hpp"
#include "cuda/host/launch.hpp"

namespace tessera::cuda::sm80 {

/// How a block works (f32_forward.cuh).
struct F32ForwardConfig {
  int head_dim, head_dim_v;  ///< Padded sizes: smaller ones are zero-filled in shared memory.
  int tile_m, tile_n;        ///< Queries of a block; keys of one step.
  int warps;
  int parts;    ///< Warps that share rows: each has a part of D in the scores, of Dv in the output.
  int stages;   ///< Key tiles in shared memory.
  bool kept_q;  ///< Q lies in registers, as terms; else in shared memory, as f32.
  bool extras;  ///< Softcap, bias, ALiBi, boolean mask, sink, dropout, scale ≤ 0.

  constexpr std::size_t shared_bytes() const {
    const int q = kept_q ? 0 : tile_m * head_dim * static_cast<int>(sizeof(float));
    return q + stages * tile_n * (head_dim + head_dim_v) * kTerms * 2;
  }
};

/// A compiled kernel. k and v of the parameters are split rows.
struct F32ForwardVariant {
  F32ForwardConfig config;
  Status (*enqueue)(const Parameters& p, cudaStream_t stream);
};

/// Those of one head dim (one source file each), most preferred first.
std::span<const F32ForwardVariant> f32_forward_d64();
std::span<const F32ForwardVariant> f32_forward_d128();
std::span<const F32ForwardVariant> f32_forward_d256();
std::span<const F32ForwardVariant> f32_forward_d512();

class F32Forward final : public CudaKernel {
 public:
  F32Forward(const Problem& problem, const F32ForwardVariant& variant)
      : CudaKernel(problem), variant_(variant) {}
  std::string config() const override;
  std::size_t workspace_bytes() const override;

 protected:
  Status enqueue(const Arguments& arguments, cudaStream_t stream) const override;

 private:
  const F32ForwardVariant& variant_;
};

/// The keys of a problem (`columns` of each row) as they are split.
SplitShape split_keys(const Problem& problem, std::int64_t columns);

/// Empty if there is a kernel for the forward pass of a problem, else why not.
std::string reject_f32_forward(const Problem& problem);
std::unique_ptr<Kernel> make_f32_forward(const Problem& problem);

}  // namespace tessera::cuda::sm80
