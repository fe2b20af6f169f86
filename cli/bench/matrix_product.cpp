#include "bench/matrix_product.hpp"

#include <dlfcn.h>

#include <array>
#include <cstddef>
#include <string>

#include "bench/normal_pool.hpp"

namespace tessera::cli::bench {
namespace {

// What this file needs of cublasLt.h and library_types.h, whose values are part of the library's
// ABI since CUDA 11. So the build needs no header of it.
constexpr int kReal32 = 0;               // CUDA_R_32F
constexpr int kReal16 = 2;               // CUDA_R_16F
constexpr int kBrain16 = 14;             // CUDA_R_16BF
constexpr int kCompute32 = 68;           // CUBLAS_COMPUTE_32F
constexpr int kTransposeA = 3;           // CUBLASLT_MATMUL_DESC_TRANSA
constexpr int kMaxWorkspace = 1;         // CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES
constexpr std::int32_t kTransposed = 1;  // CUBLAS_OP_T

struct Heuristic {  // cublasLtMatmulHeuristicResult_t
  std::uint64_t algorithm[8];
  std::size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};

using Handle = void*;
using Status32 = int;  // cublasStatus_t, 0 for success

struct Functions {
  Status32 (*create)(Handle*);
  Status32 (*destroy)(Handle);
  Status32 (*make_product)(Handle*, int compute, int scale);
  Status32 (*set_product)(Handle, int attribute, const void*, std::size_t);
  Status32 (*make_layout)(Handle*, int type, std::uint64_t rows, std::uint64_t columns,
                          std::int64_t leading);
  Status32 (*make_preference)(Handle*);
  Status32 (*set_preference)(Handle, int attribute, const void*, std::size_t);
  Status32 (*choose)(Handle, Handle product, Handle a, Handle b, Handle c, Handle d,
                     Handle preference, int wanted, Heuristic*, int* found);
  Status32 (*multiply)(Handle, Handle product, const void* alpha, const void* a, Handle a_layout,
                       const void* b, Handle b_layout, const void* beta, const void* c,
                       Handle c_layout, void* d, Handle d_layout, const void* algorithm,
                       void* workspace, std::size_t workspace_bytes, void* stream);
  Status32 (*release_product)(Handle);
  Status32 (*release_layout)(Handle);
  Status32 (*release_preference)(Handle);
};

template <typename Function>
bool find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(::dlsym(library, name));
  return function != nullptr;
}

bool find_all(void* library, Functions& f) {
  return find(library, "cublasLtCreate", f.create) && find(library, "cublasLtDestroy", f.destroy) &&
         find(library, "cublasLtMatmulDescCreate", f.make_product) &&
         find(library, "cublasLtMatmulDescSetAttribute", f.set_product) &&
         find(library, "cublasLtMatrixLayoutCreate", f.make_layout) &&
         find(library, "cublasLtMatmulPreferenceCreate", f.make_preference) &&
         find(library, "cublasLtMatmulPreferenceSetAttribute", f.set_preference) &&
         find(library, "cublasLtMatmulAlgoGetHeuristic", f.choose) &&
         find(library, "cublasLtMatmul", f.multiply) &&
         find(library, "cublasLtMatmulDescDestroy", f.release_product) &&
         find(library, "cublasLtMatrixLayoutDestroy", f.release_layout) &&
         find(library, "cublasLtMatmulPreferenceDestroy", f.release_preference);
}

Status failed(const char* what, Status32 status) {
  return {StatusCode::device_error,
          std::string("cuBLASLt: ") + what + ": status " + std::to_string(status)};
}

int type_of(DType dtype) {
  return dtype == DType::f32 ? kReal32 : dtype == DType::f16 ? kReal16 : kBrain16;
}

class LoadedProduct final : public MatrixProduct {
 public:
  LoadedProduct(const Functions& functions, const device::Stream& stream)
      : f_(functions), stream_(stream) {}
  ~LoadedProduct() override {
    release();
    if (handle_ != nullptr) f_.destroy(handle_);
  }
  LoadedProduct(const LoadedProduct&) = delete;
  LoadedProduct& operator=(const LoadedProduct&) = delete;

