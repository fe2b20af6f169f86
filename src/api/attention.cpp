// Problem → table → Plan, and the runs.
#include "tessera/attention.hpp"

#include <cstdio>
#include <cstdlib>

#include "api/validate.hpp"
#include "core/format.hpp"
#include "core/registry.hpp"
#include "core/version.hpp"

namespace tessera {
namespace {

constexpr std::uintptr_t kWorkspaceAlignment = 64;

/// One pass of a plan: the problem, the table's verdicts and the kernel of the chosen row.
struct PlannedPass {
  Problem problem;
  std::vector<Candidate> candidates;
  std::string_view row;
  std::unique_ptr<Kernel> kernel;
};

Result<PlannedPass> plan_pass(Problem problem, const std::string& forced,
                              const std::string& forced_by) {
  PlannedPass planned;
  const Backend& backend = backend_of(problem.device.type);
  if (backend.rows.empty()) {
    return Status(StatusCode::unsupported,
                  formatted("device: {}, {}", name_of(problem.device.type), backend.absent()));
  }
  bool known = forced.empty();
  std::string names;
  for (const Row& row : backend.rows) {
    known = known || row.name == forced;
    names += (names.empty() ? "" : ", ") + std::string(row.name);
  }
  if (!known) {
    return Status(StatusCode::invalid_argument,
                  formatted("{}: {}, expected a row of the {} table: {}", forced_by, forced,
                            name_of(problem.device.type), names));
  }
  planned.candidates = choose(problem, forced);
  for (const Candidate& candidate : planned.candidates) {
    if (!candidate.chosen) continue;
    planned.row = candidate.row->name;
    planned.kernel = candidate.row->make(problem);
  }
  if (!planned.kernel) {
    std::string reasons;
    for (const Candidate& candidate : planned.candidates) {
      if (!forced.empty() && candidate.row->name != forced) continue;
      reasons += formatted("{}{}: {}", reasons.empty() ? "" : "; ", candidate.row->name,
                           candidate.rejection);
    }
    return Status(StatusCode::unsupported,
                  formatted("no implementation accepts {} ({})", to_string(problem), reasons));
  }
  planned.problem = std::move(problem);
  return planned;
}

std::string explain_pass(const PlannedPass& planned) {
  std::string text = to_string(planned.problem) + "\n";
  for (const Candidate& candidate : planned.candidates) {
    if (candidate.chosen) {
      text += formatted("  {:<14} chosen: {}, workspace {} bytes\n", candidate.row->name,
                        planned.kernel->config(), planned.kernel->workspace_bytes());
    } else {
      text += formatted("  {:<14} {}\n", candidate.row->name,
                        candidate.rejection.empty() ? "not needed: an earlier row accepts"
                                                    : "passed over: " + candidate.rejection);
    }
  }
  return text;
}

Status run_pass(const std::optional<PlannedPass>& planned, const char* name, Arguments arguments,
                const Run& run) {
  if (!planned) {
    return Status(StatusCode::invalid_argument,
                  formatted("plan: made without {0}, expected PlanOptions::{0} = true", name));
  }
  const Problem& problem = planned->problem;
  const Backend& backend = backend_of(problem.device.type);
  if (Status status = check_run(problem, arguments, backend.host_readable); !status.ok()) {
    return status;
  }
  const std::size_t needed = planned->kernel->workspace_bytes();
  if (needed > 0 && (run.workspace == nullptr || run.workspace_bytes < needed)) {
    return Status(StatusCode::invalid_argument,
                  formatted("workspace: {} bytes{}, expected at least {}", run.workspace_bytes,
                            run.workspace == nullptr ? " at null" : "", needed));
  }
  if (reinterpret_cast<std::uintptr_t>(run.workspace) % kWorkspaceAlignment != 0) {
    return Status(StatusCode::invalid_argument,
                  formatted("workspace: address {}, expected a multiple of {}", run.workspace,
                            kWorkspaceAlignment));
  }
  arguments.workspace = static_cast<std::byte*>(run.workspace);
  arguments.stream = run.stream;
  arguments.executor = backend.executor(run.executor);
  return planned->kernel->run(arguments);
}

/// Workspace of the one-call functions.
class Workspace {
 public:
  Workspace(const Backend& backend, std::size_t bytes, Device device)
      : backend_(backend), device_(device) {
    if (bytes > 0) memory_ = backend.allocate(bytes, device, nullptr);
  }
  ~Workspace() {
    if (memory_ != nullptr) backend_.release(memory_, device_, nullptr);
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  void* memory() const { return memory_; }

 private:
  const Backend& backend_;
  Device device_;
  void* memory_ = nullptr;
};

/// Plans one pass, gives it a workspace and calls `run_with(plan, run)`.
template <typename RunWith>
Status run_once(const Attention& attention, const Inputs& inputs, const PlanOptions& options,
                std::size_t (Plan::*workspace_bytes)() const, RunWith&& run_with) {
  const Result<Plan> plan = Plan::create(attention, inputs, options);
  if (!plan.ok()) return plan.status();
  const std::size_t bytes = (plan.value().*workspace_bytes)();
  const Workspace workspace(backend_of(inputs.q.device.type), bytes, inputs.q.device);
  if (bytes > 0 && workspace.memory() == nullptr) {
    return Status(StatusCode::out_of_memory, formatted("workspace: {} bytes could not be "
                                                       "allocated on {}",
                                                       bytes, name_of(inputs.q.device.type)));
  }
  return run_with(plan.value(), Run{workspace.memory(), bytes, nullptr, options.executor});
}

}  // namespace

struct Plan::State {
  std::optional<PlannedPass> forward;
  std::optional<PlannedPass> backward;
};

Result<Plan> Plan::create(const Attention& attention, const Inputs& inputs,
                          const PlanOptions& options) {
  if (options.threads < 0) {
    return Status(StatusCode::invalid_argument,
                  formatted("threads: {}, expected 0 (all) or more", options.threads));
  }
  if (!options.forward && !options.backward) {
    return Status(StatusCode::invalid_argument,
                  "options: neither forward nor backward, expected at least one pass");
  }
  std::string forced = options.implementation;
  std::string forced_by = "implementation";
  if (const char* variable = std::getenv("TESSERA_FORCE"); forced.empty() && variable != nullptr) {
    forced = variable;
    forced_by = "TESSERA_FORCE";
  }
  Executor* executor = backend_of(inputs.q.device.type).executor(options.executor);
  const int threads = options.threads > 0   ? options.threads
                      : executor != nullptr ? executor->concurrency()
                                            : 1;
  auto state = std::make_shared<State>();
  const auto plan_into = [&](std::optional<PlannedPass>& slot, Pass pass) -> Status {
    Result<Problem> problem = make_problem(attention, inputs, pass, options, threads);
    if (!problem.ok()) return problem.status();
    Result<PlannedPass> planned = plan_pass(std::move(problem).value(), forced, forced_by);
    if (!planned.ok()) return planned.status();
    slot.emplace(std::move(planned).value());
    return {};
  };
  if (options.forward) {
    if (Status status = plan_into(state->forward, Pass::forward); !status.ok()) return status;
  }
  if (options.backward) {
    if (Status status = plan_into(state->backward, Pass::backward); !status.ok()) return status;
  }
  Plan plan(std::move(state));
  const char* log = std::getenv("TESSERA_LOG");
  if (log != nullptr && std::string_view(log) == "1") {
    std::fprintf(stderr, "%s", plan.explain().c_str());
  }
  return plan;
}

std::size_t Plan::forward_workspace_bytes() const {
  return state_->forward ? state_->forward->kernel->workspace_bytes() : 0;
}

std::size_t Plan::backward_workspace_bytes() const {
  return state_->backward ? state_->backward->kernel->workspace_bytes() : 0;
}

std::string Plan::forward_implementation() const {
  return state_->forward ? std::string(state_->forward->row) : std::string();
}

std::string Plan::backward_implementation() const {
  return state_->backward ? std::string(state_->backward->row) : std::string();
}

Status Plan::forward(const Inputs& inputs, const Outputs& outputs, const Run& run) const {
  Arguments arguments;
  arguments.inputs = inputs;
  arguments.outputs = outputs;
  return run_pass(state_->forward, "forward", arguments, run);
}

Status Plan::backward(const Inputs& inputs, const Outputs& outputs,
                      const OutputGradients& d_outputs, const InputGradients& d_inputs,
                      const Run& run) const {
  Arguments arguments;
  arguments.inputs = inputs;
  arguments.outputs = outputs;
  arguments.d_outputs = d_outputs;
  arguments.d_inputs = d_inputs;
  return run_pass(state_->backward, "backward", arguments, run);
}

std::string Plan::explain() const {
  std::string text;
  if (state_->forward) text += explain_pass(*state_->forward);
  if (state_->backward) text += explain_pass(*state_->backward);
  return text;
}

Status attention_forward(const Attention& attention, const Inputs& inputs, const Outputs& outputs,
                         const PlanOptions& options) {
  PlanOptions one = options;
  one.forward = true;
  one.backward = false;
  return run_once(
      attention, inputs, one, &Plan::forward_workspace_bytes,
      [&](const Plan& plan, const Run& run) { return plan.forward(inputs, outputs, run); });
}

Status attention_backward(const Attention& attention, const Inputs& inputs, const Outputs& outputs,
                          const OutputGradients& d_outputs, const InputGradients& d_inputs,
                          const PlanOptions& options) {
  PlanOptions one = options;
  one.forward = false;
  one.backward = true;
  one.bias_gradient = d_inputs.d_bias.present();
  one.sink_gradient = d_inputs.d_sink.present();
  return run_once(attention, inputs, one, &Plan::backward_workspace_bytes,
                  [&](const Plan& plan, const Run& run) {
                    return plan.backward(inputs, outputs, d_outputs, d_inputs, run);
                  });
}

std::vector<Implementation> implementations() {
  std::vector<Implementation> table;
  for (const Backend* backend : backends()) {
    for (const Row& row : backend->rows) {
      const std::string unavailable = row.unavailable();
      table.push_back({std::string(row.name), backend->device, unavailable.empty(), unavailable,
                       std::string(row.supports)});
    }
  }
  return table;
}

std::vector<std::string> describe_devices() {
  std::vector<std::string> lines;
  for (const Backend* backend : backends()) {
    for (std::string& line : backend->describe()) lines.push_back(std::move(line));
  }
  return lines;
}

const char* version() { return TESSERA_VERSION_STRING; }

}  // namespace tessera
