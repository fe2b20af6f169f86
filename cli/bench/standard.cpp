#include "bench/standard.hpp"

#include <cmath>
#include <cstddef>

#include "bench/blas.hpp"
#include "bench/buffer.hpp"
#include "bench/row_math.hpp"
#include "core/half.hpp"

namespace tessera::cli::bench {
namespace {

template <typename T>
void widen(const void* from, std::int64_t count, float* to) {
  const T* source = static_cast<const T*>(from);
  for (std::int64_t i = 0; i < count; ++i) to[i] = to_f32(source[i]);
}

template <typename T>
void narrow(const float* from, std::int64_t count, void* to) {
  T* target = static_cast<T*>(to);
  for (std::int64_t i = 0; i < count; ++i) from_f32(from[i], target[i]);
}

// One head of a tensor as f32 [rows, dim]: the tensor's own memory, or a copy where that holds
// another dtype.
class HeadMatrix {
 public:
  HeadMatrix(DType dtype, std::int64_t rows, std::int64_t dim)
      : dtype_(dtype), count_(rows * dim), copy_(copy_bytes(dtype, rows, dim)) {}

  static std::size_t copy_bytes(DType dtype, std::int64_t rows, std::int64_t dim) {
    return dtype == DType::f32 ? 0 : static_cast<std::size_t>(rows * dim) * sizeof(float);
  }

  float* load(const TensorView& tensor, std::int64_t b, std::int64_t h) {
    if (dtype_ == DType::f32) return static_cast<float*>(head(tensor, b, h));
    if (dtype_ == DType::f16) {
      widen<f16>(head(tensor, b, h), count_, copy_.floats());
    } else {
      widen<bf16>(head(tensor, b, h), count_, copy_.floats());
    }
    return copy_.floats();
  }

  float* target(const TensorView& tensor, std::int64_t b, std::int64_t h) const {
    return dtype_ == DType::f32 ? static_cast<float*>(head(tensor, b, h)) : copy_.floats();
  }

  void store(const TensorView& tensor, std::int64_t b, std::int64_t h) const {
    if (dtype_ == DType::f16) narrow<f16>(copy_.floats(), count_, head(tensor, b, h));
    if (dtype_ == DType::bf16) narrow<bf16>(copy_.floats(), count_, head(tensor, b, h));
  }

 private:
  static void* head(const TensorView& tensor, std::int64_t b, std::int64_t h) {
    return static_cast<std::byte*>(tensor.data) +
           (b * tensor.stride[0] + h * tensor.stride[1]) * size_of(tensor.dtype);
  }

  DType dtype_;
  std::int64_t count_;
  Buffer copy_;
};

std::size_t score_bytes(const Case& problem) {
  return static_cast<std::size_t>(problem.seq_q * problem.seq_kv) * sizeof(float);
}

}  // namespace

struct StandardAttention::Memory {
  explicit Memory(const Case& p)
      : p_scores(score_bytes(p)),
        d_scores(p.pass == Pass::backward ? score_bytes(p) : 0),
        q(p.dtype, p.seq_q, p.head_dim),
        k(p.dtype, p.seq_kv, p.head_dim),
        v(p.dtype, p.seq_kv, p.head_dim_v),
        o(p.dtype, p.seq_q, p.head_dim_v),
        d_o(gradient_dtype(p), p.seq_q, p.head_dim_v),
        d_q(gradient_dtype(p), p.seq_q, p.head_dim),
        d_k(gradient_dtype(p), p.seq_kv, p.head_dim),
        d_v(gradient_dtype(p), p.seq_kv, p.head_dim_v) {}

  // A forward pass has no gradients to copy.
  static DType gradient_dtype(const Case& p) {
    return p.pass == Pass::backward ? p.dtype : DType::f32;
  }

