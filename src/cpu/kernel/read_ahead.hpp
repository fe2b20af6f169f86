// Asking for memory before it is read.
#pragma once

#include "cpu/kernel/product.hpp"

namespace tessera::cpu {

/// Memory that will be used soon, asked for line by line, so that it is in L2 by then: the next
/// listed block of a block mask lies anywhere, and another thread packed it.
struct ComingLines {
  static constexpr std::int64_t kLine = 64;
  const char* at = nullptr;
  std::int64_t part = 0;    ///< Bytes of a row or a strip, …
  std::int64_t stride = 0;  ///< … and from one to the next.
  std::int64_t left = 0;    ///< Rows or strips.
  std::int64_t offset = 0;

  TESSERA_INLINE std::int64_t lines() const { return left * ((part + kLine - 1) / kLine); }
  TESSERA_INLINE bool done() const { return left == 0; }
  TESSERA_INLINE void ask() {
    __builtin_prefetch(at + offset, 0, 2);
    offset += kLine;
    if (offset < part) return;
    offset = 0;
    at += stride;
    --left;
  }
};

/// What is asked for during one unit.
struct ReadAhead {
  static constexpr int kMost = 40;
  ComingLines run[kMost];
  int first = 0;
  int count = 0;
  std::int64_t lines = 0;

  TESSERA_INLINE void clear() {
    first = count = 0;
    lines = 0;
  }
  TESSERA_INLINE void add(const void* at, std::int64_t part, std::int64_t stride,
                          std::int64_t rows) {
    if (rows <= 0 || count == kMost) return;
    run[count] = {static_cast<const char*>(at), part, stride, rows, 0};
    lines += run[count++].lines();
  }
  TESSERA_INLINE void ask() {
    if (first == count) return;
    run[first].ask();
    if (run[first].done()) ++first;
  }
};

}  // namespace tessera::cpu
