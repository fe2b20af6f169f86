// What is the same in all lanes of a warp, said so: the compiler then keeps it in uniform
// registers.
#pragma once

#include "cuda/algo/block_walk.cuh"
#include "cuda/algo/sequence.cuh"

namespace tessera::cuda {

__device__ __forceinline__ int uniform(int x) { return __reduce_max_sync(~0u, x); }
__device__ __forceinline__ Sequence uniform(const Sequence& s) {
  return {uniform(s.q_begin), uniform(s.kv_begin), uniform(s.q_rows), uniform(s.kv_rows),
          uniform(s.q_len),   uniform(s.kv_len),   uniform(s.shift)};
}
__device__ __forceinline__ Range uniform(const Range& r) {
  return {uniform(r.begin), uniform(r.end)};
}
__device__ __forceinline__ Visit uniform(const Visit& v) {
  return {uniform(v.begin), v.listed, uniform(v.full)};
}

}  // namespace tessera::cuda
