// `tessera run` from outside, against attention written out in this file.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "cli/file_images.hpp"
#include "cli/process.hpp"
#include "cli/temporary_folder.hpp"

namespace tessera::cli::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

using Values = std::vector<float>;

// Plain numbers that are neither round nor random: exact in f32, and in f16 and bf16, too.
Values sample(int count, int salt) {
  Values values(count);
  for (int i = 0; i < count; ++i)
    values[i] = static_cast<float>((i * 37 + salt * 11) % 41 - 20) / 16;
  return values;
}

struct Array {
  std::string dict;
  Values values;
};

// Reads a '<f4' file as NumPy would.
Array read_f32(const std::string& path) {
  const std::string image = read_file(path);
  if (image.size() < 10) return {};
  const std::size_t header = static_cast<unsigned char>(image[8]) +
                             256 * static_cast<std::size_t>(static_cast<unsigned char>(image[9]));
  Array array{image.substr(10, header), {}};
  const std::string data = image.substr(10 + header);
  array.values.resize(data.size() / sizeof(float));
  std::memcpy(array.values.data(), data.data(), data.size());
  return array;
}

struct Sizes {
  int batch, heads_q, heads_kv, seq_q, seq_kv, head_dim;
};

struct Expected {
  std::vector<double> o, lse, d_q, d_k, d_v;
};

using Score = std::function<double(int b, int h, int i, int j, double dot)>;

// softmax(score(scale q·k)) v and its gradients, from the definitions; −inf scores are masked.
Expected attention(const Sizes& s, const Values& q, const Values& k, const Values& v,
                   const Values& d_o, const Score& score) {
  const int D = s.head_dim;
  const double scale = 1 / std::sqrt(static_cast<double>(D));
  Expected e;
  e.o.assign(q.size(), 0);
  e.lse.assign(q.size() / D, -kInfinity);
  e.d_q.assign(q.size(), 0);
  e.d_k.assign(k.size(), 0);
  e.d_v.assign(v.size(), 0);
  for (int row = 0; row < s.batch * s.heads_q * s.seq_q; ++row) {
    const int i = row % s.seq_q;
    const int h = row / s.seq_q % s.heads_q;
    const int b = row / s.seq_q / s.heads_q;
    const int key0 = (b * s.heads_kv + h / (s.heads_q / s.heads_kv)) * s.seq_kv;
    std::vector<double> p(s.seq_kv);
    double sum = 0;
    for (int j = 0; j < s.seq_kv; ++j) {
      double dot = 0;
      for (int d = 0; d < D; ++d) dot += double{q[row * D + d]} * k[(key0 + j) * D + d];
      p[j] = std::exp(score(b, h, i, j, scale * dot));
      sum += p[j];
    }
    if (sum == 0) continue;
    e.lse[row] = std::log(sum);
    double delta = 0;
    for (int j = 0; j < s.seq_kv; ++j) {
      p[j] /= sum;
      for (int d = 0; d < D; ++d) {
        e.o[row * D + d] += p[j] * v[(key0 + j) * D + d];
        delta += p[j] * v[(key0 + j) * D + d] * d_o[row * D + d];
      }
    }
    for (int j = 0; j < s.seq_kv; ++j) {
      double d_p = 0;
      for (int d = 0; d < D; ++d) d_p += double{d_o[row * D + d]} * v[(key0 + j) * D + d];
      for (int d = 0; d < D; ++d) {
        e.d_v[(key0 + j) * D + d] += p[j] * d_o[row * D + d];
        e.d_q[row * D + d] += scale * p[j] * (d_p - delta) * k[(key0 + j) * D + d];
        e.d_k[(key0 + j) * D + d] += scale * p[j] * (d_p - delta) * q[row * D + d];
      }
    }
  }
  return e;
}

double identity(int, int, int, int, double dot) { return dot; }

void expect_near(const Array& got, const std::vector<double>& expected, double tolerance) {
  ASSERT_EQ(got.values.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (std::isinf(expected[i])) {
      EXPECT_EQ(got.values[i], expected[i]) << i;
    } else {
      EXPECT_NEAR(got.values[i], expected[i], tolerance) << i;
    }
  }
}

