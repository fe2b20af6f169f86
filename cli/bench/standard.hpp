// Standard attention, the peer: two matrix products of the machine's BLAS with the scores in memory
// between them, as frameworks compute it without fusion.
#pragma once

#include <cstdint>
#include <memory>

#include "bench/problem.hpp"
#include "tessera/attention.hpp"

namespace tessera::cli::bench {

/// Bytes that StandardAttention allocates for a problem: scores, and head by head copies in f32.
std::int64_t standard_extra_bytes(const Case& problem);

/// Standard attention with Q Kᵀ and P V by sgemm, head after head, on the BLAS's own threads, and a
/// row softmax on `threads` threads between them. One head's scores are in memory at a time; a
/// backward pass computes them again from the LSE, which makes five products. f16 and bf16 are
/// widened to f32 head by head and rounded on the way back. Tensors are contiguous and of the
/// problem's shapes. Not for use by two threads at once.
class StandardAttention {
 public:
  StandardAttention(const Case& problem, int threads);
  ~StandardAttention();

  void forward(const Inputs& inputs, const Outputs& outputs);
  void backward(const Inputs& inputs, const Outputs& outputs, const OutputGradients& d_outputs,
                const InputGradients& d_inputs);

 private:
  struct Memory;

  template <typename Body>
  void for_each_query(Body body);
  void forward_head(const Inputs& inputs, const Outputs& outputs, std::int64_t b, std::int64_t h);
  void backward_head(const Inputs& inputs, const Outputs& outputs, const OutputGradients& d_outputs,
                     const InputGradients& d_inputs, std::int64_t b, std::int64_t h);

  Case problem_;
  double scale_;
  int threads_;
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<Memory> memory_;
};

}  // namespace tessera::cli::bench
