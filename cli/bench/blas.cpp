#include "bench/blas.hpp"

#include "error.hpp"

#ifdef TESSERA_HAVE_CBLAS
#include <cblas.h>

#include <sstream>
#include <string>
#include <vector>

extern "C" {
// OpenBLAS has these beyond the common interface; with another BLAS they are null.
__attribute__((weak)) void openblas_set_num_threads(int threads);
__attribute__((weak)) char* openblas_get_config();
}

namespace tessera::cli::bench {

bool have_blas() { return true; }

std::string blas_name() {
  if (openblas_get_config == nullptr) return "BLAS";
  // "OpenBLAS 0.3.21 DYNAMIC_ARCH NO_AFFINITY SkylakeX MAX_THREADS=128": name, version, and the
  // processor whose kernels it chose, which an old OpenBLAS may get wrong on a new processor.
  std::istringstream config(openblas_get_config());
  std::vector<std::string> words;
  for (std::string word; config >> word;) words.push_back(word);
  if (words.size() < 4) return openblas_get_config();
  return words[0] + " " + words[1] + " for " + words[words.size() - 2];
}

void set_blas_threads(int threads) {
  if (openblas_set_num_threads != nullptr) openblas_set_num_threads(threads);
}

void multiply(std::int64_t m, std::int64_t n, std::int64_t k, double alpha, Matrix a, Matrix b,
              double beta, float* c, std::int64_t c_stride) {
  const auto op = [](Matrix x) {
    return x.transpose == Transpose::yes ? CblasTrans : CblasNoTrans;
  };
  cblas_sgemm(CblasRowMajor, op(a), op(b), static_cast<int>(m), static_cast<int>(n),
              static_cast<int>(k), static_cast<float>(alpha), a.data, static_cast<int>(a.stride),
              b.data, static_cast<int>(b.stride), static_cast<float>(beta), c,
              static_cast<int>(c_stride));
}

}  // namespace tessera::cli::bench

#else

namespace tessera::cli::bench {

bool have_blas() { return false; }

std::string blas_name() { return "none"; }

void set_blas_threads(int) {}

void multiply(std::int64_t, std::int64_t, std::int64_t, double, Matrix, Matrix, double, float*,
              std::int64_t) {
  fail("standard: this build found no BLAS");
}

}  // namespace tessera::cli::bench

#endif
