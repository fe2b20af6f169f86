// The tuner: every config of a row's forward kernel, measured in turn, and the table that follows.
#pragma once

#include <string>
#include <vector>

#include "bench/problem.hpp"
#include "bench/record.hpp"

namespace tessera::cli::bench {

/// The suite that measures configs of cuda_sm90.
inline constexpr const char* kTuneSuite = "tune-sm90";

/// Gives each group one variant for every config that the row has for its problem, the row's choice
/// first. Throws Error if the row does not run on the device.
void add_configs(std::vector<Group>& groups, Device device);

/// The fastest config of every problem as lines of the table in src/cuda/sm90/forward.cpp: head
/// dim, whether masked, the most keys, config.
std::string tuned_table(const std::vector<Record>& records);

/// The names behind "configs=" in what explain() says of a row.
std::vector<std::string> configs_in(const std::string& explanation);

/// While it lives, plans of cuda_sm90 take this config (TESSERA_SM90_FORWARD); "": their own.
class ForcedConfig {
 public:
  explicit ForcedConfig(const std::string& config);
  ~ForcedConfig();
  ForcedConfig(const ForcedConfig&) = delete;
  ForcedConfig& operator=(const ForcedConfig&) = delete;

 private:
  std::string before_;
  bool was_set_;
};

}  // namespace tessera::cli::bench
