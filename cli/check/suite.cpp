#include "check/suite.hpp"

#include <string>

namespace tessera::cli {
namespace {

struct Sizes {
  std::int64_t batch, heads_q, heads_kv, seq_q, seq_kv, head_dim, head_dim_v;
};

SuiteCase make(std::string name, DType dtype, const Sizes& sizes) {
  SuiteCase c;
  c.shape.name = std::move(name);
  c.shape.dtype = dtype;
  c.shape.batch = sizes.batch;
  c.shape.heads_q = sizes.heads_q;
  c.shape.heads_kv = sizes.heads_kv;
  c.shape.seq_q = sizes.seq_q;
  c.shape.seq_kv = sizes.seq_kv;
  c.shape.head_dim = sizes.head_dim;
  c.shape.head_dim_v = sizes.head_dim_v;
  return c;
}

}  // namespace

std::vector<SuiteCase> default_suite(DType dtype) {
  std::vector<SuiteCase> suite;
  const auto add = [&](std::string name, const Sizes& sizes) -> SuiteCase& {
    suite.push_back(make(std::move(name), dtype, sizes));
    return suite.back();
  };
  add("plain", {1, 2, 2, 128, 128, 64, 64});
  add("causal", {1, 2, 2, 256, 256, 128, 128}).attention.causal = true;

  SuiteCase& ragged = add("ragged GQA top-left", {2, 6, 2, 113, 203, 64, 64});
  ragged.attention.causal = true;
  ragged.attention.alignment = Alignment::top_left;

  SuiteCase& decode = add("one query, kv_lens", {3, 8, 1, 1, 333, 128, 128});
  decode.shape.kv_lens = true;

  SuiteCase& window = add("window, ALiBi, bshd", {1, 4, 4, 217, 128, 80, 80});
  window.attention.window = {40, 8};
  window.shape.alibi = true;
  window.shape.bshd = true;

  SuiteCase& bias = add("bias, softcap, sink", {2, 2, 2, 108, 256, 59, 59});
  bias.attention.softcap = 20;
  bias.shape.bias = true;
  bias.shape.sink = true;

  SuiteCase& mask = add("mask, dropout, dLSE", {2, 2, 1, 96, 160, 40, 40});
  mask.attention.dropout_p = 0.1;
  mask.shape.mask = true;
  mask.shape.d_lse = true;

  SuiteCase& packed = add("varlen, lengths", {4, 4, 2, 64, 72, 96, 96});
  packed.attention.causal = true;
  packed.shape.packed = true;
  packed.shape.q_lens = true;
  packed.shape.kv_lens = true;

  SuiteCase& blocks = add("block mask, causal", {1, 2, 2, 257, 300, 64, 64});
  blocks.attention.causal = true;
  blocks.shape.block_mask = true;
  blocks.shape.block = {32, 64};

  add("Dv unlike D", {1, 2, 2, 64, 100, 192, 128});
  add("no keys", {1, 2, 2, 5, 0, 64, 64});
  return suite;
}

}  // namespace tessera::cli
