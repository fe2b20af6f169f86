// The C interface: statuses, tensors, executors, plans and runs.
#include <utility>
#include <vector>

#include "api/c_support.hpp"

using tessera::Alignment;
using tessera::Attention;
using tessera::DeviceType;
using tessera::DType;
using tessera::Executor;
using tessera::formatted;
using tessera::Implementation;
using tessera::Inputs;
using tessera::Plan;
using tessera::PlanOptions;
using tessera::Precision;
using tessera::Result;
using tessera::Run;
using tessera::Status;
using tessera::StatusCode;
using tessera::TensorView;
using namespace tessera::c;

struct tessera_plan {
  Plan plan;
  std::string forward_implementation;
  std::string backward_implementation;
  std::string explanation;
};

namespace {

// A fixed buffer: reporting that memory ran out must not need memory.
thread_local char last_error[1024] = "";

static_assert(TESSERA_INTERNAL == static_cast<int>(StatusCode::internal));
static_assert(TESSERA_DEVICE_ERROR == static_cast<int>(StatusCode::device_error));
static_assert(TESSERA_OUT_OF_MEMORY == static_cast<int>(StatusCode::out_of_memory));
static_assert(TESSERA_UNSUPPORTED == static_cast<int>(StatusCode::unsupported));
static_assert(TESSERA_INVALID_ARGUMENT == static_cast<int>(StatusCode::invalid_argument));
static_assert(TESSERA_OK == static_cast<int>(StatusCode::ok));
static_assert(TESSERA_BOOL == static_cast<int>(DType::boolean));
static_assert(TESSERA_I32 == static_cast<int>(DType::i32));
static_assert(TESSERA_F64 == static_cast<int>(DType::f64));
static_assert(TESSERA_BF16 == static_cast<int>(DType::bf16));
static_assert(TESSERA_F16 == static_cast<int>(DType::f16));
static_assert(TESSERA_F32 == static_cast<int>(DType::f32));
static_assert(TESSERA_CUDA == static_cast<int>(DeviceType::cuda));
static_assert(TESSERA_TOP_LEFT == static_cast<int>(Alignment::top_left));
static_assert(TESSERA_ADAPTIVE == static_cast<int>(Precision::adaptive));
static_assert(TESSERA_MAX_RANK == tessera::kMaxRank);

/// An executor made of a C caller's functions.
class CallbackExecutor final : public Executor {
 public:
  explicit CallbackExecutor(const tessera_executor_callbacks& callbacks) : callbacks_(callbacks) {}
  ~CallbackExecutor() override {
    if (callbacks_.destroy == nullptr) return;
    // A callback written in C++ may throw; there is nobody left to tell.
    try {
      callbacks_.destroy(callbacks_.context);
    } catch (...) {
    }
  }
  CallbackExecutor(const CallbackExecutor&) = delete;
  CallbackExecutor& operator=(const CallbackExecutor&) = delete;

  int concurrency() const override {
    return std::max(1, callbacks_.concurrency(callbacks_.context));
  }
  void parallel(int count, void (*task)(void* context, int index), void* context) override {
    callbacks_.parallel(callbacks_.context, count, task, context);
  }

