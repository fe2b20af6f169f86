// Tensors of more than 2³¹ elements, and heads further apart than that.
#include <cstring>

#include "cuda/gpu_call.hpp"

namespace tessera::test {
namespace {

using Large = Gpu;

constexpr Device kGpu{DeviceType::cuda, 0};
constexpr std::int64_t kMany = (std::int64_t{1} << 31) + 64;

/// The memory of one tensor, about 4 GiB of bf16.
class LargeTensor {
 public:
  explicit LargeTensor(std::int64_t elements)
      : bytes_(static_cast<std::size_t>(elements) * size_of(DType::bf16)),
        memory_(value_of(device::Buffer::allocate(bytes_, kGpu))) {
    require(device::fill({memory_.data(), kGpu}, 0xff, bytes_));
  }

  std::byte* at(std::int64_t element) const {
    return static_cast<std::byte*>(memory_.data()) + element * size_of(DType::bf16);
  }

  /// Fills the memory with repetitions of the contiguous `tensor`.
  void repeat(const Tensor& tensor) {
    auto filled = static_cast<std::size_t>(tensor.count()) * size_of(DType::bf16);
    put(tensor, 0, 0, tensor.count());
    while (filled < bytes_) {
      const std::size_t more = std::min(filled, bytes_ - filled);
      require(device::copy({at(0) + filled, kGpu}, {at(0), kGpu}, more));
      filled += more;
    }
  }

  void put(const Tensor& from, std::int64_t first, std::int64_t element, std::int64_t count) {
    require(device::copy({at(element), kGpu},
                         {static_cast<std::byte*>(from.view().data) + first * 2, {}}, count * 2));
  }

  std::vector<std::byte> get(std::int64_t element, std::int64_t count) const {
    std::vector<std::byte> bytes(count * 2);
    require(device::copy({bytes.data(), {}}, {at(element), kGpu}, bytes.size()));
    return bytes;
  }

 private:
  std::size_t bytes_;
  device::Buffer memory_;
};

Case one_sequence() {
  Case c;
  c.dtype = DType::bf16;
  c.batch = 1;
  c.heads_q = c.heads_kv = 2;
  c.seq_q = c.seq_kv = 256;
  c.head_dim = c.head_dim_v = 64;
  c.attention.causal = true;
  c.attention.deterministic = true;
  return c;
}

/// q, k, v, d_o, o, d_q, d_k and d_v, and the LSE, all large.
struct LargeTensors {
  std::vector<LargeTensor> tensors;
  device::Buffer lse;
  device::Stream stream = value_of(device::Stream::create(kGpu));

  LargeTensors(std::int64_t elements, std::int64_t rows)
      : lse(value_of(device::Buffer::allocate(rows * sizeof(float), kGpu))) {
    for (int x = 0; x < 8; ++x) tensors.emplace_back(elements);
  }

  static bool fit() {
    const std::size_t needed = 9 * 2 * static_cast<std::size_t>(kMany) + (std::size_t{4} << 30);
    const Result<device::Properties> properties = device::properties(kGpu);
    const Result<std::size_t> used = device::memory_in_use(kGpu);
    return properties.ok() && used.ok() && properties.value().memory_bytes > used.value() + needed;
  }