class Run : public testing::Test {
 protected:
  // Writes q, k, v and d_o as [B, H, S, D] files.
  void write_inputs() {
    folder_.write("q.npy", npy_f32(shape(s_.heads_q, s_.seq_q), q_));
    folder_.write("k.npy", npy_f32(shape(s_.heads_kv, s_.seq_kv), k_));
    folder_.write("v.npy", npy_f32(shape(s_.heads_kv, s_.seq_kv), v_));
    folder_.write("do.npy", npy_f32(shape(s_.heads_q, s_.seq_q), d_o_));
  }

  std::string shape(int heads, int seq) const {
    return std::to_string(s_.batch) + "," + std::to_string(heads) + "," + std::to_string(seq) +
           "," + std::to_string(s_.head_dim);
  }

  Outcome run(std::vector<std::string> more) {
    std::vector<std::string> arguments = {"run",         "--q", path("q.npy"), "--k",
                                          path("k.npy"), "--v", path("v.npy")};
    arguments.insert(arguments.end(), more.begin(), more.end());
    Outcome outcome = run_tessera(arguments);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_EQ(outcome.err, "");
    return outcome;
  }

  Expected expected(const Score& score) const { return attention(s_, q_, k_, v_, d_o_, score); }
  std::string path(const std::string& name) const { return folder_ / name; }
  Array read(const std::string& name) const { return read_f32(path(name)); }

  TemporaryFolder folder_;
  Sizes s_{2, 4, 2, 5, 7, 8};
  Values q_ = sample(2 * 4 * 5 * 8, 1);
  Values k_ = sample(2 * 2 * 7 * 8, 2);
  Values v_ = sample(2 * 2 * 7 * 8, 3);
  Values d_o_ = sample(2 * 4 * 5 * 8, 4);
};

TEST_F(Run, ForwardAndBackward) {
  write_inputs();
  const Outcome outcome =
      run({"--out", path("o.npy"), "--lse", path("lse.npy"), "--dout", path("do.npy"), "--dq",
           path("dq.npy"), "--dk", path("dk.npy"), "--dv", path("dv.npy"), "--deterministic"});
  const Expected e = expected(identity);
  expect_near(read("o.npy"), e.o, 1e-5);
  expect_near(read("lse.npy"), e.lse, 1e-5);
  expect_near(read("dq.npy"), e.d_q, 1e-5);
  expect_near(read("dk.npy"), e.d_k, 1e-5);
  expect_near(read("dv.npy"), e.d_v, 1e-5);
  EXPECT_NE(read("o.npy").dict.find("'shape': (2, 4, 5, 8,)"), std::string::npos);
  EXPECT_NE(read("lse.npy").dict.find("'shape': (2, 4, 5,)"), std::string::npos);
  EXPECT_NE(outcome.out.find("wrote     " + path("dv.npy") + "  f32 [2, 2, 7, 8]"),
            std::string::npos)
      << outcome.out;
  EXPECT_EQ(folder_.names().size(), 9u);
}

TEST_F(Run, CausalBothWaysAndWindow) {
  write_inputs();
  run({"--causal", "--out", path("o.npy")});
  expect_near(read("o.npy"), expected([](int, int, int i, int j, double dot) {
                               return j <= i + 2 ? dot : -kInfinity;
                             }).o,
              1e-5);
  run({"--causal=top-left", "--lse", path("lse.npy")});
  expect_near(read("lse.npy"), expected([](int, int, int i, int j, double dot) {
                                 return j <= i ? dot : -kInfinity;
                               }).lse,
              1e-5);
  run({"--window", "1,-1", "--alignment", "top-left", "--out", path("o.npy")});
  expect_near(read("o.npy"), expected([](int, int, int i, int j, double dot) {
                               return j >= i - 1 ? dot : -kInfinity;
                             }).o,
              1e-5);
  run({"--window", "-1,-1", "--out", path("o.npy")});
  expect_near(read("o.npy"), expected(identity).o, 1e-5);
}

