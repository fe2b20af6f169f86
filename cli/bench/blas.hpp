// The machine's BLAS, if this build found one.
#pragma once

#include <cstdint>
#include <string>

namespace tessera::cli::bench {

/// Whether this build found a BLAS with its C interface.
bool have_blas();

/// The BLAS's name for itself, e.g. "OpenBLAS 0.3.21"; "BLAS" if it tells none.
std::string blas_name();

/// Asks the BLAS to use this many threads; one that cannot be asked keeps its own number.
void set_blas_threads(int threads);

enum class Transpose { no, yes };

/// A row-major matrix with `stride` elements from row to row.
struct Matrix {
  const float* data;
  std::int64_t stride;
  Transpose transpose = Transpose::no;
};

/// C ← alpha · op(A) op(B) + beta · C in f32; op(A) is [m, k], op(B) [k, n], C [m, n]. Only where
/// have_blas().
void multiply(std::int64_t m, std::int64_t n, std::int64_t k, double alpha, Matrix a, Matrix b,
              double beta, float* c, std::int64_t c_stride);

}  // namespace tessera::cli::bench