  Buffer p_scores, d_scores;
  HeadMatrix q, k, v, o, d_o, d_q, d_k, d_v;
};

std::int64_t standard_extra_bytes(const Case& problem) {
  const Case& p = problem;
  const int copies = p.pass == Pass::backward ? 2 : 1;
  const std::size_t heads = HeadMatrix::copy_bytes(p.dtype, p.seq_q, p.head_dim + p.head_dim_v) +
                            HeadMatrix::copy_bytes(p.dtype, p.seq_kv, p.head_dim + p.head_dim_v);
  return static_cast<std::int64_t>(copies * (score_bytes(p) + heads));
}

StandardAttention::StandardAttention(const Case& problem, int threads)
    : problem_(problem),
      scale_(1.0 / std::sqrt(static_cast<double>(problem.head_dim))),
      threads_(threads),
      executor_(make_thread_pool(threads)),
      memory_(std::make_unique<Memory>(problem)) {}

StandardAttention::~StandardAttention() = default;

// Calls body(i) for each query, in contiguous pieces on all threads.
template <typename Body>
void StandardAttention::for_each_query(Body body) {
  constexpr int kPiecesPerThread = 4;
  struct Context {
    Body* body;
    std::int64_t rows;
    int pieces;
  } context{&body, problem_.seq_q, kPiecesPerThread * threads_};
  const auto run_piece = [](void* opaque, int piece) {
    const Context& c = *static_cast<Context*>(opaque);
    for (std::int64_t i = c.rows * piece / c.pieces; i < c.rows * (piece + 1) / c.pieces; ++i) {
      (*c.body)(i);
    }
  };
  executor_->parallel(context.pieces, run_piece, &context);
}

void StandardAttention::forward_head(const Inputs& inputs, const Outputs& outputs, std::int64_t b,
                                     std::int64_t h) {
  const Case& p = problem_;
  const std::int64_t h_kv = h / (p.heads_q / p.heads_kv);
  const float* q = memory_->q.load(inputs.q, b, h);
  const float* k = memory_->k.load(inputs.k, b, h_kv);
  const float* v = memory_->v.load(inputs.v, b, h_kv);
  float* o = memory_->o.target(outputs.o, b, h);
  float* scores = memory_->p_scores.floats();
  multiply(p.seq_q, p.seq_kv, p.head_dim, scale_, {q, p.head_dim}, {k, p.head_dim, Transpose::yes},
           0, scores, p.seq_kv);
  for_each_query([&](std::int64_t i) {
    const KeyRange keys = visible_keys(p, i);
    softmax_row(scores + i * p.seq_kv, p.seq_kv, keys.begin, keys.end);
  });
  multiply(p.seq_q, p.head_dim_v, p.seq_kv, 1, {scores, p.seq_kv}, {v, p.head_dim_v}, 0, o,
           p.head_dim_v);
  memory_->o.store(outputs.o, b, h);
}

void StandardAttention::backward_head(const Inputs& inputs, const Outputs& outputs,
                                      const OutputGradients& d_outputs,
                                      const InputGradients& d_inputs, std::int64_t b,
                                      std::int64_t h) {
  const Case& p = problem_;
  const std::int64_t group = p.heads_q / p.heads_kv;
  const std::int64_t h_kv = h / group;
  const double accumulate = h % group == 0 ? 0 : 1;
  Memory& m = *memory_;
  const float* q = m.q.load(inputs.q, b, h);
  const float* k = m.k.load(inputs.k, b, h_kv);
  const float* v = m.v.load(inputs.v, b, h_kv);
  const float* o = m.o.load(outputs.o, b, h);
  const float* d_o = m.d_o.load(d_outputs.d_o, b, h);
  const float* lse = static_cast<const float*>(outputs.lse.data) + (b * p.heads_q + h) * p.seq_q;
  float* scores = m.p_scores.floats();
  float* d_scores = m.d_scores.floats();
  const std::int64_t d = p.head_dim;
  const std::int64_t dv = p.head_dim_v;

  multiply(p.seq_q, p.seq_kv, d, scale_, {q, d}, {k, d, Transpose::yes}, 0, scores, p.seq_kv);
  for_each_query([&](std::int64_t i) {
    const KeyRange keys = visible_keys(p, i);
    exponential_row(scores + i * p.seq_kv, p.seq_kv, keys.begin, keys.end, lse[i]);
  });
  multiply(p.seq_kv, dv, p.seq_q, 1, {scores, p.seq_kv, Transpose::yes}, {d_o, dv}, accumulate,
           m.d_v.target(d_inputs.d_v, b, h_kv), dv);
  multiply(p.seq_q, p.seq_kv, dv, 1, {d_o, dv}, {v, dv, Transpose::yes}, 0, d_scores, p.seq_kv);
  for_each_query([&](std::int64_t i) {
    float delta = 0;
    for (std::int64_t c = 0; c < dv; ++c) delta += d_o[i * dv + c] * o[i * dv + c];
    softmax_gradient_row(scores + i * p.seq_kv, d_scores + i * p.seq_kv, p.seq_kv, delta);
  });
  multiply(p.seq_q, d, p.seq_kv, scale_, {scores, p.seq_kv}, {k, d}, 0,
           m.d_q.target(d_inputs.d_q, b, h), d);
  multiply(p.seq_kv, d, p.seq_q, scale_, {scores, p.seq_kv, Transpose::yes}, {q, d}, accumulate,
           m.d_k.target(d_inputs.d_k, b, h_kv), d);
  m.d_q.store(d_inputs.d_q, b, h);
  if ((h + 1) % group == 0) {
    m.d_k.store(d_inputs.d_k, b, h_kv);
    m.d_v.store(d_inputs.d_v, b, h_kv);
  }
}

void StandardAttention::forward(const Inputs& inputs, const Outputs& outputs) {
  set_blas_threads(threads_);
  for (std::int64_t b = 0; b < problem_.batch; ++b) {
    for (std::int64_t h = 0; h < problem_.heads_q; ++h) forward_head(inputs, outputs, b, h);
  }
}

void StandardAttention::backward(const Inputs& inputs, const Outputs& outputs,
                                 const OutputGradients& d_outputs, const InputGradients& d_inputs) {
  set_blas_threads(threads_);
  for (std::int64_t b = 0; b < problem_.batch; ++b) {
    for (std::int64_t h = 0; h < problem_.heads_q; ++h) {
      backward_head(inputs, outputs, d_outputs, d_inputs, b, h);
    }
  }
}

}  // namespace tessera::cli::bench
