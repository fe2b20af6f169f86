// Whatever is wrong with its input, tessera says so in one line, exits with 2 and leaves no file.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "cli/file_images.hpp"
#include "cli/process.hpp"
#include "cli/temporary_folder.hpp"
#include "tessera/attention.hpp"

namespace tessera::cli::test {
namespace {

using Words = std::vector<std::string>;

std::string f32_file(const std::string& shape, int count) {
  return npy_f32(shape, std::vector<float>(count, 0.5f));
}

std::string i32_file(const std::vector<std::int32_t>& values) {
  return npy_image(npy_dict("<i4", std::to_string(values.size()) + ","), bytes_of_values(values));
}

/// "cpu_amx, …, reference": the CPU's table, whose order depends on the processor.
std::string cpu_rows() {
  std::string names;
  for (const Implementation& row : implementations()) {
    if (row.device == DeviceType::cpu) names += (names.empty() ? "" : ", ") + row.name;
  }
  return names;
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) {
    text.replace(at, from.size(), to);
  }
  return text;
}

class BadInput : public testing::Test {
 protected:
  BadInput() {
    folder_.write("q.npy", f32_file("1,4,5,8", 160));
    folder_.write("k.npy", f32_file("1,2,7,8", 112));
    folder_.write("v.npy", f32_file("1,2,7,8", 112));
    folder_.write("packed_q.npy", f32_file("5,4,8", 160));
    folder_.write("packed_k.npy", f32_file("7,2,8", 112));
    folder_.write("h3.npy", f32_file("1,3,7,8", 168));
    folder_.write("d9.npy", f32_file("1,2,7,9", 126));
    folder_.write("ints.npy", i32_file({1, 2}));
    folder_.write("one.npy", f32_file("1,", 1));
    folder_.write("truncated.npy", f32_file("1,2,7,8", 111));
    folder_.write("huge.npy", npy_image(npy_dict("<f4", "1048576,1048576,1048576,1048576"), ""));
    folder_.write("text.npy", "hello");
    folder_.write("empty.npy", "");
    folder_.write("lens9.npy", i32_file({9}));
    folder_.write("cu.npy", i32_file({0, 5}));
    folder_.write("cu_back.npy", i32_file({0, 5, 3}));
    folder_.write("cu_far.npy", i32_file({0, 9}));
    folder_.write("cu_from1.npy", i32_file({1, 5}));
    folder_.write("cu7.npy", i32_file({0, 7}));
    folder_.write("cu7b.npy", i32_file({0, 3, 7}));
    folder_.write("blocks.npy", npy_image(npy_dict("|b1", "2,2"), std::string(4, '\1')));
    folder_.write("blocks_h3.npy", npy_image(npy_dict("|b1", "3,1,1"), std::string(3, '\1')));
    folder_.write("twos.npy", npy_image(npy_dict("|u1", "1,1,5,7"), std::string(35, '\2')));
    folder_.write(
        "one.safetensors",
        safetensors_image(R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", "abcd"));
    folder_.write("long.safetensors", little_endian(1ull << 60, 8) + "{}");
    folder_.write("odd\nname.npy", "hello");
    std::filesystem::create_directory(folder_ / "folder");
    files_ = folder_.names().size();
  }

  // `F/` in words and in the expected line stands for the folder.
  void expect_refused(Words words, const std::string& line) {
    for (std::string& word : words) word = replaced(word, "F/", folder_ / "");
    const Outcome outcome = run_tessera(words);
    std::string command;
    for (const std::string& word : words) command += word + " ";
    EXPECT_EQ(outcome.exit_code, 2) << command << outcome.err;
    EXPECT_TRUE(outcome.one_error_line()) << command << outcome.err;
    EXPECT_EQ(outcome.err, "tessera: " + replaced(line, "F/", folder_ / "") + "\n") << command;
    EXPECT_EQ(outcome.out, "") << command;
    EXPECT_EQ(folder_.names().size(), files_) << command;
  }

  // tessera run on good files, with words added; a flag given again replaces the good one.
  void expect_run_refused(const Words& more, const std::string& line) {
    Words words = {"run"};
    for (const auto& [flag, value] : std::vector<std::pair<std::string, std::string>>{
             {"--q", "F/q.npy"}, {"--k", "F/k.npy"}, {"--v", "F/v.npy"}, {"--out", "F/o.npy"}}) {
      if (std::find(more.begin(), more.end(), flag) == more.end()) {
        words.insert(words.end(), {flag, value});
      }
    }
    words.insert(words.end(), more.begin(), more.end());
    expect_refused(words, line);
  }

  TemporaryFolder folder_;
  std::size_t files_ = 0;
};

TEST_F(BadInput, CommandLines) {
  expect_refused({}, "no command: expected info, run, check, bench, explain, calibrate");
  expect_refused({"walk"}, "walk: expected info, run, check, bench, explain, calibrate");
  expect_refused({"--fast"}, "--fast: expected info, run, check, bench, explain, calibrate");
  expect_refused({"info", "--fast"}, "--fast: expected a flag of info, see tessera info --help");
  expect_run_refused({"--fast"}, "--fast: expected a flag of run, see tessera run --help");
  expect_run_refused({"--causal", "top-left"},
                     "top-left: expected a flag of run, see tessera run --help");
  expect_run_refused({"--softcap", "much"}, "--softcap: much, expected a number");
  expect_run_refused({"--dtype", "f8"}, "--dtype: f8, expected f32|f16|bf16|f64");
  expect_run_refused({"--layout", "sbhd"}, "--layout: sbhd, expected bhsd|bshd");
  expect_run_refused({"--causal=left"}, "--causal: left, expected bottom-right|top-left");
  expect_run_refused({"--threads", "0"}, "--threads: 0, expected an integer of 1 to 4096");
  expect_run_refused({"--seed", "-1"}, "--seed: -1, expected an integer of 0 to 2^64 − 1");
  expect_run_refused({"--window", "5"},
                     "--window: 5, expected L,R: two integers, −1 for an unbounded side");
  expect_run_refused({"--window", "5,x"},
                     "--window: 5,x, expected L,R: two integers, −1 for an unbounded side");
  expect_run_refused({"--causal", "--alignment", "top-left"},
                     "--alignment: top-left, expected --causal's bottom-right");
  expect_run_refused({"--block-size", "64"},
                     "--block-size: 64, expected --block-mask to go with it");
}

// CLI11 words these itself, and differently from version to version.
TEST_F(BadInput, MissingAndRepeatedValues) {
  for (const Words& words : {Words{"run", "--softcap"}, Words{"run", "--q"},
                             Words{"run", "--softcap", "1", "--softcap", "2"}}) {
    const Outcome outcome = run_tessera(words);
    EXPECT_EQ(outcome.exit_code, 2);
    EXPECT_TRUE(outcome.one_error_line()) << outcome.err;
    EXPECT_NE(outcome.err.find(words[1]), std::string::npos) << outcome.err;
  }
}

TEST_F(BadInput, Values) {
  expect_run_refused({"--scale", "nan"}, "scale: nan, expected a finite number");
  expect_run_refused({"--scale=-inf"}, "scale: -inf, expected a finite number");
  expect_run_refused({"--dropout", "1"}, "dropout_p: 1, expected a number in [0, 1)");
  expect_run_refused({"--dropout", "-0.1"}, "dropout_p: -0.1, expected a number in [0, 1)");
  expect_run_refused({"--softcap=-1"}, "softcap: -1, expected 0 (off) or a positive number");
  expect_run_refused({"--window", "-2,0"},
                     "window.left: -2, expected −1 (unbounded) to 2147483647");
  expect_run_refused({"--impl", "cpu_fast"},
                     "implementation: cpu_fast, expected a row of the cpu table: " + cpu_rows());
}

TEST_F(BadInput, Shapes) {
  expect_run_refused({"--k", "F/h3.npy", "--v", "F/h3.npy"},
                     "q: heads 4, expected a multiple of k's 3");
  expect_run_refused({"--k", "F/d9.npy"}, "k: shape [1,2,7,9], expected [1,2,7,8]");
  expect_run_refused({"--v", "F/h3.npy"}, "v: shape [1,3,7,8], expected [1,2,7,8]");
  expect_run_refused({"--q", "F/packed_q.npy"}, "q: rank 3, expected 4 ([B, H, S, D])");
  expect_run_refused({"--layout", "bshd"}, "q: heads 5, expected a multiple of k's 7");
  expect_run_refused({"--bias", "F/one.npy"}, "bias: shape [1,1,1,1], expected [1,4|1,5|1,7]");
  expect_run_refused({"--sink", "F/one.npy"}, "sink: shape [1], expected [4]");
  expect_run_refused({"--alibi", "F/one.npy"}, "alibi_slopes: shape [1], expected [4]");
  expect_run_refused({"--kv-lens", "F/ints.npy"}, "kv_lens: shape [2], expected [1]");
  expect_run_refused({"--kv-lens", "F/lens9.npy"}, "kv_lens[0]: 9, expected 0 to 7");
  expect_run_refused({"--q-lens", "F/lens9.npy"}, "q_lens[0]: 9, expected 0 to 5");
  expect_run_refused({"--dout", "F/k.npy", "--dq", "F/dq.npy"},
                     "d_o: shape [1,2,7,8], expected [1,4,5,8]");
}

TEST_F(BadInput, PackedSequences) {
  const auto expect_packed_refused = [&](const char* cu_q, const char* cu_k,
                                         const std::string& line) {
    expect_run_refused({"--q", "F/packed_q.npy", "--k", "F/packed_k.npy", "--v", "F/packed_k.npy",
                        "--cu-seqlens-q", cu_q, "--cu-seqlens-k", cu_k},
                       line);
  };
  expect_packed_refused("F/cu_back.npy", "F/cu7b.npy", "cu_seqlens_q[2]: 3, expected 5 to 5");
  expect_packed_refused("F/cu_far.npy", "F/cu7.npy", "cu_seqlens_q[1]: 9, expected 0 to 5");
  expect_packed_refused("F/cu_from1.npy", "F/cu7.npy", "cu_seqlens_q[0]: 1, expected 0");
  expect_packed_refused("F/cu.npy", "F/cu7b.npy", "cu_seqlens_k: shape [3], expected [2]");
  expect_packed_refused("F/one.npy", "F/cu7.npy",
                        "--cu-seqlens-q F/one.npy: dtype f32: expected integers");
  expect_run_refused({"--cu-seqlens-q", "F/cu.npy", "--cu-seqlens-k", "F/cu7.npy"},
                     "q: rank 4, expected 3 ([T, H, D], as cu_seqlens are given)");
  expect_run_refused({"--cu-seqlens-q", "F/cu.npy"},
                     "--cu-seqlens-k: absent, expected both cu_seqlens or neither");
  expect_run_refused(
      {"--cu-seqlens-q", "F/cu.npy", "--cu-seqlens-k", "F/cu7.npy", "--layout", "bshd"},
      "--layout: bshd, expected none with --cu-seqlens-q: packed tensors are "
      "[T, H, D]");
}

TEST_F(BadInput, Precisions) {
  expect_run_refused({"--precision", "sage2"},
                     "--precision: sage2, expected exact|sage8|sage4|adaptive");
  expect_run_refused({"--pv", "half"}, "--pv half: expected --precision sage8 or sage4 with it");
  expect_run_refused({"--precision", "adaptive"},
                     "--plan: absent, expected a plan of tessera calibrate");
  expect_run_refused({"--precision", "adaptive", "--plan", "F/text.npy"},
                     "--layer: absent, expected a layer of the plan");
  expect_run_refused({"--precision", "adaptive", "--plan", "F/text.npy", "--layer", "0"},
                     "--plan F/text.npy: adaptive plan: not a JSON object, expected a plan of "
                     "tessera calibrate");
  expect_run_refused({"--layer", "0"}, "--layer 0: expected --precision adaptive with it");
  expect_refused({"check", "--precision", "exact,sage8"}, "--precision: exact, expected it alone");
  expect_refused({"check", "--smooth-k", "off"},
                 "--smooth-k off: expected --precision sage8 or sage4 with it");
  expect_refused({"check", "--activations", "F/one.safetensors"},
                 "--activations F/one.safetensors: expected --precision sage8 or sage4 with it");
  expect_refused({"check", "--precision", "sage8", "--dout", "F/q.npy"},
                 "--dout F/q.npy: expected no --precision with it");
  expect_refused({"check", "--precision", "sage8", "--dtype", "f64"},
                 "--dtype: f64, expected f32, f16 or bf16 with --precision");
  expect_refused({"check", "--precision", "sage8", "--activations", "F/one.safetensors"},
                 "--activations F/one.safetensors: no samples, expected tensors NAME.q, NAME.k and "
                 "NAME.v");
  expect_refused({"check", "--precision", "sage8", "--activations", "F/q"},
                 "--activations F/q: expected FILE.safetensors or NAME.q.npy");
}

TEST_F(BadInput, BlockMasks) {
  expect_run_refused({"--block-mask", "F/blocks.npy"},
                     "--block-mask F/blocks.npy: shape [2, 2], expected [nq, nk], [H, nq, nk] or "
                     "[B, H, nq, nk] with nq 1 and nk 1 (blocks of 128x128 over 5x7)");
  expect_run_refused({"--block-mask", "F/cu.npy"},
                     "--block-mask F/cu.npy: element 1 is 5: expected 0 or 1");
  expect_run_refused({"--block-mask", "F/blocks_h3.npy"}, "block_mask: heads 3, expected 1 or 4");
  expect_run_refused({"--block-mask", "F/blocks.npy", "--block-size", "8"},
                     "--block-size: 8, expected M or M,N, positive multiples of 16");
  expect_run_refused({"--block-mask", "F/blocks.npy", "--block-size", "16,x"},
                     "--block-size: 16,x, expected M or M,N, positive multiples of 16");
}

TEST_F(BadInput, Files) {
  expect_run_refused({"--k", "F/none.npy"},
                     "--k F/none.npy: cannot open: No such file or directory");
  expect_run_refused({"--k", "F/folder"}, "--k F/folder: expected a regular file");
  expect_run_refused({"--k", "/dev/zero"}, "--k /dev/zero: expected a regular file");
  expect_run_refused({"--k", "F/text.npy"},
                     "--k F/text.npy: not an npy file: expected the magic \\x93NUMPY");
  expect_run_refused({"--k", "F/empty.npy"},
                     "--k F/empty.npy: not an npy file: expected the magic \\x93NUMPY");
  expect_run_refused({"--k", "F/truncated.npy"},
                     "--k F/truncated.npy: npy shape [1, 2, 7, 8] of f32: expected 448 bytes of "
                     "data, found 444");
  expect_run_refused({"--k", "F/huge.npy"},
                     "--k F/huge.npy: npy shape: sizes: expected a product that fits 63 bits of "
                     "bytes");
  expect_run_refused({"--k", "F/ints.npy"}, "--k F/ints.npy: dtype i32: expected floating point");
  expect_run_refused({"--mask", "F/twos.npy"},
                     "--mask F/twos.npy: element 0 is 2: expected 0 or 1");
  expect_run_refused({"--k", "F/odd\nname.npy"},
                     "--k F/odd name.npy: not an npy file: expected the magic \\x93NUMPY");
  expect_run_refused({"--k", "F/one.safetensors"},
                     "--k F/one.safetensors: expected FILE.safetensors:NAME, the tensor's name "
                     "after a colon");
  expect_run_refused({"--k", "F/one.safetensors:y"},
                     "--k F/one.safetensors:y: no tensor 'y': expected one of x");
  expect_run_refused({"--k", "F/long.safetensors:y"},
                     "--k F/long.safetensors: safetensors header length 1152921504606846976: "
                     "expected at most the 2 bytes that follow it");
  expect_refused({"run", "--q", "F/q.npy", "--k", "F/k.npy", "--out", "F/o.npy"},
                 "--v: absent, expected FILE.npy or FILE.safetensors:NAME");
}

TEST_F(BadInput, Outputs) {
  expect_run_refused({"--out", "F/none/o.npy"},
                     "--out F/none/o.npy: cannot write: No such file or directory");
  expect_run_refused({"--out", "F/folder"}, "--out F/folder: expected a regular file");
  expect_run_refused({"--out", "/dev/full"}, "--out /dev/full: expected a regular file");
  expect_run_refused({"--out", "F/o.npy", "--lse", "F/./o.npy"},
                     "--lse F/./o.npy: expected a file of its own for each output");
  expect_run_refused({"--lse", "F/none/lse.npy"},
                     "--lse F/none/lse.npy: cannot write: No such file or directory");
  expect_refused({"run", "--q", "F/q.npy", "--k", "F/k.npy", "--v", "F/v.npy"},
                 "--out: absent, expected a file for a result");
  expect_run_refused({"--dq", "F/dq.npy"}, "--dq F/dq.npy: expected --dout to go with it");
  expect_run_refused({"--dlse", "F/q.npy"}, "--dlse F/q.npy: expected --dout to go with it");
  expect_run_refused({"--dout", "F/q.npy"},
                     "--dout F/q.npy: expected --dq, --dk, --dv, --dbias or --dsink to go with it");
  expect_run_refused({"--dout", "F/q.npy", "--dbias", "F/db.npy"},
                     "--dbias F/db.npy: expected --bias to go with it");
  expect_run_refused({"--dout", "F/q.npy", "--dsink", "F/ds.npy"},
                     "--dsink F/ds.npy: expected --sink to go with it");
}

TEST_F(BadInput, UnwritableFolder) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may write anywhere";
  std::filesystem::permissions(
      folder_ / "folder", std::filesystem::perms::owner_read | std::filesystem::perms::owner_exec);
  expect_run_refused({"--out", "F/folder/o.npy"},
                     "--out F/folder/o.npy: cannot write: Permission denied");
}

// As on a full disk: the second output cannot be completed, so the first does not appear either.
TEST_F(BadInput, OutputsThatCannotBeCompleted) {
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &limit), 0);
  const rlimit small{512, limit.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const Outcome outcome = run_tessera({"run", "--q", folder_ / "q.npy", "--k", folder_ / "k.npy",
                                       "--v", folder_ / "v.npy", "--lse", folder_ / "lse.npy",
                                       "--dout", folder_ / "q.npy", "--dq", folder_ / "dq.npy"});
  std::signal(SIGXFSZ, handler);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_TRUE(outcome.one_error_line()) << outcome.err;
  EXPECT_EQ(outcome.err,
            "tessera: --dq " + (folder_ / "dq.npy") + ": cannot write: File too large\n");
  EXPECT_EQ(folder_.names().size(), files_);
}

TEST_F(BadInput, OtherCommands) {
  expect_refused({"check", "--heads", "4", "--heads-kv", "3", "--dtype", "f32"},
                 "q: heads 4, expected a multiple of k's 3");
  expect_refused({"check", "--dtype", "f64"},
                 "--dtype: f64, expected f32, f16 or bf16: f64 is the reference");
  expect_refused({"check", "--q", "F/q.npy", "--seq", "5"},
                 "--q F/q.npy: expected either files or a shape");
  expect_refused({"check", "--bias", "F/one.npy"},
                 "--q: absent, expected FILE.npy or FILE.safetensors:NAME");
  expect_refused({"check", "--impl", "cpu_fast"},
                 "--impl: cpu_fast, expected one of " + cpu_rows());
  expect_refused({"check", "--with", "noise"},
                 "--with: noise, expected "
                 "bias|mask|alibi|sink|q-lens|kv-lens|varlen|block-mask|dlse");
  expect_refused({"check", "--density", "0.5"},
                 "--density: 0.5, expected --with block-mask to go with it");
  expect_refused({"check", "--with", "block-mask", "--density", "0"},
                 "--density: 0, expected a number in (0, 1]");
  expect_refused({"explain", "--head-dim", "513"}, "q: head dim: 513, expected 1 to 512");
  expect_refused({"explain", "--head-dim", "0"}, "q: head dim: 0, expected 1 to 512");
  expect_refused({"explain", "--heads", "0"}, "q: heads: 0, expected 1 to 2147483647");
  expect_refused({"explain", "--seq", "2147483648"},
                 "--seq: 2147483648, expected an integer of 0 to 2147483647");
  const Outcome outcome = run_tessera({"explain", "-B", "2147483647", "--heads", "2147483647",
                                       "--seq", "2147483647", "--with", "varlen,mask,block-mask"});
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_TRUE(outcome.one_error_line()) << outcome.err;
}

TEST_F(BadInput, Devices) {
  for (const std::string device : {"tpu", "CPU", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "cuda:+0",
                                   "cuda:0x", "cuda0", "cuda:1000", "cuda:99999999999999999999"}) {
    const Outcome outcome =
        run_tessera({"run", "--device", device, "--q", folder_ / "q.npy", "--k", folder_ / "k.npy",
                     "--v", folder_ / "v.npy", "--out", folder_ / "o.npy"});
    EXPECT_EQ(outcome.exit_code, 2) << device;
    EXPECT_TRUE(outcome.one_error_line()) << outcome.err;
    EXPECT_EQ(outcome.err.find("tessera: --device: " + device + ", expected cpu or cuda[:N]"), 0u)
        << outcome.err;
    EXPECT_EQ(folder_.names().size(), files_);
  }
}

}  // namespace
}  // namespace tessera::cli::test
