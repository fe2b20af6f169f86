// Dropout drops the same elements on every row, in every pass, and as core/philox.hpp documents.
#include <gtest/gtest.h>

#include "core/philox.hpp"
#include "support/conformance.hpp"

namespace tessera::test {
namespace {

/// With V the identity and D small, o[b, h, i, j] is the softmax after dropout: element (i, j) is
/// zero exactly where it was dropped.
Case identity_case(std::int64_t seq_q, std::int64_t seq_kv, double p) {
  Case c;
  c.batch = 2;
  c.heads_q = 3;
  c.heads_kv = 1;
  c.seq_q = seq_q;
  c.seq_kv = seq_kv;
  c.head_dim = 16;
  c.head_dim_v = seq_kv;
  c.attention.dropout_p = p;
  return c;
}

void make_identity(Tensor& v) {
  v.fill(0);
  for (std::int64_t b = 0; b < v.size(0); ++b) {
    for (std::int64_t j = 0; j < v.size(2); ++j) v.put({b, 0, j, j}, 1);
  }
}

TEST(Dropout, DropsWhatTheStreamSays) {
  for (double p : {0.1, 0.5, 0.9}) {
    for (DType dtype : {DType::f32, DType::bf16}) {
      Case c = identity_case(p == 0.5 ? 9 : 75, 203, p);
      c.dtype = dtype;
      c.backward = false;
      Workload w = make_workload(c);
      make_identity(w.v);
      const DropoutStream stream(p, w.inputs().seed, w.inputs().offset);
      for (const std::string& row : rows_under_test(c)) {
        const Results r = make_results(c);
        ASSERT_TRUE(run_case(c, w, r, row).status.ok());
        for (std::int64_t b = 0; b < c.batch; ++b) {
          for (std::int64_t h = 0; h < c.heads_q; ++h) {
            for (std::int64_t i = 0; i < c.seq_q; ++i) {
              for (std::int64_t j = 0; j < c.seq_kv; ++j) {
                ASSERT_EQ(r.o.at({b, h, i, j}) != 0, stream.kept(b, h, i, j))
                    << row << " p " << p << " at " << b << "," << h << "," << i << "," << j;
              }
            }
          }
        }
      }
    }
  }
}

/// d_v = (P ∘ Z)ᵀ d_o: with d_o the identity, d_v[j, i] is zero exactly where (i, j) was dropped.
TEST(Dropout, BackwardReplaysIt) {
  Case c = identity_case(96, 130, 0.4);
  c.heads_q = 1;
  c.head_dim_v = c.seq_q;
  Workload w = make_workload(c);
  w.d_o.fill(0);
  for (std::int64_t b = 0; b < c.batch; ++b) {
    for (std::int64_t i = 0; i < c.seq_q; ++i) w.d_o.put({b, 0, i, i}, 1);
  }
  const DropoutStream stream(0.4, w.inputs().seed, w.inputs().offset);
  for (const std::string& row : rows_under_test(c)) {
    const Results r = make_results(c);
    ASSERT_TRUE(run_case(c, w, r, row).status.ok());
    for (std::int64_t b = 0; b < c.batch; ++b) {
      for (std::int64_t j = 0; j < c.seq_kv; ++j) {
        for (std::int64_t i = 0; i < c.seq_q; ++i) {
          ASSERT_EQ(r.d_v.at({b, 0, j, i}) != 0, stream.kept(b, 0, i, j))
              << row << " " << i << " " << j;
        }
      }
    }
  }
}

/// Indices count from the sequence's start, whether sequences are batched or packed.
TEST(Dropout, PackedSequencesDropLikeBatchedOnes) {
  Case batched = identity_case(40, 60, 0.3);
  batched.backward = false;
  Workload w = make_workload(batched);
  make_identity(w.v);
  Case packed = batched;
  packed.cu_seqlens_q = {0, 40, 80};
  packed.cu_seqlens_k = {0, 60, 120};
  packed.seq_q = 80;
  packed.seq_kv = 120;
  Workload p = make_workload(packed);
  for (std::int64_t b = 0; b < 2; ++b) {
    for (std::int64_t j = 0; j < 60; ++j) {
      for (std::int64_t d = 0; d < 16; ++d) p.k.put({60 * b + j, 0, d}, w.k.at({b, 0, j, d}));
      for (std::int64_t d = 0; d < 60; ++d) p.v.put({60 * b + j, 0, d}, j == d ? 1 : 0);
    }
  }
  for (const std::string& row : rows_under_test(packed)) {
    const Results a = make_results(batched);
    const Results b = make_results(packed);
    ASSERT_TRUE(run_case(batched, w, a, row).status.ok());
    ASSERT_TRUE(run_case(packed, p, b, row).status.ok());
    for (std::int64_t s = 0; s < 2; ++s) {
      for (std::int64_t h = 0; h < 3; ++h) {
        for (std::int64_t i = 0; i < 40; ++i) {
          for (std::int64_t j = 0; j < 60; ++j) {
            ASSERT_EQ(a.o.at({s, h, i, j}) != 0, b.o.at({40 * s + i, h, j}) != 0) << row;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace tessera::test
