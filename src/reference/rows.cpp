#include "reference/rows.hpp"

#include <algorithm>

#include "reference/passes.hpp"

namespace tessera::reference {

std::int64_t concurrent_tasks(const Problem& problem) {
  const std::int64_t heads = std::max<std::int64_t>(problem.batch, 1) * problem.heads_q;
  return std::min<std::int64_t>(problem.threads, heads);
}

namespace {

class ReferenceKernel final : public Kernel {
 public:
  explicit ReferenceKernel(const Problem& problem) : problem_(problem) {}

  std::string config() const override {
    return problem_.quantised() ? "the scalar model of the scheme" : "plain loops in double";
  }

  std::size_t workspace_bytes() const override {
    const std::size_t per_task = problem_.quantised()             ? quantised_doubles(problem_)
                                 : problem_.pass == Pass::forward ? forward_doubles(problem_)
                                                                  : backward_doubles(problem_);
    return sizeof(double) * per_task * concurrent_tasks(problem_);
  }

  Status run(const Arguments& arguments) const override {
    if (problem_.quantised()) {
      quantised_forward(problem_, arguments);
    } else if (problem_.pass == Pass::forward) {
      forward(problem_, arguments);
    } else {
      backward(problem_, arguments);
    }
    return {};
  }

 private:
  Problem problem_;
};

std::string reject(const Problem& problem) {
  if (problem.device.type != DeviceType::cpu) return "runs on the CPU only";
  switch (problem.dtype) {
    case DType::f32:
    case DType::f16:
    case DType::bf16:
    case DType::f64:
      break;
    default:
      return std::string("computes f32, f16, bf16 and f64, not ") + name_of(problem.dtype);
  }
  if (problem.quantised() && problem.dtype == DType::f64) {
    return "quantises f32, f16 and bf16, not f64";
  }
  return {};
}

}  // namespace

const Row kReferenceRow{
    "reference",
    "f32 f16 bf16 f64, forward and backward, every feature, every precision, in double (slow)",
    [] { return std::string(); },
    reject,
    [](const Problem& problem) -> std::unique_ptr<Kernel> {
      return std::make_unique<ReferenceKernel>(problem);
    },
};

}  // namespace tessera::reference