 private:
  tessera_executor_callbacks callbacks_;
};

/// Null means absent.
Status read_tensor(const tessera_tensor* from, const char* name, TensorView& to) {
  if (from == nullptr) return {};
  tessera_tensor tensor{};
  TESSERA_C_RETURN_IF_ERROR(read_struct(from, name, "tessera_tensor", tensor));
  if (tensor.rank < 1 || tensor.rank > TESSERA_MAX_RANK) {
    return invalid(formatted("{}: rank {}, expected 1 to {}", name, tensor.rank, TESSERA_MAX_RANK));
  }
  TESSERA_C_RETURN_IF_ERROR(read_enum(tensor.dtype, DType::boolean,
                                      formatted("{}.dtype", name).c_str(), "tessera_dtype",
                                      to.dtype));
  TESSERA_C_RETURN_IF_ERROR(read_enum(tensor.device_type, DeviceType::cuda,
                                      formatted("{}.device_type", name).c_str(),
                                      "tessera_device_type", to.device.type));
  to.data = tensor.data;
  to.rank = tensor.rank;
  for (int d = 0; d < tensor.rank; ++d) {
    to.size[d] = tensor.size[d];
    to.stride[d] = tensor.stride[d];
  }
  to.device.index = tensor.device_index;
  return {};
}

Status read_required(const tessera_tensor* from, const char* name, TensorView& to) {
  TESSERA_C_RETURN_IF_ERROR(require(from, name, "a tessera_tensor"));
  return read_tensor(from, name, to);
}

Status read_attention(const tessera_attention* from, Attention& to) {
  tessera_attention attention{};
  TESSERA_C_RETURN_IF_ERROR(read_struct(from, "attention", "tessera_attention", attention));
  if (attention.has_scale != 0) {
    to.scale = attention.scale;
  } else if (attention.scale != 0) {
    return invalid(
        formatted("scale: {} with has_scale 0, expected has_scale 1 or scale 0", attention.scale));
  }
  if (attention.has_window != 0) {
    to.window = {attention.window_left, attention.window_right};
  } else if (attention.window_left != 0 || attention.window_right != 0) {
    return invalid(formatted("window: {},{} with has_window 0, expected has_window 1 or 0,0",
                             attention.window_left, attention.window_right));
  }
  TESSERA_C_RETURN_IF_ERROR(read_enum(attention.alignment, Alignment::top_left, "alignment",
                                      "tessera_alignment", to.alignment));
  TESSERA_C_RETURN_IF_ERROR(read_enum(attention.precision, Precision::adaptive, "precision",
                                      "tessera_precision", to.precision));
  to.causal = attention.causal != 0;
  to.softcap = attention.softcap;
  to.dropout_p = attention.dropout_p;
  to.deterministic = attention.deterministic != 0;
  TESSERA_C_RETURN_IF_ERROR(read_quantization(attention.quantization, to.quantization));
  if (attention.adaptive_plan != nullptr) to.adaptive_plan = &attention.adaptive_plan->plan;
  to.layer = attention.layer;
  to.step = attention.step;
  return {};
}

/// Inputs with the block mask view that they point to.
struct InputsStorage {
  Inputs inputs;
  tessera::BlockMaskView block_mask;
};

Status read_inputs(const tessera_inputs* from, InputsStorage& to) {
  tessera_inputs inputs{};
  TESSERA_C_RETURN_IF_ERROR(read_struct(from, "inputs", "tessera_inputs", inputs));
  TESSERA_C_RETURN_IF_ERROR(read_required(inputs.q, "q", to.inputs.q));
  TESSERA_C_RETURN_IF_ERROR(read_required(inputs.k, "k", to.inputs.k));
  TESSERA_C_RETURN_IF_ERROR(read_required(inputs.v, "v", to.inputs.v));
  TESSERA_C_RETURN_IF_ERROR(read_tensor(inputs.bias, "bias", to.inputs.bias));
  TESSERA_C_RETURN_IF_ERROR(read_tensor(inputs.mask, "mask", to.inputs.mask));
  TESSERA_C_RETURN_IF_ERROR(
      read_tensor(inputs.alibi_slopes, "alibi_slopes", to.inputs.alibi_slopes));
  TESSERA_C_RETURN_IF_ERROR(read_tensor(inputs.sink, "sink", to.inputs.sink));
  TESSERA_C_RETURN_IF_ERROR(read_tensor(inputs.q_lens, "q_lens", to.inputs.q_lens));
  TESSERA_C_RETURN_IF_ERROR(read_tensor(inputs.kv_lens, "kv_lens", to.inputs.kv_lens));
  TESSERA_C_RETURN_IF_ERROR(
      read_tensor(inputs.cu_seqlens_q, "cu_seqlens_q", to.inputs.cu_seqlens_q));
  TESSERA_C_RETURN_IF_ERROR(
      read_tensor(inputs.cu_seqlens_k, "cu_seqlens_k", to.inputs.cu_seqlens_k));
  if (inputs.block_mask != nullptr) {
    TESSERA_C_RETURN_IF_ERROR(read_view(inputs.block_mask, "block_mask", to.block_mask));
    to.inputs.block_mask = &to.block_mask;
  }
  to.inputs.seed = inputs.seed;
  to.inputs.offset = inputs.offset;
  return {};
}

Status read_outputs(const tessera_outputs* from, tessera::Outputs& to) {
  tessera_outputs outputs{};
  TESSERA_C_RETURN_IF_ERROR(read_struct(from, "outputs", "tessera_outputs", outputs));
  TESSERA_C_RETURN_IF_ERROR(read_required(outputs.o, "o", to.o));
  return read_tensor(outputs.lse, "lse", to.lse);
}

Status read_output_gradients(const tessera_output_gradients* from, tessera::OutputGradients& to) {
  tessera_output_gradients gradients{};
  TESSERA_C_RETURN_IF_ERROR(read_struct(from, "d_outputs", "tessera_output_gradients", gradients));
  TESSERA_C_RETURN_IF_ERROR(read_required(gradients.d_o, "d_o", to.d_o));
  return read_tensor(gradients.d_lse, "d_lse", to.d_lse);
}

Status read_input_gradients(const tessera_input_gradients* from, tessera::InputGradients& to) {
  tessera_input_gradients gradients{};
  TESSERA_C_RETURN_IF_ERROR(read_struct(from, "d_inputs", "tessera_input_gradients", gradients));
  TESSERA_C_RETURN_IF_ERROR(read_tensor(gradients.d_q, "d_q", to.d_q));
  TESSERA_C_RETURN_IF_ERROR(read_tensor(gradients.d_k, "d_k", to.d_k));
  TESSERA_C_RETURN_IF_ERROR(read_tensor(gradients.d_v, "d_v", to.d_v));
  TESSERA_C_RETURN_IF_ERROR(read_tensor(gradients.d_bias, "d_bias", to.d_bias));
  return read_tensor(gradients.d_sink, "d_sink", to.d_sink);
}

/// Null means defaults.
Status read_options(const tessera_plan_options* from, PlanOptions& to) {
  if (from == nullptr) return {};
  tessera_plan_options options{};
  TESSERA_C_RETURN_IF_ERROR(read_struct(from, "options", "tessera_plan_options", options));
  constexpr std::uint32_t kPasses = TESSERA_FORWARD | TESSERA_BACKWARD;
  if ((options.passes & ~kPasses) != 0) {
    return invalid(
        formatted("passes: {}, expected bits of tessera_pass, 0 to {}", options.passes, kPasses));
  }
  to.forward = options.passes == 0 || (options.passes & TESSERA_FORWARD) != 0;
  to.backward = (options.passes & TESSERA_BACKWARD) != 0;
  to.bias_gradient = options.bias_gradient != 0;
  to.sink_gradient = options.sink_gradient != 0;
  to.threads = options.threads;
  if (options.implementation != nullptr) to.implementation = options.implementation;
  if (options.executor != nullptr) to.executor = options.executor->executor;
  return {};
}

/// Null means no workspace and the default executor.
Status read_run(const tessera_run* from, Run& to) {
  if (from == nullptr) return {};
  tessera_run run{};
  TESSERA_C_RETURN_IF_ERROR(read_struct(from, "run", "tessera_run", run));
  to.workspace = run.workspace;
  to.workspace_bytes = run.workspace_bytes;
  to.stream = run.stream;
  if (run.executor != nullptr) to.executor = run.executor->executor;
  return {};
}

const std::vector<Implementation>& implementation_table() {
  static const std::vector<Implementation> kTable = tessera::implementations();
  return kTable;
}

const std::vector<std::string>& device_lines() {
  static const std::vector<std::string> kLines = tessera::describe_devices();
  return kLines;
}

Status check_index(std::size_t index, std::size_t count) {
  if (index < count) return {};
  return invalid(formatted("index: {}, expected less than {}", index, count));
}

}  // namespace

