#include "tensors.hpp"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <stdexcept>
#include <string>

// Only PyTorch's CUDA builds have it; without it no tensor can be on a GPU.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(
    int32_t device_index, void** ret_stream);

namespace tessera_torch {
namespace {

/// Tessera's dtype of a PyTorch dtype, or -1.
int32_t to_tessera_dtype(int32_t dtype) {
  static const std::array<std::pair<int32_t, int32_t>, 6> kDtypes = {{
      {aoti_torch_dtype_float32(), TESSERA_F32},
      {aoti_torch_dtype_float16(), TESSERA_F16},
      {aoti_torch_dtype_bfloat16(), TESSERA_BF16},
      {aoti_torch_dtype_float64(), TESSERA_F64},
      {aoti_torch_dtype_int32(), TESSERA_I32},
      {aoti_torch_dtype_bool(), TESSERA_BOOL},
  }};
  for (const auto& [torch, tessera] : kDtypes) {
    if (torch == dtype) return tessera;
  }
  return -1;
}

int32_t device_type_of(const Tensor& tensor) {
  int32_t type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
  return type;
}

int concurrency(void*) { return torch_threads(); }

/// As many strands as PyTorch has threads, each of which takes the next task until none is left:
/// tasks that wait for one another must not stand behind one another in one thread's range.
void parallel(void*, int count, tessera_task task, void* task_context) {
  std::atomic<int> next{0};
  const auto strand = [&](int64_t, int64_t) {
    for (int index; (index = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
      task(task_context, index);
    }
  };
  torch::stable::parallel_for(0, std::min(count, torch_threads()), 1, strand);
}

}  // namespace

void throw_invalid_argument(const std::string& message) {
  throw std::runtime_error("invalid argument: " + message);
}

void check(tessera_status status) {
  if (status == TESSERA_OK) return;
  const std::string message = tessera_last_error();
  if (status == TESSERA_INVALID_ARGUMENT) throw_invalid_argument(message);
  throw std::runtime_error(message);
}

tessera_tensor view_of(const Tensor& tensor, const char* name, const char* expected) {
  tessera_tensor view{};
  view.struct_size = sizeof view;
  view.dtype = to_tessera_dtype(dtype_of(tensor));
  if (view.dtype < 0) {
    throw_invalid_argument(std::string(name) + ": dtype unknown to Tessera, expected " + expected);
  }
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  view.rank = static_cast<int32_t>(sizes.size());
  for (int d = 0; d < std::min<int>(view.rank, TESSERA_MAX_RANK); ++d) {
    view.size[d] = sizes[d];
    view.stride[d] = strides[d];
  }
  view.data = tensor.data_ptr();
  view.device_type = is_cuda(tensor) ? TESSERA_CUDA : TESSERA_CPU;
  view.device_index = view.device_type == TESSERA_CUDA ? tensor.get_device_index() : 0;
  return view;
}

OptionalView::OptionalView(const OptionalTensor& tensor, const char* name, const char* expected) {
  if (tensor) view_ = view_of(*tensor, name, expected);
}

Tensor empty(const Tensor& like, int32_t dtype, int rank, const int64_t* sizes,
             const int64_t* strides) {
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(rank, sizes, strides, dtype, device_type_of(like),
                                                  like.get_device_index(), &handle));
  return Tensor(handle);
}

Tensor empty(const Tensor& like, int32_t dtype, int64_t count) {
  const int64_t stride = 1;
  return empty(like, dtype, 1, &count, &stride);
}

Tensor empty_in_order_of(const Tensor& like, int64_t last) {
  const auto sizes = like.sizes();
  const auto strides = like.strides();
  const int rank = static_cast<int>(sizes.size());
  std::array<int64_t, TESSERA_MAX_RANK> size{};
  std::array<int64_t, TESSERA_MAX_RANK> stride{};
  std::copy(sizes.begin(), sizes.end(), size.begin());
  size[rank - 1] = last;
  stride[rank - 1] = 1;
  // The two dimensions before the last are heads and tokens in some order.
  const bool swapped = strides[rank - 3] < strides[rank - 2];
  const int inner = swapped ? rank - 3 : rank - 2;
  const int outer = swapped ? rank - 2 : rank - 3;
  stride[inner] = std::max<int64_t>(last, 1);
  stride[outer] = stride[inner] * std::max<int64_t>(size[inner], 1);
  if (rank == 4) stride[0] = stride[outer] * std::max<int64_t>(size[outer], 1);
  return empty(like, dtype_of(like), rank, size.data(), stride.data());
}

int32_t dtype_of(const Tensor& tensor) {
  int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  return dtype;
}

bool is_cuda(const Tensor& tensor) {
  return device_type_of(tensor) == aoti_torch_device_type_cuda();
}

void* current_stream(const Tensor& tensor) {
  if (!is_cuda(tensor)) return nullptr;
  if (aoti_torch_get_current_cuda_stream == nullptr) {
    throw std::runtime_error("stream: this PyTorch has no CUDA, expected one that has");
  }
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return stream;
}

tessera_executor* torch_executor() {
  static tessera_executor* const kExecutor = [] {
    tessera_executor_callbacks callbacks{};
    callbacks.struct_size = sizeof callbacks;
    callbacks.concurrency = concurrency;
    callbacks.parallel = parallel;
    tessera_executor* executor = nullptr;
    check(tessera_executor_create(&callbacks, &executor));
    return executor;
  }();
  return kExecutor;
}

int torch_threads() { return std::max(1, static_cast<int>(torch::stable::get_num_threads())); }

}  // namespace tessera_torch
