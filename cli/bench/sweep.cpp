#include "bench/sweep.hpp"

#include "error.hpp"

namespace tessera::cli::bench {
namespace {

std::vector<Variant> variants_of(const Sweep& sweep) {
  std::vector<Variant> variants;
  for (const MaskChoice& mask : sweep.masks) {
    for (const std::string& impl : sweep.impls) {
      if (impl == "standard" && mask.pattern != Pattern::dense) continue;
      for (Precision precision : sweep.precisions) {
        if (impl == "standard" && precision != Precision::exact) continue;
        for (int threads : sweep.threads) variants.push_back({impl, threads, mask, precision});
      }
    }
  }
  return variants;
}

std::vector<std::int64_t> or_same(const std::vector<std::int64_t>& list, std::int64_t same) {
  return list.empty() ? std::vector<std::int64_t>{same} : list;
}

// Calls `body(heads_q, heads_kv, head_dim, head_dim_v)` for every combination.
template <typename Body>
void for_each_width(const Sweep& sweep, Body body) {
  for (std::int64_t d : sweep.head_dim) {
    for (std::int64_t dv : or_same(sweep.head_dim_v, d)) {
      for (std::int64_t hq : sweep.heads_q) {
        for (std::int64_t hkv : or_same(sweep.heads_kv, hq)) {
          if (hkv < 1 || hq % hkv != 0) {
            fail("--heads-kv: {}, expected a divisor of --heads ({})", hkv, hq);
          }
          body(hq, hkv, d, dv);
        }
      }
    }
  }
}

}  // namespace

std::vector<Group> expand(const Sweep& sweep) {
  std::vector<Group> groups;
  Group group;
  group.suite = sweep.suite;
  group.variants = variants_of(sweep);
  Case& p = group.problem;
  p.window = sweep.window;
  const auto add_lengths = [&] {
    for (std::int64_t seq_q : sweep.seq_q) {
      for (std::int64_t seq_kv : or_same(sweep.seq_kv, seq_q)) {
        p.seq_q = seq_q;
        p.seq_kv = seq_kv;
        groups.push_back(group);
      }
    }
  };
  const auto add_shapes = [&](std::int64_t hq, std::int64_t hkv, std::int64_t d, std::int64_t dv) {
    p.heads_q = hq;
    p.heads_kv = hkv;
    p.head_dim = d;
    p.head_dim_v = dv;
    for (bool causal : sweep.causal) {
      p.causal = causal;
      for (std::int64_t batch : sweep.batch) {
        p.batch = batch;
        add_lengths();
      }
    }
  };
  for (Pass pass : sweep.passes) {
    p.pass = pass;
    for (DType dtype : sweep.dtypes) {
      p.dtype = dtype;
      for_each_width(sweep, add_shapes);
    }
  }
  return groups;
}

}  // namespace tessera::cli::bench
