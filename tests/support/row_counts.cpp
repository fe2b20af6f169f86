#include "support/row_counts.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "core/registry.hpp"
#include "support/conformance.hpp"

namespace tessera::test {
namespace {

/// The environment's value, or an empty string.
std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

/// Rows that the environment asks for, whether or not this machine can run them.
std::vector<Implementation> rows_asked_for() {
  const std::string& forced = forced_row();
  const std::string device = variable("TESSERA_TEST_DEVICE");
  std::vector<Implementation> rows;
  for (const Implementation& row : implementations()) {
    if (!forced.empty() && row.name != forced) continue;
    if (device.empty() || device == name_of(row.device)) rows.push_back(row);
  }
  return rows;
}

/// Why this machine can run none of them, or nothing if that is a mistake in the environment.
std::string why_none_can_run() {
  std::string reasons;
  for (const Implementation& row : rows_asked_for()) {
    reasons += fmt::format("{}{}: {}", reasons.empty() ? "" : "; ", row.name, row.unavailable);
  }
  const std::string& forced = forced_row();
  const std::string device = variable("TESSERA_TEST_DEVICE");
  if (!reasons.empty() || (device != "cpu" && device != "cuda")) return reasons;
  const Backend& backend = backend_of(device == "cpu" ? DeviceType::cpu : DeviceType::cuda);
  if (backend.rows.empty()) return backend.absent();
  for (const Implementation& row : implementations()) {
    if (row.name == forced)
      return fmt::format("{} is forced, a {} row", forced, name_of(row.device));
  }
  return "";
}

/// Skips every test, by name, with a reason.
class SkipAll : public testing::EmptyTestEventListener {
 public:
  explicit SkipAll(std::string reason) : reason_(std::move(reason)) {}
  void OnTestStart(const testing::TestInfo&) override { GTEST_SKIP() << reason_; }

 private:
  std::string reason_;
};

/// Sees that there is something to test, or has every test skipped; prints how many cases each row
/// ran, and which rows this machine could not run.
class CountPrinter : public testing::Environment {
 public:
  void SetUp() override {
    if (!rows_under_test().empty()) return;
    const std::string reason = why_none_can_run();
    ASSERT_NE(reason, "") << "no rows to test: is TESSERA_FORCE a row, and TESSERA_TEST_DEVICE cpu "
                             "or cuda?";
    skip_every_test(reason);
  }
  void TearDown() override {
    for (const auto& [row, n] : counts()) {
      std::printf("conformance %-14s %5d cases (%d with backward), %d refused, %d failed\n",
                  row.c_str(), n.cases, n.backward, n.refused, n.failed);
    }
    for (const Implementation& row : rows_asked_for()) {
      if (row.available) continue;
      std::printf("conformance %-14s skipped: %s\n", row.name.c_str(), row.unavailable.c_str());
    }
  }
};

[[maybe_unused]] const testing::Environment* const kCountPrinter =
    testing::AddGlobalTestEnvironment(new CountPrinter);

}  // namespace

std::map<std::string, RowCount>& counts() {
  static std::map<std::string, RowCount> all;
  return all;
}

const std::string& forced_row() {
  static const std::string kForced = variable("TESSERA_FORCE");
  return kForced;
}

void skip_every_test(const std::string& reason) {
  if (reason.empty()) return;
  std::printf("every test skipped: %s\n", reason.c_str());
  testing::UnitTest::GetInstance()->listeners().Append(new SkipAll(reason));
}

bool reduced() { return variable("TESSERA_TEST_REDUCED") == "1"; }

const std::vector<std::string>& rows_under_test() {
  static const std::vector<std::string> kRows = [] {
    std::vector<std::string> rows;
    for (const Implementation& row : rows_asked_for()) {
      if (row.available) rows.push_back(row.name);
    }
    return rows;
  }();
  return kRows;
}

Device device_of(const std::string& row) {
  for (const Backend* backend : backends()) {
    for (const Row& candidate : backend->rows) {
      if (candidate.name == row) return {backend->device, 0};
    }
  }
  return {};
}

}  // namespace tessera::test
