// Strides: BSHD, padded rows, packed QKV with packed gradients, keys shared by all heads (stride
// 0), a sequence that runs backwards.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include "support/conformance.hpp"

namespace tessera::test {
namespace {

constexpr DType kDtypes[] = {DType::f32, DType::f16, DType::bf16};

TEST(Layouts, OfEveryDtypeAndKind) {
  int step = 0;
  for (LayoutKind layout : {LayoutKind::bshd, LayoutKind::padded, LayoutKind::reversed,
                            LayoutKind::packed_qkv, LayoutKind::broadcast_kv}) {
    for (DType dtype : kDtypes) {
      for (std::int64_t head_dim : {64, 59}) {
        Case c;
        c.dtype = dtype;
        c.layout = layout;
        c.seq_q = 70;
        c.seq_kv = layout == LayoutKind::packed_qkv ? 70 : 133;
        c.heads_q = 4;
        c.heads_kv = step % 2 == 0 ? 2 : 4;
        c.head_dim = c.head_dim_v = head_dim;
        c.attention.causal = step % 3 == 0;
        if (step % 4 == 1) c.bias = Extents{};
        if (step++ % 4 == 2) c.mask = Extents{false, true, true};
        check_case(c);
      }
    }
  }
}

TEST(Layouts, OfPackedSequences) {
  int step = 0;
  for (LayoutKind layout : {LayoutKind::bshd, LayoutKind::padded, LayoutKind::reversed}) {
    Case c;
    c.dtype = kDtypes[step++ % 3];
    c.layout = layout;
    c.heads_q = 4;
    c.cu_seqlens_q = {0, 33, 33, 90};
    c.cu_seqlens_k = {0, 50, 70, 171};
    c.batch = 3;
    c.seq_q = 93;
    c.seq_kv = 171;
    c.attention.causal = true;
    check_case(c);
  }
}

TEST(Layouts, WithLengthsAndBlocks) {
  for (LayoutKind layout : {LayoutKind::bshd, LayoutKind::padded}) {
    Case c;
    c.layout = layout;
    c.seq_q = 90;
    c.seq_kv = 150;
    c.kv_lens = {150, 77};
    c.q_lens = {31, 90};
    c.blocks = BlockPattern{32, 48, false, true, 0.6, 0.4};
    check_case(c);
  }
}

TEST(Layouts, ResultsThatAreNotAskedForChangeNothing) {
  Case c;
  c.seq_q = 45;
  c.seq_kv = 77;
  c.bias = Extents{};
  c.sink = true;
  c.d_lse = true;
  c.attention.deterministic = true;
  const Workload w = make_workload(c);
  for (const std::string& row : rows_under_test(c)) {
    const Results all = make_results(c);
    ASSERT_TRUE(run_case(c, w, all, row).status.ok());

    Case forward_only = c;
    forward_only.backward = false;
    Results no_lse = make_results(forward_only);
    no_lse.lse = {};
    ASSERT_TRUE(run_case(forward_only, w, no_lse, row).status.ok());
    EXPECT_TRUE(no_lse.o.same_bits(all.o)) << row;

    constexpr Tensor Results::*kGradients[] = {&Results::d_q, &Results::d_k, &Results::d_v,
                                               &Results::d_bias, &Results::d_sink};
    for (int wanted = 0; wanted < 32; ++wanted) {
      Results some = make_results(c);
      for (int g = 0; g < 5; ++g) {
        if ((wanted >> g & 1) == 0) some.*kGradients[g] = {};
      }
      const Attempt attempt = run_case(c, w, some, row);
      ASSERT_TRUE(attempt.status.ok()) << row << " " << wanted << ": " << attempt.status.message();
      for (int g = 0; g < 5; ++g) {
        if ((wanted >> g & 1) == 0) continue;
        EXPECT_TRUE((some.*kGradients[g]).same_bits(all.*kGradients[g]))
            << row << ", gradient " << g << " of set " << wanted;
      }
    }
  }
}

/// Address space for tensors whose heads lie more than 2³² bytes and 2³¹ elements apart; only the
/// pages that are touched take memory.
class Reservation {
 public:
  explicit Reservation(std::size_t bytes)
      : bytes_(bytes),
        memory_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {}
  ~Reservation() {
    if (ok()) munmap(memory_, bytes_);
  }
  Reservation(const Reservation&) = delete;
  Reservation& operator=(const Reservation&) = delete;
  bool ok() const { return memory_ != MAP_FAILED; }
  float* data() const { return static_cast<float*>(memory_); }

