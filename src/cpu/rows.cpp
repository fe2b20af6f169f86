// The CPU's table: one row per instruction set, fastest first on this processor, and the reference
// at the end.
#include "reference/rows.hpp"

#include <array>
#include <cstdlib>
#include <new>
#include <utility>

#include "cpu/attention_kernel.hpp"
#include "cpu/backend.hpp"
#include "cpu/cpu_info.hpp"

namespace tessera::cpu {
namespace {

constexpr std::string_view kSupports =
    "f32 f16 bf16 (f32 arithmetic), forward and backward, every mask and feature, exact";

constexpr std::string_view kSupportsBf16 =
    "bf16 (products in bf16, f32 sums), forward and backward, every mask and feature, exact";

constexpr std::string_view kSupportsSage =
    "f32 f16 bf16, sage8 and sage4, forward, every mask, feature and piece of the scheme";

constexpr std::string_view kSupportsSageBf16 =
    "f32 f16 bf16, sage8 and sage4 (16-bit PV of f16 apart), forward, every mask and feature";

std::string reject_exact(const Problem& problem) {
  if (problem.pass == Pass::backward) return "the backward pass is exact: this row quantises";
  if (!problem.quantised()) return "precision exact: this row quantises";
  if (problem.dtype == DType::f64) return "quantises f32, f16 and bf16, not f64";
  return {};
}

std::string reject_f16_values(const Problem& problem) {
  const bool half = problem.quantised() && problem.quantization.pv == PvFormat::half;
  if (half && problem.dtype == DType::f16) return "pv half in f16: this row multiplies bf16";
  return reject_exact(problem);
}

std::string reject(const Problem& problem) {
  if (problem.dtype == DType::f64) return "dtype f64 is the reference's alone";
  if (problem.precision != Precision::exact)
    return std::string("precision ") + name_of(problem.precision) + ": this row is exact";
  return {};
}

std::string reject_all_but_bf16(const Problem& problem) {
  if (problem.dtype != DType::bf16) {
    return std::string("dtype ") + name_of(problem.dtype) + ": this row multiplies bf16 alone";
  }
  return reject(problem);
}

template <const Isa& kIsa>
std::unique_ptr<Kernel> make(const Problem& problem) {
  return problem.pass == Pass::forward ? make_forward(problem, kIsa) : make_backward(problem, kIsa);
}

template <const SageIsa& kIsa>
std::unique_ptr<Kernel> make_quantised(const Problem& problem) {
  return make_sage(problem, kIsa);
}

std::string always() { return {}; }

#if defined(TESSERA_CPU_X86)
std::string needs_avx2() { return cpu_info().avx2 ? "" : "this processor has no AVX2 with FMA"; }
std::string needs_avx512_bf16() {
  return cpu_info().avx512_bf16 ? "" : "this processor has no AVX-512 BF16";
}
std::string needs_avx512_vnni() {
  return cpu_info().avx512_vnni ? "" : "this processor has no AVX-512 VNNI";
}
std::string needs_avx512_vnni_bf16() {
  const std::string missing = needs_avx512_vnni();
  return missing.empty() ? needs_avx512_bf16() : missing;
}
std::string needs_avx512() {
  return cpu_info().avx512 ? "" : "this processor has no AVX-512 (F, BW, DQ, VL)";
}
#else
std::string needs_avx2() { return "this build is not for x86"; }
std::string needs_avx512_bf16() { return "this build is not for x86"; }
std::string needs_avx512_vnni() { return "this build is not for x86"; }
std::string needs_avx512_vnni_bf16() { return "this build is not for x86"; }
std::string needs_avx512() { return "this build is not for x86"; }
#endif

#if defined(TESSERA_CPU_AMX)
std::string needs_amx() {
  return cpu_info().amx_bf16 ? "" : "this processor or system has no AMX-BF16 with AVX-512 BF16";
}
std::string needs_amx_int8() {
  return cpu_info().amx_int8 ? "" : "this processor or system has no AMX-INT8 with AMX-BF16";
}
#else
std::string needs_amx_int8() { return "this build is not for x86-64"; }
std::string needs_amx() { return "this build is not for x86-64"; }
#endif

int count() { return 1; }

std::vector<std::string> describe() {
  const CpuInfo& info = cpu_info();
  return {"cpu: " + info.model + ", " + std::to_string(info.threads) + " threads, caches " +
          std::to_string(info.l1_bytes >> 10) + " KiB L1d, " + std::to_string(info.l2_bytes >> 10) +
          " KiB L2, " + std::to_string(info.l3_bytes >> 10) + " KiB L3, " +
          (info.features.empty() ? "no vector extensions known" : info.features)};
}

std::string absent() { return {}; }

void* allocate(std::size_t bytes, Device, void*) {
  return ::operator new (bytes, std::align_val_t{64}, std::nothrow);
}
void release(void* memory, Device, void*) { ::operator delete (memory, std::align_val_t{64}); }

Executor* executor(Executor* requested) {
  return requested != nullptr ? requested : &default_executor();
}

}  // namespace

const Backend& backend() {
  static const std::array<Row, 10> kRows = [] {
    std::array<Row, 10> rows = {{
#if defined(TESSERA_CPU_AMX)
        {"cpu_amx", kSupportsBf16, needs_amx, reject_all_but_bf16, make<kIsaAmx>},
#else
        {"cpu_amx", kSupportsBf16, needs_amx, reject_all_but_bf16, nullptr},
#endif
#if defined(TESSERA_CPU_X86)
        {"cpu_avx512", kSupports, needs_avx512, reject, make<kIsaAvx512>},
        {"cpu_avx512_bf16", kSupportsBf16, needs_avx512_bf16, reject_all_but_bf16,
         make<kIsaAvx512Bf16>},
        {"cpu_avx2", kSupports, needs_avx2, reject, make<kIsaAvx2>},
#else
        {"cpu_avx512", kSupports, needs_avx512, reject, nullptr},
        {"cpu_avx512_bf16", kSupportsBf16, needs_avx512_bf16, reject_all_but_bf16, nullptr},
        {"cpu_avx2", kSupports, needs_avx2, reject, nullptr},
#endif
        {"cpu_portable", kSupports, always, reject, make<kIsaPortable>},
#if defined(TESSERA_CPU_AMX)
        {"cpu_sage_amx", kSupportsSageBf16, needs_amx_int8, reject_f16_values,
         make_quantised<kSageAmx>},
#else
        {"cpu_sage_amx", kSupportsSageBf16, needs_amx_int8, reject_f16_values, nullptr},
#endif
#if defined(TESSERA_CPU_X86)
        {"cpu_sage_avx512", kSupportsSage, needs_avx512_vnni, reject_exact,
         make_quantised<kSageAvx512>},
        {"cpu_sage_avx512_bf16", kSupportsSageBf16, needs_avx512_vnni_bf16, reject_f16_values,
         make_quantised<kSageAvx512Bf16>},
        {"cpu_sage_avx2", kSupportsSage, needs_avx2, reject_exact, make_quantised<kSageAvx2>},
#else
        {"cpu_sage_avx512", kSupportsSage, needs_avx512_vnni, reject_exact, nullptr},
        {"cpu_sage_avx512_bf16", kSupportsSageBf16, needs_avx512_vnni_bf16, reject_f16_values,
         nullptr},
        {"cpu_sage_avx2", kSupportsSage, needs_avx2, reject_exact, nullptr},
#endif
        reference::kReferenceRow,
    }};
    if (cpu_info().fast_bf16_pairs) {
      std::swap(rows[1], rows[2]);
      std::swap(rows[6], rows[7]);
    }
    return rows;
  }();
  static const Backend kBackend = {
      DeviceType::cpu,        kRows,   absent, count, describe, allocate, release,
      /*host_readable=*/true, executor};
  return kBackend;
}

}  // namespace tessera::cpu
