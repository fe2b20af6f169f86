// Elementwise work on rows of scores for the unfused peer, vectorised by the compiler.
#pragma once

#include <cstdint>

namespace tessera::cli::bench {

/// row[j] ← exp(row[j] − max) / Σ for j in [begin, end) and 0 elsewhere in [0, size). An empty
/// range gives zeros.
void softmax_row(float* row, std::int64_t size, std::int64_t begin, std::int64_t end);

/// row[j] ← exp(row[j] − lse) for j in [begin, end) and 0 elsewhere in [0, size).
void exponential_row(float* row, std::int64_t size, std::int64_t begin, std::int64_t end,
                     float lse);

/// p[j] ← p[j] · (d_p[j] − delta): the softmax's gradient.
void softmax_gradient_row(float* p, const float* d_p, std::int64_t size, float delta);

}  // namespace tessera::cli::bench