TEST_F(Run, EveryDtypeIsRoundedOnLoadAndWidenedOnSave) {
  write_inputs();
  const Expected e = expected(identity);
  run({"--dtype", "bf16", "--out", path("o.npy")});
  expect_near(read("o.npy"), e.o, 0x1p-8 * 1.25);
  for (float value : read("o.npy").values) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    EXPECT_EQ(bits & 0xffffu, 0u);
  }
  run({"--dtype", "f16", "--out", path("o.npy")});
  EXPECT_NE(read("o.npy").dict.find("'<f2'"), std::string::npos);
  run({"--dtype", "f64", "--impl", "reference", "--out", path("o.npy"), "--lse", path("lse.npy")});
  EXPECT_NE(read("o.npy").dict.find("'<f8'"), std::string::npos);
  EXPECT_NE(read("lse.npy").dict.find("'<f8'"), std::string::npos);
  std::vector<double> wide(e.o.size());
  const std::string image = read_file(path("o.npy"));
  std::memcpy(wide.data(), image.data() + image.size() - wide.size() * sizeof(double),
              wide.size() * sizeof(double));
  for (std::size_t i = 0; i < wide.size(); ++i) EXPECT_NEAR(wide[i], e.o[i], 1e-14);
}

TEST_F(Run, LayoutBshd) {
  write_inputs();
  const auto to_bshd = [](const Values& x, int heads, int seq, int last) {
    Values y(x.size());
    for (int n = 0; n < static_cast<int>(x.size()); ++n) {
      const int d = n % last, i = n / last % seq, h = n / last / seq % heads;
      const int b = n / last / seq / heads;
      y[((b * seq + i) * heads + h) * last + d] = x[n];
    }
    return y;
  };
  folder_.write("q.npy", npy_f32("2,5,4,8", to_bshd(q_, 4, 5, 8)));
  folder_.write("k.npy", npy_f32("2,7,2,8", to_bshd(k_, 2, 7, 8)));
  folder_.write("v.npy", npy_f32("2,7,2,8", to_bshd(v_, 2, 7, 8)));
  folder_.write("do.npy", npy_f32("2,5,4,8", to_bshd(d_o_, 4, 5, 8)));
  run({"--layout", "bshd", "--out", path("o.npy"), "--lse", path("lse.npy"), "--dout",
       path("do.npy"), "--dk", path("dk.npy")});
  const Expected e = expected(identity);
  const auto wide = [](const Values& x) { return std::vector<double>(x.begin(), x.end()); };
  const auto narrow = [](const std::vector<double>& x) { return Values(x.begin(), x.end()); };
  expect_near(read("o.npy"), wide(to_bshd(narrow(e.o), 4, 5, 8)), 1e-5);
  expect_near(read("lse.npy"), e.lse, 1e-5);
  expect_near(read("dk.npy"), wide(to_bshd(narrow(e.d_k), 2, 7, 8)), 1e-5);
}

TEST_F(Run, BiasMaskSlopesSoftcapAndTheirGradients) {
  write_inputs();
  const Values bias = sample(5 * 7, 5);
  std::vector<std::uint8_t> mask(2 * 1 * 5 * 7);
  for (std::size_t i = 0; i < mask.size(); ++i) mask[i] = i % 3 != 0 && i >= 7;
  const Values slopes = {0.5f, 0.25f, 0.125f, 0};
  folder_.write("bias.npy", npy_f32("5,7", bias));
  folder_.write("mask.npy", npy_image(npy_dict("|b1", "2,1,5,7"), bytes_of_values(mask)));
  folder_.write("slopes.npy", npy_f32("4,", slopes));
  run({"--bias", path("bias.npy"), "--mask", path("mask.npy"), "--alibi", path("slopes.npy"),
       "--softcap", "1.5", "--out", path("o.npy"), "--lse", path("lse.npy"), "--dout",
       path("do.npy"), "--dv", path("dv.npy"), "--dbias", path("dbias.npy")});
  const Expected e = expected([&](int b, int h, int i, int j, double dot) {
    if (!mask[(b * 5 + i) * 7 + j]) return -kInfinity;
    return 1.5 * std::tanh(dot / 1.5) + bias[i * 7 + j] - slopes[h] * std::abs(i + 2 - j);
  });
  expect_near(read("o.npy"), e.o, 1e-5);
  expect_near(read("lse.npy"), e.lse, 1e-5);
  expect_near(read("dv.npy"), e.d_v, 1e-5);
  EXPECT_EQ(e.lse[0], -kInfinity);
  // The softmax does not change when a whole row's bias does, so d_bias's rows sum to 0.
  const Array d_bias = read("dbias.npy");
  EXPECT_NE(d_bias.dict.find("'shape': (5, 7,)"), std::string::npos);
  ASSERT_EQ(d_bias.values.size(), 35u);
  for (int i = 0; i < 5; ++i) {
    double sum = 0;
    for (int j = 0; j < 7; ++j) sum += d_bias.values[i * 7 + j];
    EXPECT_NEAR(sum, 0, 1e-4) << i;
  }
}