namespace tessera::c {

tessera_status report(StatusCode code, std::string_view message) noexcept {
  std::size_t length = std::min(message.size(), sizeof(last_error) - 1);
  // Cut between characters, not inside a UTF-8 sequence.
  while (length < message.size() && length > 0 && (message[length] & 0xc0) == 0x80) --length;
  std::memcpy(last_error, message.data(), length);
  last_error[length] = '\0';
  std::replace(last_error, last_error + length, '\n', ' ');
  return static_cast<tessera_status>(code);
}

}  // namespace tessera::c

const char* tessera_last_error(void) { return last_error; }

const char* tessera_version(void) { return tessera::version(); }

tessera_status tessera_dtype_name(int32_t dtype, const char** name) {
  return guarded([&]() -> Status {
    TESSERA_C_RETURN_IF_ERROR(require(name, "name", "a place for the name"));
    DType value = DType::f32;
    TESSERA_C_RETURN_IF_ERROR(read_enum(dtype, DType::boolean, "dtype", "tessera_dtype", value));
    *name = tessera::name_of(value);
    return {};
  });
}

tessera_status tessera_dtype_size(int32_t dtype, size_t* bytes) {
  return guarded([&]() -> Status {
    TESSERA_C_RETURN_IF_ERROR(require(bytes, "bytes", "a place for the size"));
    DType value = DType::f32;
    TESSERA_C_RETURN_IF_ERROR(read_enum(dtype, DType::boolean, "dtype", "tessera_dtype", value));
    *bytes = static_cast<std::size_t>(tessera::size_of(value));
    return {};
  });
}