 private:
  std::size_t bytes_;
  void* memory_;
};

TEST(Layouts, OffsetsBeyond32Bits) {
  Case c;
  c.batch = 1;
  c.seq_q = 40;
  c.seq_kv = 50;
  c.head_dim = c.head_dim_v = 32;
  const Workload w = make_workload(c);
  constexpr std::int64_t kApart = (std::int64_t{1} << 31) + 64;  // elements from head to head
  constexpr std::int64_t kSlot = 1 << 16;
  const Reservation memory(static_cast<std::size_t>(kApart + 16 * kSlot) * sizeof(float));
  if (!memory.ok()) GTEST_SKIP() << "no address space for it";
  int slot = 0;
  const auto far_apart = [&](const Tensor& like) {
    TensorView view = like.view();
    view.data = memory.data() + kSlot * slot++;
    view.stride[1] = kApart;
    for (std::int64_t x = 0; x < like.count(); ++x) {
      static_cast<float*>(view.data)[x / (like.count() / 2) * kApart + x % (like.count() / 2)] =
          static_cast<float*>(like.view().data)[x];
    }
    return view;
  };
  const auto expect_equal = [](const TensorView& view, const Tensor& expected, const char* name) {
    const std::int64_t head = expected.count() / 2;
    for (std::int64_t x = 0; x < expected.count(); ++x) {
      ASSERT_EQ(static_cast<const float*>(view.data)[x / head * kApart + x % head],
                static_cast<float>(expected.get(x)))
          << name << " " << x;
    }
  };
  for (const std::string& row : host_rows_under_test(c)) {
    const Results near = make_results(c);
    ASSERT_TRUE(run_case(c, w, near, row).status.ok());
    slot = 0;
    Inputs inputs;
    inputs.q = far_apart(w.q);
    inputs.k = far_apart(w.k);
    inputs.v = far_apart(w.v);
    const Results unused = make_results(c);
    const Outputs outputs{far_apart(unused.o), far_apart(unused.lse)};
    const InputGradients gradients{
        far_apart(unused.d_q), far_apart(unused.d_k), far_apart(unused.d_v), {}, {}};
    PlanOptions options;
    options.implementation = row;
    ASSERT_TRUE(attention_forward({}, inputs, outputs, options).ok());
    ASSERT_TRUE(
        attention_backward({}, inputs, outputs, {far_apart(w.d_o), {}}, gradients, options).ok());
    expect_equal(outputs.o, near.o, "o");
    expect_equal(outputs.lse, near.lse, "lse");
    expect_equal(gradients.d_q, near.d_q, "d_q");
    expect_equal(gradients.d_k, near.d_k, "d_k");
    expect_equal(gradients.d_v, near.d_v, "d_v");
  }
}

/// Strides must not change a bit of what is computed.
TEST(Layouts, StridesChangeNoBits) {
  Case contiguous;
  contiguous.seq_q = 40;
  contiguous.seq_kv = 61;
  contiguous.attention.deterministic = true;
  Case padded = contiguous;
  padded.layout = LayoutKind::padded;
  const Workload w = make_workload(contiguous);
  const Workload same_values = [&] {
    Workload other = make_workload(padded);
    for (const auto& [from, to] : {std::pair{&w.q, &other.q}, std::pair{&w.k, &other.k},
                                   std::pair{&w.v, &other.v}, std::pair{&w.d_o, &other.d_o}}) {
      for (std::int64_t x = 0; x < from->count(); ++x) to->set(x, from->get(x));
    }
    return other;
  }();
  for (const std::string& row : rows_under_test(padded)) {
    const Results plain = make_results(contiguous);
    const Results strided = make_results(padded);
    ASSERT_TRUE(run_case(contiguous, w, plain, row).status.ok());
    ASSERT_TRUE(run_case(padded, same_values, strided, row).status.ok());
    EXPECT_TRUE(plain.o.same_bits(strided.o)) << row;
    EXPECT_TRUE(plain.d_q.same_bits(strided.d_q)) << row;
    EXPECT_TRUE(plain.d_k.same_bits(strided.d_k)) << row;
    EXPECT_TRUE(plain.d_v.same_bits(strided.d_v)) << row;
  }
}

}  // namespace
}  // namespace tessera::test