TEST_F(Run, KeyLengthsOfAnyIntegerType) {
  write_inputs();
  folder_.write("lens.npy",
                npy_image(npy_dict("<i8", "2,"), bytes_of_values<std::int64_t>({3, 7})));
  run({"--kv-lens", path("lens.npy"), "--out", path("o.npy"), "--dout", path("do.npy"), "--dk",
       path("dk.npy")});
  const Expected e = expected(
      [](int b, int, int, int j, double dot) { return b == 1 || j < 3 ? dot : -kInfinity; });
  expect_near(read("o.npy"), e.o, 1e-5);
  expect_near(read("dk.npy"), e.d_k, 1e-5);
}

TEST_F(Run, SinkAndItsGradient) {
  write_inputs();
  const Values sink = {0.5f, -1, 2, 0};
  folder_.write("sink.npy", npy_f32("4,", sink));
  run({"--sink", path("sink.npy"), "--lse", path("lse.npy"), "--dout", path("do.npy"), "--dsink",
       path("dsink.npy")});
  const Expected plain = expected(identity);
  std::vector<double> lse(plain.lse.size());
  std::vector<double> d_sink(4);
  for (std::size_t row = 0; row < lse.size(); ++row) {
    const std::size_t h = row / 5 % 4;
    lse[row] = std::log(std::exp(plain.lse[row]) + std::exp(double{sink[h]}));
    // o shrinks by the share that the sink takes; d_sink = −p_sink Σ d_o · o.
    const double keys_share = std::exp(plain.lse[row] - lse[row]);
    for (int d = 0; d < 8; ++d) {
      d_sink[h] -= (1 - keys_share) * d_o_[row * 8 + d] * plain.o[row * 8 + d] * keys_share;
    }
  }
  expect_near(read("lse.npy"), lse, 1e-5);
  expect_near(read("dsink.npy"), d_sink, 1e-4);
}

TEST_F(Run, PackedSequences) {
  // Two sequences of 2 and 3 queries, 4 and 3 keys; each is a batch of its own.
  s_ = {1, 4, 2, 5, 7, 8};
  q_ = sample(5 * 4 * 8, 1);
  k_ = sample(7 * 2 * 8, 2);
  v_ = sample(7 * 2 * 8, 3);
  folder_.write("q.npy", npy_f32("5,4,8", q_));
  folder_.write("k.npy", npy_f32("7,2,8", k_));
  folder_.write("v.npy", npy_f32("7,2,8", v_));
  folder_.write("cq.npy", npy_image(npy_dict("<i4", "3,"), bytes_of_values<int>({0, 2, 5})));
  folder_.write("ck.npy", npy_image(npy_dict("<i4", "3,"), bytes_of_values<int>({0, 4, 7})));
  run({"--cu-seqlens-q", path("cq.npy"), "--cu-seqlens-k", path("ck.npy"), "--causal", "--out",
       path("o.npy"), "--lse", path("lse.npy")});
  const auto transposed = [](const Values& x, int tokens, int heads) {
    Values y(x.size());
    for (int n = 0; n < static_cast<int>(x.size()); ++n) {
      const int d = n % 8, h = n / 8 % heads, t = n / 8 / heads;
      y[(h * tokens + t) * 8 + d] = x[n];
    }
    return y;
  };
  const Expected e = attention(s_, transposed(q_, 5, 4), transposed(k_, 7, 2), transposed(v_, 7, 2),
                               Values(q_.size()), [](int, int, int i, int j, double dot) {
                                 const bool first = i < 2;
                                 const bool same = first ? j < 4 : j >= 4;
                                 const int ahead = first ? j - (i + 2) : (j - 4) - (i - 2);
                                 return same && ahead <= 0 ? dot : -kInfinity;
                               });
  expect_near(read("lse.npy"), e.lse, 1e-5);
  const Array o = read("o.npy");
  const Values by_head = transposed(o.values, 5, 4);
  expect_near({"", by_head}, e.o, 1e-5);
}