tessera_status tessera_executor_create(const tessera_executor_callbacks* callbacks,
                                       tessera_executor** executor) {
  return guarded([&]() -> Status {
    TESSERA_C_RETURN_IF_ERROR(require(executor, "executor", "a place for the tessera_executor"));
    tessera_executor_callbacks read{};
    TESSERA_C_RETURN_IF_ERROR(
        read_struct(callbacks, "callbacks", "tessera_executor_callbacks", read));
    if (read.concurrency == nullptr) return invalid("concurrency: null, expected a function");
    if (read.parallel == nullptr) return invalid("parallel: null, expected a function");
    auto handle = std::make_unique<tessera_executor>();
    handle->owned = std::make_unique<CallbackExecutor>(read);
    handle->executor = handle->owned.get();
    *executor = handle.release();
    return {};
  });
}

tessera_status tessera_executor_create_thread_pool(int threads, tessera_executor** executor) {
  return guarded([&]() -> Status {
    TESSERA_C_RETURN_IF_ERROR(require(executor, "executor", "a place for the tessera_executor"));
    if (threads < 0) {
      return invalid(formatted("threads: {}, expected 0 (one per CPU) or more", threads));
    }
    auto handle = std::make_unique<tessera_executor>();
    handle->owned = tessera::make_thread_pool(threads);
    handle->executor = handle->owned.get();
    *executor = handle.release();
    return {};
  });
}

tessera_status tessera_executor_default(tessera_executor** executor) {
  return guarded([&]() -> Status {
    TESSERA_C_RETURN_IF_ERROR(require(executor, "executor", "a place for the tessera_executor"));
    static tessera_executor handle{nullptr, &tessera::default_executor()};
    *executor = &handle;
    return {};
  });
}

tessera_status tessera_executor_concurrency(const tessera_executor* executor, int* concurrency) {
  return guarded([&]() -> Status {
    TESSERA_C_RETURN_IF_ERROR(require(executor, "executor", "a tessera_executor"));
    TESSERA_C_RETURN_IF_ERROR(require(concurrency, "concurrency", "a place for the number"));
    *concurrency = executor->executor->concurrency();
    return {};
  });
}

