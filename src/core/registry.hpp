// The table of implementations: rows, backends, and how a row is chosen.
//
// A backend is an ordered list of rows, fastest first. A row says whether this machine can run it,
// whether it accepts a problem, and makes a kernel for it. Adding a kernel is adding a row in its
// backend; nothing here or in api/ changes.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/problem.hpp"
#include "tessera/attention.hpp"

namespace tessera {

/// Everything a kernel may touch in one run; validated before a kernel sees it. The passes use the
/// same struct: forward writes `outputs`, backward reads them and writes `d_inputs`.
struct Arguments {
  Inputs inputs;
  Outputs outputs;
  OutputGradients d_outputs;
  InputGradients d_inputs;
  std::byte* workspace = nullptr;
  void* stream = nullptr;
  Executor* executor = nullptr;  ///< Never null on the CPU.
};

/// A planned kernel: a problem with its config. Immutable; `run` may be called from many threads.
class Kernel {
 public:
  virtual ~Kernel() = default;
  /// The chosen config on one line, e.g. "block_q=192 block_kv=128 tile=8x48".
  virtual std::string config() const = 0;
  virtual std::size_t workspace_bytes() const = 0;
  virtual Status run(const Arguments& arguments) const = 0;
};

struct Row {
  std::string_view name;
  std::string_view supports;  ///< One line for people: dtypes, passes, features.
  /// Empty if this machine can run the row, else why not.
  std::string (*unavailable)();
  /// Empty if the row accepts the problem, else the reason: what is missing.
  std::string (*reject)(const Problem& problem);
  std::unique_ptr<Kernel> (*make)(const Problem& problem);
};

/// A kind of device: its table and the few services that the one-call API and the edges need.
struct Backend {
  DeviceType device = DeviceType::cpu;
  std::span<const Row> rows;
  /// Why there are no rows at all (a build without this backend), or empty.
  std::string (*absent)();
  /// How many devices of this kind there are.
  int (*count)();
  /// One line per device of this kind.
  std::vector<std::string> (*describe)();
  /// Workspace for the one-call API: null on failure. `stream` orders the release after the work.
  void* (*allocate)(std::size_t bytes, Device device, void* stream);
  void (*release)(void* memory, Device device, void* stream);
  /// Whether cu_seqlens, lengths and block masks of this device can be read while validating; where
  /// not (it would synchronise a device), their contents are the caller's promise.
  bool host_readable = true;
  /// The executor a run uses when the caller asks for `requested` (may be null); null where the
  /// device schedules its own work.
  Executor* (*executor)(Executor* requested);
};

/// All backends of this build, in a fixed order (src/backends.cpp).
std::span<const Backend* const> backends();
const Backend& backend_of(DeviceType device);

/// A row's verdict on a problem; the first accepted one is `chosen`.
struct Candidate {
  const Row* row = nullptr;
  std::string rejection;  ///< Empty if accepted.
  bool chosen = false;
};

/// Goes through the table in order. `forced` (a row's name, may be empty) passes over all others.
std::vector<Candidate> choose(const Problem& problem, std::string_view forced);

}  // namespace tessera
