// Every config that cuda_sm90's forward pass can be asked for, whatever its table chooses.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "support/conformance.hpp"

namespace tessera::test {
namespace {

constexpr const char* kRow = "cuda_sm90";

/// The names behind "configs=" in the row's explanation; none if it does not run here.
std::vector<std::string> configs(const Case& c) {
  const auto tensor = [&c](std::int64_t heads, std::int64_t seq, std::int64_t head_dim) {
    return TensorView::contiguous(nullptr, c.dtype, {c.batch, heads, seq, head_dim},
                                  Device{DeviceType::cuda, 0});
  };
  Inputs inputs;
  inputs.q = tensor(c.heads_q, c.seq_q, c.head_dim);
  inputs.k = tensor(c.heads_kv, c.seq_kv, c.head_dim);
  inputs.v = tensor(c.heads_kv, c.seq_kv, c.head_dim_v);
  PlanOptions options;
  options.implementation = kRow;
  const Result<Plan> plan = Plan::create(c.attention, inputs, options);
  if (!plan.ok()) return {};
  const std::string text = plan.value().explain();
  std::vector<std::string> names;
  for (std::size_t at = text.find("configs="); at != std::string::npos && text[at] != ',';) {
    at += names.empty() ? std::string("configs=").size() : 1;
    const std::size_t end = text.find_first_of("|,", at);
    names.push_back(text.substr(at, end - at));
    at = end;
  }
  return names;
}

/// Sets a variable of the environment while it lives.
class Setting {
 public:
  Setting(const char* name, const std::string& value) : name_(name) {
    setenv(name, value.c_str(), 1);
  }
  ~Setting() { unsetenv(name_); }
  Setting(const Setting&) = delete;
  Setting& operator=(const Setting&) = delete;

 private:
  const char* name_;
};

TEST(Configs, OfTheForwardPassOnHopper) {
  const char* forced = std::getenv("TESSERA_FORCE");
  if (forced != nullptr && std::string(forced) != kRow) GTEST_SKIP() << "another row is forced";
  int checked = 0;
  for (int head_dim : {64, 96, 128, 192, 256}) {
    for (DType dtype : {DType::bf16, DType::f16}) {
      for (int mask = 0; mask < 4; ++mask) {
        Case c;
        c.dtype = dtype;
        c.heads_q = 4;
        c.heads_kv = 2;
        c.seq_q = mask % 2 == 0 ? 333 : 700;
        c.seq_kv = 701;
        c.head_dim = c.head_dim_v = head_dim;
        c.backward = false;
        if (mask == 1) c.attention.causal = true;
        if (mask == 2) c.attention.window = {150, 40};
        if (mask == 3) {
          c.kv_lens = {333, 0};
          c.attention.causal = true;
          c.attention.alignment = Alignment::top_left;
        }
        for (const std::string& name : configs(c)) {
          SCOPED_TRACE(name);
          const Setting config("TESSERA_SM90_FORWARD", name);
          check_case(c);
          ++checked;
        }
      }
    }
  }
  if (checked == 0) GTEST_SKIP() << kRow << " does not run here";
}

}  // namespace
}  // namespace tessera::test