tessera_status tessera_executor_parallel(tessera_executor* executor, int count, tessera_task task,
                                         void* task_context) {
  return guarded([&]() -> Status {
    TESSERA_C_RETURN_IF_ERROR(require(executor, "executor", "a tessera_executor"));
    if (task == nullptr) return invalid("task: null, expected a function");
    if (count < 0) return invalid(formatted("count: {}, expected 0 or more", count));
    if (count > 0) executor->executor->parallel(count, task, task_context);
    return {};
  });
}

void tessera_executor_destroy(tessera_executor* executor) {
  if (executor != nullptr && executor->owned) delete executor;
}

tessera_status tessera_plan_create(const tessera_attention* attention, const tessera_inputs* inputs,
                                   const tessera_plan_options* options, tessera_plan** plan) {
  return guarded([&]() -> Status {
    TESSERA_C_RETURN_IF_ERROR(require(plan, "plan", "a place for the tessera_plan"));
    Attention what;
    InputsStorage in;
    PlanOptions choices;
    TESSERA_C_RETURN_IF_ERROR(read_attention(attention, what));
    TESSERA_C_RETURN_IF_ERROR(read_inputs(inputs, in));
    TESSERA_C_RETURN_IF_ERROR(read_options(options, choices));
    Result<Plan> made = Plan::create(what, in.inputs, choices);
    if (!made.ok()) return made.status();
    *plan = new tessera_plan{made.value(), made->forward_implementation(),
                             made->backward_implementation(), made->explain()};
    return {};
  });
}

tessera_status tessera_plan_workspace_bytes(const tessera_plan* plan, size_t* forward,
                                            size_t* backward) {
  return guarded([&]() -> Status {
    TESSERA_C_RETURN_IF_ERROR(require(plan, "plan", "a tessera_plan"));
    if (forward != nullptr) *forward = plan->plan.forward_workspace_bytes();
    if (backward != nullptr) *backward = plan->plan.backward_workspace_bytes();
    return {};
  });
}

tessera_status tessera_plan_implementation(const tessera_plan* plan, const char** forward,
                                           const char** backward) {
  return guarded([&]() -> Status {
    TESSERA_C_RETURN_IF_ERROR(require(plan, "plan", "a tessera_plan"));
    if (forward != nullptr) *forward = plan->forward_implementation.c_str();
    if (backward != nullptr) *backward = plan->backward_implementation.c_str();
    return {};
  });
}

tessera_status tessera_plan_explain(const tessera_plan* plan, const char** text) {
  return guarded([&]() -> Status {
    TESSERA_C_RETURN_IF_ERROR(require(plan, "plan", "a tessera_plan"));
    TESSERA_C_RETURN_IF_ERROR(require(text, "text", "a place for the string"));
    *text = plan->explanation.c_str();
    return {};
  });
}

tessera_status tessera_plan_forward(const tessera_plan* plan, const tessera_inputs* inputs,
                                    const tessera_outputs* outputs, const tessera_run* run) {
  return guarded([&]() -> Status {
    TESSERA_C_RETURN_IF_ERROR(require(plan, "plan", "a tessera_plan"));
    InputsStorage in;
    tessera::Outputs out;
    Run how;
    TESSERA_C_RETURN_IF_ERROR(read_inputs(inputs, in));
    TESSERA_C_RETURN_IF_ERROR(read_outputs(outputs, out));
    TESSERA_C_RETURN_IF_ERROR(read_run(run, how));
    return plan->plan.forward(in.inputs, out, how);
  });
}

tessera_status tessera_plan_backward(const tessera_plan* plan, const tessera_inputs* inputs,
                                     const tessera_outputs* outputs,
                                     const tessera_output_gradients* d_outputs,
                                     const tessera_input_gradients* d_inputs,
                                     const tessera_run* run) {
  return guarded([&]() -> Status {
    TESSERA_C_RETURN_IF_ERROR(require(plan, "plan", "a tessera_plan"));
    InputsStorage in;
    tessera::Outputs out;
    tessera::OutputGradients d_out;
    tessera::InputGradients d_in;
    Run how;
    TESSERA_C_RETURN_IF_ERROR(read_inputs(inputs, in));
    TESSERA_C_RETURN_IF_ERROR(read_outputs(outputs, out));
    TESSERA_C_RETURN_IF_ERROR(read_output_gradients(d_outputs, d_out));
    TESSERA_C_RETURN_IF_ERROR(read_input_gradients(d_inputs, d_in));
    TESSERA_C_RETURN_IF_ERROR(read_run(run, how));
    return plan->plan.backward(in.inputs, out, d_out, d_in, how);
  });
}