  Status open() {
    if (const Status32 s = f_.create(&handle_); s != 0) return failed("create", s);
    Result<device::Buffer> workspace = device::Buffer::allocate(kWorkspaceBytes, stream_.device());
    if (!workspace.ok()) return workspace.status();
    workspace_ = std::move(workspace).value();
    return {};
  }

  Status prepare(DType dtype) override {
    if (layout_ != nullptr && dtype == dtype_) return {};
    release();
    dtype_ = dtype;
    const NormalPool pool(dtype, stream_.device());
    for (std::size_t x = 0; x < matrices_.size(); ++x) {
      Result<device::Buffer> matrix =
          device::Buffer::allocate(kSize * kSize * size_of(dtype), stream_.device());
      if (!matrix.ok()) return matrix.status();
      matrices_[x] = std::move(matrix).value();
      if (Status status = pool.fill(matrices_[x], x); !status.ok()) return status;
    }
    return choose();
  }

  Status run() override {
    const float one = 1;
    const float zero = 0;
    const Status32 s =
        f_.multiply(handle_, product_, &one, matrices_[0].data(), layout_, matrices_[1].data(),
                    layout_, &zero, matrices_[2].data(), layout_, matrices_[2].data(), layout_,
                    chosen_.algorithm, workspace_.data(), workspace_.bytes(), stream_.handle());
    return s == 0 ? Status() : failed("product", s);
  }

  double flops() const override { return 2.0 * kSize * kSize * kSize; }

 private:
  static constexpr std::int64_t kSize = 8192;
  static constexpr std::uint64_t kWorkspaceBytes = std::uint64_t{32} << 20;

  Status choose() {
    const std::int32_t transpose = kTransposed;
    int found = 0;
    Status32 s = f_.make_product(&product_, kCompute32, kReal32);
    if (s == 0) s = f_.set_product(product_, kTransposeA, &transpose, sizeof transpose);
    if (s == 0) s = f_.make_layout(&layout_, type_of(dtype_), kSize, kSize, kSize);
    if (s == 0) s = f_.make_preference(&preference_);
    if (s == 0) {
      s = f_.set_preference(preference_, kMaxWorkspace, &kWorkspaceBytes, sizeof kWorkspaceBytes);
    }
    if (s == 0) {
      s = f_.choose(handle_, product_, layout_, layout_, layout_, layout_, preference_, 1, &chosen_,
                    &found);
    }
    return s == 0 && found > 0 ? Status() : failed("choice of an algorithm", s);
  }

  void release() {
    if (product_ != nullptr) f_.release_product(product_);
    if (layout_ != nullptr) f_.release_layout(layout_);
    if (preference_ != nullptr) f_.release_preference(preference_);
    product_ = layout_ = preference_ = nullptr;
  }

  Functions f_;
  device::Stream stream_;
  Handle handle_ = nullptr;
  DType dtype_ = DType::f32;
  Handle product_ = nullptr, layout_ = nullptr, preference_ = nullptr;
  Heuristic chosen_{};
  device::Buffer workspace_;
  std::array<device::Buffer, 3> matrices_;
};

}  // namespace

Result<std::unique_ptr<MatrixProduct>> MatrixProduct::load(const device::Stream& stream) {
  Functions functions{};
  void* library = nullptr;
  // Stays loaded until the process ends, as the device's context does that it works on.
  for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"}) {
    if (library == nullptr) library = ::dlopen(name, RTLD_NOW | RTLD_LOCAL);
  }
  if (library == nullptr) {
    return Status(StatusCode::unsupported, "no libcublasLt.so on the library path");
  }
  if (!find_all(library, functions)) {
    return Status(StatusCode::unsupported, "libcublasLt.so lacks a function");
  }
  auto product = std::make_unique<LoadedProduct>(functions, stream);
  if (Status status = product->open(); !status.ok()) return status;
  return std::unique_ptr<MatrixProduct>(std::move(product));
}

}  // namespace tessera::cli::bench