TEST_F(Run, BlockMasksOfEveryRank) {
  s_ = {1, 2, 2, 40, 64, 8};
  q_ = sample(2 * 40 * 8, 1);
  k_ = sample(2 * 64 * 8, 2);
  v_ = sample(2 * 64 * 8, 3);
  d_o_ = sample(2 * 40 * 8, 4);
  write_inputs();
  // Blocks of 16 by 32: nq 3, nk 2.
  const std::vector<std::uint8_t> per_head = {1, 0, 1, 1, 0, 0, 0, 1, 1, 0, 1, 1};
  const std::string data = bytes_of_values(per_head);
  folder_.write("shared.npy", npy_image(npy_dict("|b1", "3,2"), data.substr(0, 6)));
  folder_.write("heads.npy", npy_image(npy_dict("|b1", "2,3,2"), data));
  folder_.write("all.npy", npy_image(npy_dict("|b1", "1,2,3,2"), data));
  for (const char* name : {"shared.npy", "heads.npy", "all.npy"}) {
    const bool shared = std::string(name) == "shared.npy";
    run({"--block-mask", path(name), "--block-size", "16,32", "--out", path("o.npy"), "--lse",
         path("lse.npy"), "--dout", path("do.npy"), "--dq", path("dq.npy")});
    const Expected e = expected([&](int, int h, int i, int j, double dot) {
      return per_head[((shared ? 0 : h) * 3 + i / 16) * 2 + j / 32] ? dot : -kInfinity;
    });
    expect_near(read("o.npy"), e.o, 1e-5);
    expect_near(read("lse.npy"), e.lse, 1e-5);
    expect_near(read("dq.npy"), e.d_q, 1e-5);
  }
}

TEST_F(Run, DropoutDependsOnSeedAndOffsetAlone) {
  write_inputs();
  const auto o_with = [&](const char* seed, const char* offset, const char* threads) {
    run({"--dropout", "0.5", "--seed", seed, "--offset", offset, "--threads", threads, "--out",
         path("o.npy")});
    return read("o.npy").values;
  };
  const Values o = o_with("7", "0", "1");
  EXPECT_EQ(o, o_with("7", "0", "2"));
  EXPECT_NE(o, o_with("8", "0", "1"));
  EXPECT_NE(o, o_with("7", "1", "1"));
}

TEST_F(Run, ReadsSafetensorsAndRowsByName) {
  write_inputs();
  const std::string q = bytes_of_values(q_), k = bytes_of_values(k_), v = bytes_of_values(v_);
  const auto entry = [](const char* name, const std::string& shape, std::size_t begin,
                        std::size_t end) {
    return "\"" + std::string(name) + "\":{\"dtype\":\"F32\",\"shape\":[" + shape +
           "],\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(end) + "]}";
  };
  const std::string header =
      "{" + entry("a.q", "2,4,5,8", 0, q.size()) + "," +
      entry("a.k", "2,2,7,8", q.size(), q.size() + k.size()) + "," +
      entry("a:v", "2,2,7,8", q.size() + k.size(), q.size() + k.size() + v.size()) + "}";
  const std::string file = folder_.write("all.safetensors", safetensors_image(header, q + k + v));
  for (const char* row : {"reference", "cpu_portable"}) {
    const Outcome outcome =
        run_tessera({"run", "--q", file + ":a.q", "--k", file + ":a.k", "--v", file + ":a:v",
                     "--impl", row, "--device", "cpu", "--out", path("o.npy")});
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_NE(outcome.out.find(std::string("forward   ") + row), std::string::npos);
    expect_near(read("o.npy"), expected(identity).o, 1e-5);
  }
}

TEST_F(Run, MayReplaceItsOwnInput) {
  write_inputs();
  run({"--out", path("q.npy")});
  expect_near(read("q.npy"), expected(identity).o, 1e-5);
}

}  // namespace
}  // namespace tessera::cli::test