void tessera_plan_destroy(tessera_plan* plan) { delete plan; }

tessera_status tessera_attention_forward(const tessera_attention* attention,
                                         const tessera_inputs* inputs,
                                         const tessera_outputs* outputs,
                                         const tessera_plan_options* options) {
  return guarded([&]() -> Status {
    Attention what;
    InputsStorage in;
    tessera::Outputs out;
    PlanOptions choices;
    TESSERA_C_RETURN_IF_ERROR(read_attention(attention, what));
    TESSERA_C_RETURN_IF_ERROR(read_inputs(inputs, in));
    TESSERA_C_RETURN_IF_ERROR(read_outputs(outputs, out));
    TESSERA_C_RETURN_IF_ERROR(read_options(options, choices));
    return tessera::attention_forward(what, in.inputs, out, choices);
  });
}

tessera_status tessera_attention_backward(const tessera_attention* attention,
                                          const tessera_inputs* inputs,
                                          const tessera_outputs* outputs,
                                          const tessera_output_gradients* d_outputs,
                                          const tessera_input_gradients* d_inputs,
                                          const tessera_plan_options* options) {
  return guarded([&]() -> Status {
    Attention what;
    InputsStorage in;
    tessera::Outputs out;
    tessera::OutputGradients d_out;
    tessera::InputGradients d_in;
    PlanOptions choices;
    TESSERA_C_RETURN_IF_ERROR(read_attention(attention, what));
    TESSERA_C_RETURN_IF_ERROR(read_inputs(inputs, in));
    TESSERA_C_RETURN_IF_ERROR(read_outputs(outputs, out));
    TESSERA_C_RETURN_IF_ERROR(read_output_gradients(d_outputs, d_out));
    TESSERA_C_RETURN_IF_ERROR(read_input_gradients(d_inputs, d_in));
    TESSERA_C_RETURN_IF_ERROR(read_options(options, choices));
    return tessera::attention_backward(what, in.inputs, out, d_out, d_in, choices);
  });
}

tessera_status tessera_implementation_count(size_t* count) {
  return guarded([&]() -> Status {
    TESSERA_C_RETURN_IF_ERROR(require(count, "count", "a place for the number"));
    *count = implementation_table().size();
    return {};
  });
}

tessera_status tessera_implementation_get(size_t index, tessera_implementation* row) {
  return guarded([&]() -> Status {
    const std::vector<Implementation>& table = implementation_table();
    TESSERA_C_RETURN_IF_ERROR(check_index(index, table.size()));
    tessera_implementation filled{};
    filled.name = table[index].name.c_str();
    filled.device_type = static_cast<std::int32_t>(table[index].device);
    filled.available = table[index].available ? 1 : 0;
    filled.unavailable = table[index].unavailable.c_str();
    filled.supports = table[index].supports.c_str();
    return write_struct(filled, "row", "tessera_implementation", row);
  });
}

tessera_status tessera_device_count(size_t* count) {
  return guarded([&]() -> Status {
    TESSERA_C_RETURN_IF_ERROR(require(count, "count", "a place for the number"));
    *count = device_lines().size();
    return {};
  });
}

tessera_status tessera_device_describe(size_t index, const char** line) {
  return guarded([&]() -> Status {
    TESSERA_C_RETURN_IF_ERROR(require(line, "line", "a place for the string"));
    TESSERA_C_RETURN_IF_ERROR(check_index(index, device_lines().size()));
    *line = device_lines()[index].c_str();
    return {};
  });
}
