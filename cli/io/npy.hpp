// NumPy's .npy format, versions 1.0, 2.0 and 3.0 (NEP 1).
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "host_tensor.hpp"
#include "io/array.hpp"
#include "tessera/status.hpp"

namespace tessera::cli {

/// Finds the array in a whole file's bytes, which the result refers to. Reads f2, f4, f8, i1, i2,
/// i4, i8, u1 and bool, little-endian, in C or Fortran order. Every length is checked against the
/// bytes at hand, so nothing in a hostile file is trusted; bytes after the array are an error.
Result<ArrayView> parse_npy(std::span<const std::byte> file);

/// The header, version 1.0, padded to a multiple of 64 bytes, that precedes `tensor`'s elements.
/// f16, f32, f64, i32 and bool only: the format has no bf16.
std::string npy_header(const HostTensor& tensor);

}  // namespace tessera::cli
