// Shared memory: addresses, ldmatrix, cp.async (sm_80 and later).
#pragma once

#include <cstdint>

namespace tessera::cuda::ptx {

__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// Four 8×8 matrices of 16-bit elements: lane l gives the address of row l % 8 of matrix l / 8;
/// thread (g = lane / 4, t = lane % 4) receives elements [g][2t, 2t + 1] of each.
__device__ __forceinline__ void ldmatrix_x4(std::uint32_t (&r)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

/// The same, each matrix transposed: the thread receives elements [2t, 2t + 1][g].
__device__ __forceinline__ void ldmatrix_x4_transposed(std::uint32_t (&r)[4],
                                                       std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void store_shared_16(std::uint32_t to, std::uint32_t w0,
                                                std::uint32_t w1, std::uint32_t w2,
                                                std::uint32_t w3) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};\n"
               :
               : "r"(to), "r"(w0), "r"(w1), "r"(w2), "r"(w3)
               : "memory");
}

__device__ __forceinline__ void store_shared_8(std::uint32_t to, std::uint32_t w0,
                                               std::uint32_t w1) {
  asm volatile("st.shared.v2.b32 [%0], {%1, %2};\n" : : "r"(to), "r"(w0), "r"(w1) : "memory");
}

__device__ __forceinline__ void store_shared_4(std::uint32_t to, std::uint32_t word) {
  asm volatile("st.shared.b32 [%0], %1;\n" : : "r"(to), "r"(word) : "memory");
}

__device__ __forceinline__ void load_shared_16(std::uint32_t (&w)[4], std::uint32_t from) {
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
               : "r"(from)
               : "memory");
}

__device__ __forceinline__ void load_shared_8(std::uint32_t (&w)[2], std::uint32_t from) {
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];\n"
               : "=r"(w[0]), "=r"(w[1])
               : "r"(from)
               : "memory");
}

__device__ __forceinline__ float2 load_shared_pair(std::uint32_t from) {
  float2 pair;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];\n"
               : "=f"(pair.x), "=f"(pair.y)
               : "r"(from)
               : "memory");
  return pair;
}

/// Copies 16 bytes from global to shared memory asynchronously, past L1; `bytes` = 0 writes zeros
/// and reads nothing.
__device__ __forceinline__ void cp_async_16(std::uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n"
               :
               : "r"(to), "l"(from), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}

/// Waits until at most `kPending` of this thread's committed groups are still under way.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

}  // namespace tessera::cuda::ptx
