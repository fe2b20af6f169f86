// Between PyTorch's tensors, seen through LibTorch's stable ABI, and Tessera's C interface.
#pragma once

#include <tessera/tessera.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>

namespace tessera_torch {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

/// Says that an argument is wrong. The way through PyTorch leaves only the message of an exception,
/// so the Python package knows these by how they begin, and makes them a ValueError.
[[noreturn]] void throw_invalid_argument(const std::string& message);

/// Throws what a failed call left in tessera_last_error, as above for TESSERA_INVALID_ARGUMENT.
void check(tessera_status status);

/// What dtypes the arguments may have, for the messages.
inline constexpr const char* kFloats = "float32, float16, bfloat16 or float64";
inline constexpr const char* kLengths = "int32";

/// A view of a tensor. `name` and `expected` stand in the message about a dtype that Tessera lacks.
tessera_tensor view_of(const Tensor& tensor, const char* name, const char* expected = kFloats);

/// Views of optional tensors, to which pointers may be taken as long as this lives.
class OptionalView {
 public:
  OptionalView(const OptionalTensor& tensor, const char* name, const char* expected = kFloats);
  const tessera_tensor* get() const { return view_ ? &*view_ : nullptr; }

 private:
  std::optional<tessera_tensor> view_;
};

/// An uninitialised tensor on `like`'s device.
Tensor empty(const Tensor& like, int32_t dtype, int rank, const int64_t* sizes,
             const int64_t* strides);

/// An uninitialised, contiguous tensor of one dimension on `like`'s device.
Tensor empty(const Tensor& like, int32_t dtype, int64_t count);

/// An uninitialised tensor of `like`'s sizes but for the last, in `like`'s order of dimensions:
/// heads outside tokens, or tokens outside heads. Dense, whatever lies between `like`'s rows.
Tensor empty_in_order_of(const Tensor& like, int64_t last);

/// PyTorch's dtype of a tensor.
int32_t dtype_of(const Tensor& tensor);

bool is_cuda(const Tensor& tensor);

/// PyTorch's current stream on the tensor's device; null on the CPU.
void* current_stream(const Tensor& tensor);

/// An executor that runs tasks on PyTorch's own threads.
tessera_executor* torch_executor();

/// As many tasks as PyTorch would run at the same time now.
int torch_threads();

}  // namespace tessera_torch
