// Tensors that own their memory, in any layout, with poison wherever no element lies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <vector>

#include "support/random.hpp"
#include "tessera/tensor.hpp"

namespace tessera::test {

/// How the elements of a logical [.., .., .., ..] tensor lie in memory.
enum class Layout {
  contiguous,  ///< Row-major: BHSD (or THD).
  bshd,        ///< Dimensions 1 and 2 exchanged in memory (rank 4), 0 and 1 (rank 3).
  padded,      ///< Gaps of odd sizes after every row and plane, base aligned to one element only.
  reversed,    ///< Dimension rank − 2 runs backwards: a negative stride.
};

/// Bytes that start as 0xff, which reads as NaN in every floating dtype, as −1 and as `true`.
struct Buffer {
  std::vector<std::uint8_t> bytes;
  std::vector<bool> owned;  ///< Per byte: whether it belongs to an element of some tensor.
};

class Tensor {
 public:
  /// An absent tensor.
  Tensor() = default;
  Tensor(DType dtype, std::vector<std::int64_t> sizes, Layout layout = Layout::contiguous);
  static Tensor of_i32(const std::vector<std::int32_t>& values);

  /// q, k and v (or their gradients) as slices of one tensor, [B, S, Hq + 2 · Hkv, D] in memory.
  static std::vector<Tensor> packed_qkv(DType dtype, std::int64_t batch, std::int64_t heads_q,
                                        std::int64_t heads_kv, std::int64_t seq,
                                        std::int64_t head_dim);

  TensorView view() const { return view_; }
  bool present() const { return view_.present(); }
  DType dtype() const { return view_.dtype; }
  std::int64_t size(int d) const { return view_.size[d]; }
  std::int64_t count() const { return count_; }

  /// Element number `index` in row-major order of the logical sizes, whatever the layout.
  double get(std::int64_t index) const;
  void set(std::int64_t index, double value);  ///< Rounds to the dtype.
  double at(std::initializer_list<std::int64_t> position) const;
  void put(std::initializer_list<std::int64_t> position, double value);
  /// `size(rank − 1)` consecutive elements from element `index` on.
  std::vector<float> row(std::int64_t index) const;

  void fill(double value);
  void fill_normal(Random& random, double scale = 1);
  /// Makes every byte poison again, elements and gaps.
  void poison();

  /// Whether every byte that belongs to no element is still poison.
  bool gaps_untouched() const;
  /// Whether any element differs from poison: a call that must not write has written.
  bool all_poison() const;
  /// Whether shapes and elements are equal bit for bit.
  bool same_bits(const Tensor& other) const;

  /// A [B, 1, S, D] tensor as [B, heads, S, D] with every head the same memory (stride 0).
  Tensor with_heads(std::int64_t heads) const;
  /// Indices [begin, end) of dimension d, in the same memory.
  Tensor narrowed(int d, std::int64_t begin, std::int64_t end) const;

  /// The memory that this tensor, and whatever shares it, lies in; null if absent.
  const std::shared_ptr<Buffer>& buffer() const { return buffer_; }

  /// The same elements in another dtype, contiguous; rounds.
  Tensor converted(DType dtype) const;

 private:
  void adopt(std::shared_ptr<Buffer> buffer, std::int64_t base_bytes);
  std::int64_t offset_of(std::int64_t index) const;
  std::int64_t offset_of(std::initializer_list<std::int64_t> position) const;
  double load(std::int64_t offset) const;
  void store(std::int64_t offset, double value);

  std::shared_ptr<Buffer> buffer_;
  TensorView view_;
  std::int64_t count_ = 0;
};

/// Rounds x to the dtype and back.
double rounded(double x, DType dtype);

}  // namespace tessera::test