  /// Runs both passes on tensors that look like `like`.
  Status run(const Case& c, const TensorView& like, const std::string& row) const {
    const auto view = [&](int x) {
      TensorView v = like;
      v.data = tensors[x].at(0);
      return v;
    };
    Inputs inputs;
    inputs.q = view(0);
    inputs.k = view(1);
    inputs.v = view(2);
    const Outputs outputs{view(4),
                          TensorView::contiguous(lse.data(), DType::f32,
                                                 {like.size[0], like.size[1], like.size[2]}, kGpu)};
    PlanOptions options;
    options.implementation = row;
    options.backward = true;
    const Result<Plan> plan = Plan::create(c.attention, inputs, options);
    if (!plan.ok()) return plan.status();
    const device::Buffer workspace = workspace_of(
        std::max(plan->forward_workspace_bytes(), plan->backward_workspace_bytes()), kGpu);
    const tessera::Run how{workspace.data(), workspace.bytes(), stream.handle(), nullptr};
    Status status = plan->forward(inputs, outputs, how);
    if (status.ok()) {
      status =
          plan->backward(inputs, outputs, {view(3), {}}, {view(5), view(6), view(7), {}, {}}, how);
    }
    return status.ok() ? stream.synchronize() : status;
  }
};

struct Compared {
  int tensor;
  Tensor Results::*result;
  double Tolerances::*tolerance;
};
constexpr Compared kCompared[] = {{4, &Results::o, &Tolerances::o},
                                  {5, &Results::d_q, &Tolerances::d_q},
                                  {6, &Results::d_k, &Tolerances::d_k},
                                  {7, &Results::d_v, &Tolerances::d_v}};

/// The same sequence over and over, so that the last one must get the first one's bits.
TEST_F(Large, MoreThan32BitsOfElements) {
  if (!LargeTensors::fit()) GTEST_SKIP() << "too little device memory";
  const Case c = one_sequence();
  const Workload w = make_workload(c);
  const std::int64_t sequence = w.q.count();
  const std::int64_t batch = kMany / sequence + 17;  // also more than a grid's 65535 rows
  const Results oracle = oracle_results(c, w);
  const Tolerances t = tolerances(c, w);
  LargeTensors large(batch * sequence, batch * 2 * 256);
  const Tensor* inputs[] = {&w.q, &w.k, &w.v, &w.d_o};
  for (int x = 0; x < 4; ++x) large.tensors[x].repeat(*inputs[x]);
  const TensorView like = TensorView::contiguous(nullptr, c.dtype, {batch, 2, 256, 64}, kGpu);
  for (const std::string& row : gpu_rows(c)) {
    const Status status = large.run(c, like, row);
    ASSERT_TRUE(status.ok()) << row << ": " << status.message();
    for (const Compared& r : kCompared) {
      const std::vector<std::byte> first = large.tensors[r.tensor].get(0, sequence);
      const Tensor got(c.dtype, {1, 2, 256, 64});
      std::memcpy(got.view().data, first.data(), first.size());
      EXPECT_LE(largest_difference(got, oracle.*r.result), t.*r.tolerance) << row << r.tensor;
      for (std::int64_t b : {batch / 2, batch - 18, batch - 17, batch - 1}) {
        EXPECT_EQ(large.tensors[r.tensor].get(b * sequence, sequence), first)
            << row << ", tensor " << r.tensor << ", sequence " << b;
      }
    }
  }
}

/// Two heads with more than 2³¹ elements between them get the bits of two heads side by side.
TEST_F(Large, HeadsFarApart) {
  if (!LargeTensors::fit()) GTEST_SKIP() << "too little device memory";
  const Case c = one_sequence();
  const Workload w = make_workload(c);
  const std::int64_t head = w.q.count() / 2;
  LargeTensors large(kMany + head, 2 * 256);
  const Tensor* inputs[] = {&w.q, &w.k, &w.v, &w.d_o};
  for (int x = 0; x < 4; ++x) {
    for (int h = 0; h < 2; ++h) large.tensors[x].put(*inputs[x], h * head, h * kMany, head);
  }
  TensorView like = TensorView::contiguous(nullptr, c.dtype, {1, 2, 256, 64}, kGpu);
  like.stride[1] = kMany;
  for (const std::string& row : gpu_rows(c)) {
    const Results near = make_results(c);
    ASSERT_TRUE(run_case(c, w, near, row).status.ok()) << row;
    const Status status = large.run(c, like, row);
    ASSERT_TRUE(status.ok()) << row << ": " << status.message();
    for (const Compared& r : kCompared) {
      for (int h = 0; h < 2; ++h) {
        const std::vector<std::byte> got = large.tensors[r.tensor].get(h * kMany, head);
        const auto* expected =
            static_cast<const std::byte*>((near.*r.result).view().data) + h * head * 2;
        EXPECT_EQ(std::memcmp(got.data(), expected, got.size()), 0)
            << row << ", tensor " << r.tensor << ", head " << h;
      }
    }
  }
}

}  // namespace
}  // namespace tessera::test
