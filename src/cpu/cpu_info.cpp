#include "cpu/cpu_info.hpp"

#include <unistd.h>

#include <fstream>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#endif
#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

namespace tessera::cpu {
namespace {

int usable_cpus() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  const unsigned count = std::thread::hardware_concurrency();
  return count > 0 ? static_cast<int>(count) : 1;
}

/// sysconf's answer, or `usual` where it has none (other C libraries, some virtual machines).
std::int64_t cache_bytes([[maybe_unused]] int name, std::int64_t usual) {
  const long bytes = sysconf(name);
  return bytes > 0 ? bytes : usual;
}

std::string model_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) != 0) continue;
    const auto colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown processor";
}

#if defined(__x86_64__) && defined(__linux__)
constexpr unsigned kAmxBf16 = 1u << 22;
constexpr unsigned kAmxInt8 = 1u << 25;

/// Whether the processor has AMX-TILE and one of its multipliers.
bool has_amx(unsigned multiplier) {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  constexpr unsigned kAmxTile = 1u << 24;
  return (edx & multiplier) != 0 && (edx & kAmxTile) != 0;
}

/// Asks the system to keep tile registers for this process: threads use them by permission only.
bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // the state component of the tile registers
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

CpuInfo detect() {
  CpuInfo info;
  info.model = model_name();
  info.threads = usable_cpus();
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  info.l1_bytes = cache_bytes(_SC_LEVEL1_DCACHE_SIZE, 32 << 10);
  info.l2_bytes = cache_bytes(_SC_LEVEL2_CACHE_SIZE, 512 << 10);
  info.l3_bytes = cache_bytes(_SC_LEVEL3_CACHE_SIZE, 0);
#else
  info.l1_bytes = 32 << 10;
  info.l2_bytes = 512 << 10;
#endif
#if defined(__x86_64__) || defined(__i386__)
  __builtin_cpu_init();
  const auto add = [&info](bool has, const char* name) {
    if (has) info.features += (info.features.empty() ? "" : " ") + std::string(name);
    return has;
  };
  const bool avx2 = add(__builtin_cpu_supports("avx2"), "avx2");
  const bool fma = add(__builtin_cpu_supports("fma"), "fma");
  const bool f = add(__builtin_cpu_supports("avx512f"), "avx512f");
  const bool bw = add(__builtin_cpu_supports("avx512bw"), "avx512bw");
  const bool dq = add(__builtin_cpu_supports("avx512dq"), "avx512dq");
  const bool vl = add(__builtin_cpu_supports("avx512vl"), "avx512vl");
  const bool vnni = add(__builtin_cpu_supports("avx512vnni"), "avx512vnni");
  const bool bf16 = add(__builtin_cpu_supports("avx512bf16"), "avx512bf16");
  info.avx2 = avx2 && fma;  // every such processor has F16C
  info.avx512 = f && bw && dq && vl && info.avx2;
  info.avx512_vnni = vnni && info.avx512;
  info.avx512_bf16 = bf16 && info.avx512;
  info.fast_bf16_pairs = info.avx512_bf16 && __builtin_cpu_is("amd");
#if defined(__x86_64__) && defined(__linux__)
  const bool amx = add(has_amx(kAmxBf16), "amx_bf16");
  const bool amx_int8 = add(has_amx(kAmxInt8), "amx_int8");
  info.amx_bf16 = amx && info.avx512_bf16 && may_use_tiles();
  info.amx_int8 = amx_int8 && info.amx_bf16;
#endif
#elif defined(__aarch64__)
  info.features = "asimd";
#endif
  return info;
}

}  // namespace

const CpuInfo& cpu_info() {
  static const CpuInfo kInfo = detect();
  return kInfo;
}

}  // namespace tessera::cpu
