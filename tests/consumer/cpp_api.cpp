// Uses everything of the C++ API that must be exported: classes to derive from, builders, plans.
#include <cstdio>
#include <cstdlib>
#include <tessera/attention.hpp>
#include <vector>

namespace {

class SerialExecutor final : public tessera::Executor {
 public:
  int concurrency() const override { return 2; }
  void parallel(int count, void (*task)(void* context, int index), void* context) override {
    for (int i = 0; i < count; ++i) task(context, i);
    calls_ += 1;
  }
  int calls() const { return calls_; }

 private:
  int calls_ = 0;
};

void require(const tessera::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.message().c_str());
  std::exit(1);
}

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "not true: %s\n", what);
  std::exit(1);
}

}  // namespace

int main() {
  constexpr std::size_t kSize = 4 * 64 * 16;  // four heads: work for both tasks
  std::vector<float> values(kSize, 0.5f), o(kSize), lse(4 * 64), gradients(3 * kSize);
  const auto view = [](std::vector<float>& data, std::size_t at = 0) {
    return tessera::TensorView::contiguous(data.data() + at, tessera::DType::f32, {1, 4, 64, 16});
  };
  const auto mask = tessera::BlockMask::causal({64, 64, 16, 16});
  require(mask.status());
  const tessera::BlockMaskView mask_view = mask->view();
  require(tessera::validate(mask_view));
  require(mask_view.density() > 0.5 && mask_view.density() < 1, "causal density");

  tessera::Inputs inputs;
  inputs.q = inputs.k = inputs.v = view(values);
  inputs.block_mask = &mask_view;
  tessera::Outputs outputs;
  outputs.o = view(o);
  outputs.lse = tessera::TensorView::contiguous(lse.data(), tessera::DType::f32, {1, 4, 64});
  SerialExecutor executor;
  tessera::PlanOptions options;
  options.backward = true;
  options.executor = &executor;
  const tessera::Attention attention;
  const auto plan = tessera::Plan::create(attention, inputs, options);
  require(plan.status());
  require(!plan->forward_implementation().empty() && !plan->explain().empty(), "plan has names");
  require(tessera::attention_forward(attention, inputs, outputs, options));
  require(executor.calls() > 0, "the executor was used");
  require(o.front() == 0.5f && o.back() == 0.5f, "the mean of equal values is that value");

  tessera::OutputGradients d_outputs;
  d_outputs.d_o = view(values);
  tessera::InputGradients d_inputs;
  d_inputs.d_q = view(gradients);
  d_inputs.d_k = view(gradients, kSize);
  d_inputs.d_v = view(gradients, 2 * kSize);
  options.executor = nullptr;
  require(tessera::attention_backward(attention, inputs, outputs, d_outputs, d_inputs, options));

  const std::unique_ptr<tessera::Executor> pool = tessera::make_thread_pool(2);
  require(pool->concurrency() == 2, "two threads");
  require(tessera::default_executor().concurrency() >= 1, "a default executor");
  require(!tessera::implementations().empty(), "a table");
  require(!tessera::describe_devices().empty(), "a device");
  require(tessera::size_of(tessera::DType::f16) == 2, "f16 has two bytes");
  std::printf("Tessera %s: %s\n", tessera::version(), name_of(tessera::DType::f32));
  return 0;
}
