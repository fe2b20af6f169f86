#include "support/tensor.hpp"

#include <algorithm>
#include <cstring>

#include "core/half.hpp"

namespace tessera::test {
namespace {

constexpr std::int64_t kGuardBytes = 64;

/// Bytes from the lowest to behind the highest element; `lowest` gets the former's element offset.
std::int64_t extent(const TensorView& view, std::int64_t& lowest) {
  lowest = 0;
  std::int64_t highest = 0;
  for (int d = 0; d < view.rank; ++d) {
    if (view.size[d] == 0) return 0;
    const std::int64_t reach = (view.size[d] - 1) * view.stride[d];
    (reach < 0 ? lowest : highest) += reach;
  }
  return (highest - lowest + 1) * size_of(view.dtype);
}

TensorView with_layout(TensorView view, Layout layout) {
  const int rank = view.rank;
  switch (layout) {
    case Layout::contiguous:
      break;
    case Layout::bshd: {
      const int a = rank - 3, b = rank - 2;
      if (a < 0) break;
      const std::int64_t row = view.size[rank - 1];
      view.stride[a] = row;
      view.stride[b] = row * view.size[a];
      break;
    }
    case Layout::padded: {
      std::int64_t stride = 1;
      const std::int64_t gaps[] = {3, 1, 7, 5};
      for (int d = rank - 1; d >= 0; --d) {
        view.stride[d] = stride;
        stride = stride * view.size[d] + gaps[d];
      }
      break;
    }
    case Layout::reversed:
      if (rank >= 2) view.stride[rank - 2] = -view.stride[rank - 2];
      break;
  }
  return view;
}

}  // namespace

double rounded(double x, DType dtype) {
  switch (dtype) {
    case DType::f64:
      return x;
    case DType::f32:
      return static_cast<float>(x);
    case DType::f16: {
      f16 half;
      from_f32(static_cast<float>(x), half);
      return to_f32(half);
    }
    default: {
      bf16 half;
      from_f32(static_cast<float>(x), half);
      return to_f32(half);
    }
  }
}

Tensor::Tensor(DType dtype, std::vector<std::int64_t> sizes, Layout layout) {
  view_.dtype = dtype;
  for (std::int64_t size : sizes) view_.size[view_.rank++] = size;
  std::int64_t stride = 1;
  for (int d = view_.rank - 1; d >= 0; --d) {
    view_.stride[d] = stride;
    stride *= view_.size[d];
  }
  view_ = with_layout(view_, layout);
  std::int64_t lowest = 0;
  const std::int64_t bytes = extent(view_, lowest);
  const std::int64_t shift = layout == Layout::padded ? size_of(dtype) : 0;
  auto buffer = std::make_shared<Buffer>();
  buffer->bytes.assign(bytes + shift + 2 * kGuardBytes, 0xff);
  buffer->owned.assign(buffer->bytes.size(), false);
  adopt(std::move(buffer), kGuardBytes + shift - lowest * size_of(dtype));
}

void Tensor::adopt(std::shared_ptr<Buffer> buffer, std::int64_t base_bytes) {
  buffer_ = std::move(buffer);
  view_.data = buffer_->bytes.data() + base_bytes;
  count_ = 1;
  for (int d = 0; d < view_.rank; ++d) count_ *= view_.size[d];
  const std::int64_t width = size_of(view_.dtype);
  for (std::int64_t i = 0; i < count_; ++i) {
    std::fill_n(buffer_->owned.begin() + base_bytes + offset_of(i) * width, width, true);
  }
}

Tensor Tensor::of_i32(const std::vector<std::int32_t>& values) {
  Tensor t(DType::i32, {static_cast<std::int64_t>(values.size())});
  for (std::size_t i = 0; i < values.size(); ++i) t.set(static_cast<std::int64_t>(i), values[i]);
  return t;
}

std::vector<Tensor> Tensor::packed_qkv(DType dtype, std::int64_t batch, std::int64_t heads_q,
                                       std::int64_t heads_kv, std::int64_t seq,
                                       std::int64_t head_dim) {
  const std::int64_t heads = heads_q + 2 * heads_kv;
  auto buffer = std::make_shared<Buffer>();
  buffer->bytes.assign(batch * seq * heads * head_dim * size_of(dtype) + 2 * kGuardBytes, 0xff);
  buffer->owned.assign(buffer->bytes.size(), false);
  std::vector<Tensor> slices(3);
  std::int64_t first_head = 0;
  for (int s = 0; s < 3; ++s) {
    const std::int64_t own_heads = s == 0 ? heads_q : heads_kv;
    TensorView& view = slices[s].view_;
    view.dtype = dtype;
    view.rank = 4;
    view.size = {batch, own_heads, seq, head_dim};
    view.stride = {seq * heads * head_dim, head_dim, heads * head_dim, 1};
    slices[s].adopt(buffer, kGuardBytes + first_head * head_dim * size_of(dtype));
    first_head += own_heads;
  }
  return slices;
}

std::int64_t Tensor::offset_of(std::int64_t index) const {
  std::int64_t offset = 0;
  for (int d = view_.rank - 1; d >= 0; --d) {
    offset += index % view_.size[d] * view_.stride[d];
    index /= view_.size[d];
  }
  return offset;
}

std::int64_t Tensor::offset_of(std::initializer_list<std::int64_t> position) const {
  std::int64_t offset = 0;
  int d = 0;
  for (std::int64_t p : position) offset += p * view_.stride[d++];
  return offset;
}

double Tensor::load(std::int64_t offset) const {
  switch (view_.dtype) {
    case DType::f32:
      return static_cast<const float*>(view_.data)[offset];
    case DType::f16:
      return to_f32(static_cast<const f16*>(view_.data)[offset]);
    case DType::bf16:
      return to_f32(static_cast<const bf16*>(view_.data)[offset]);
    case DType::f64:
      return static_cast<const double*>(view_.data)[offset];
    case DType::i32:
      return static_cast<const std::int32_t*>(view_.data)[offset];
    case DType::boolean:
      return static_cast<const std::uint8_t*>(view_.data)[offset];
  }
  return 0;
}

void Tensor::store(std::int64_t offset, double value) {
  const auto narrow = static_cast<float>(value);
  switch (view_.dtype) {
    case DType::f32:
      static_cast<float*>(view_.data)[offset] = narrow;
      break;
    case DType::f16:
      from_f32(narrow, static_cast<f16*>(view_.data)[offset]);
      break;
    case DType::bf16:
      from_f32(narrow, static_cast<bf16*>(view_.data)[offset]);
      break;
    case DType::f64:
      static_cast<double*>(view_.data)[offset] = value;
      break;
    case DType::i32:
      static_cast<std::int32_t*>(view_.data)[offset] = static_cast<std::int32_t>(value);
      break;
    case DType::boolean:
      static_cast<std::uint8_t*>(view_.data)[offset] = static_cast<std::uint8_t>(value != 0);
      break;
  }
}

double Tensor::get(std::int64_t index) const { return load(offset_of(index)); }
void Tensor::set(std::int64_t index, double value) { store(offset_of(index), value); }

double Tensor::at(std::initializer_list<std::int64_t> position) const {
  return load(offset_of(position));
}

void Tensor::put(std::initializer_list<std::int64_t> position, double value) {
  store(offset_of(position), value);
}

std::vector<float> Tensor::row(std::int64_t index) const {
  const std::int64_t first = offset_of(index);
  std::vector<float> out(view_.size[view_.rank - 1]);
  for (std::size_t d = 0; d < out.size(); ++d) {
    out[d] = static_cast<float>(load(first + static_cast<std::int64_t>(d)));
  }
  return out;
}

void Tensor::fill(double value) {
  for (std::int64_t i = 0; i < count_; ++i) set(i, value);
}

void Tensor::fill_normal(Random& random, double scale) {
  for (std::int64_t i = 0; i < count_; ++i) set(i, scale * random.normal());
}

void Tensor::poison() {
  if (buffer_) std::fill(buffer_->bytes.begin(), buffer_->bytes.end(), 0xff);
}

bool Tensor::gaps_untouched() const {
  if (!buffer_) return true;
  for (std::size_t i = 0; i < buffer_->bytes.size(); ++i) {
    if (!buffer_->owned[i] && buffer_->bytes[i] != 0xff) return false;
  }
  return true;
}

bool Tensor::all_poison() const {
  return !buffer_ || std::all_of(buffer_->bytes.begin(), buffer_->bytes.end(),
                                 [](std::uint8_t byte) { return byte == 0xff; });
}

bool Tensor::same_bits(const Tensor& other) const {
  if (dtype() != other.dtype() || count_ != other.count_) return false;
  const std::int64_t width = size_of(dtype());
  for (std::int64_t i = 0; i < count_; ++i) {
    const auto* mine = static_cast<const std::byte*>(view_.data) + offset_of(i) * width;
    const auto* theirs =
        static_cast<const std::byte*>(other.view_.data) + other.offset_of(i) * width;
    if (std::memcmp(mine, theirs, width) != 0) return false;
  }
  return true;
}

Tensor Tensor::with_heads(std::int64_t heads) const {
  Tensor out = *this;
  out.view_.size[1] = heads;
  out.view_.stride[1] = 0;
  out.count_ = count_ * heads;
  return out;
}

Tensor Tensor::narrowed(int d, std::int64_t begin, std::int64_t end) const {
  Tensor out = *this;
  out.view_.data =
      static_cast<std::byte*>(view_.data) + begin * view_.stride[d] * size_of(view_.dtype);
  out.view_.size[d] = end - begin;
  out.count_ = view_.size[d] == 0 ? 0 : count_ / view_.size[d] * (end - begin);
  return out;
}

Tensor Tensor::converted(DType dtype) const {
  if (!present()) return {};
  Tensor out(dtype, {view_.size.begin(), view_.size.begin() + view_.rank});
  for (std::int64_t i = 0; i < count_; ++i) out.set(i, get(i));
  return out;
}

}  // namespace tessera::test
