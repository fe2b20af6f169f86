#include "bench/record.hpp"

#include <sched.h>
#include <sys/utsname.h>

#include <algorithm>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>

#include "bench/blas.hpp"
#include "device/device.hpp"
#include "error.hpp"
#include "tessera/attention.hpp"

namespace tessera::cli::bench {
namespace {

std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    if (line.rfind("model name", 0) != 0) continue;
    const std::size_t value = line.find_first_not_of(" \t", line.find(':') + 1);
    if (value != std::string::npos) return line.substr(value);
  }
  utsname names{};
  return uname(&names) == 0 ? names.machine : "unknown";
}

int usable_cpus() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

nlohmann::ordered_json json_of(const std::optional<double>& value) {
  return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json(nullptr);
}

nlohmann::ordered_json known(bool is_known, double value) {
  return json_of(is_known ? std::optional(value) : std::nullopt);
}

nlohmann::ordered_json json_of(const Record& r, const Machine& machine) {
  const Case& p = r.problem;
  const MaskChoice& mask = r.variant.mask;
  nlohmann::ordered_json json;
  json["suite"] = r.suite;
  json["impl"] = r.impl;
  if (!r.variant.config.empty()) json["config"] = r.variant.config;
  json["device"] = name_of(r.device.type);
  json["pass"] = name_of(p.pass);
  json["dtype"] = name_of(p.dtype);
  json["batch"] = p.batch;
  json["heads_q"] = p.heads_q;
  json["heads_kv"] = p.heads_kv;
  json["seq_q"] = p.seq_q;
  json["seq_kv"] = p.seq_kv;
  json["head_dim"] = p.head_dim;
  json["head_dim_v"] = p.head_dim_v;
  json["causal"] = p.causal;
  json["window_left"] = p.window.left;
  json["window_right"] = p.window.right;
  json["pattern"] = name_of(mask.pattern);
  json["density"] = r.density;
  if (mask.pattern != Pattern::dense) {
    json["block_q"] = mask.block_q;
    json["block_kv"] = mask.block_kv;
    json["us_per_block"] = r.ms * 1e3 / *r.blocks;
  }
  json["precision"] = tessera::name_of(r.variant.precision);
  json["threads"] = r.variant.threads;
  json["ms"] = r.ms;
  json["ms_min"] = r.ms_min;
  json["samples"] = r.samples;
  json["flops"] = r.flops;
  json["gflops"] = r.gflops();
  const bool ceiling = r.ceiling_gflops > 0;
  json["ceiling"] = r.ceiling;
  json["ceiling_gflops"] = known(ceiling, r.ceiling_gflops);
  json["ceiling_gflops_best"] = known(ceiling, r.ceiling_gflops_best);
  json["share"] = known(ceiling, r.share());
  json["share_best"] = known(ceiling, r.share_best());
  json["waited_for_cpu"] = r.waited;
  json["peak_extra_bytes"] = r.peak_extra_bytes;
  json["workspace_bytes"] = r.workspace_bytes;
  json["input_output_bytes"] = input_output_bytes(p);
  json["gbytes_per_s"] = r.gbytes_per_s();
  json["copy_gbytes_per_s"] = r.copy_gbytes_per_s;
  json["speedup_over_standard"] = json_of(r.speedup_over_standard);
  json["speedup_over_one_thread"] = json_of(r.speedup_over_one_thread);
  json["speedup_over_dense"] = json_of(r.speedup_over_dense);
  json["date"] = machine.date;
  json["cpu"] = machine.cpu;
  json["version"] = machine.version;
  json["commit"] = machine.commit;
  json["blas"] = machine.blas;
  json["gpu"] = machine.gpu;
  json["driver"] = machine.driver;
  return json;
}

// The time of the first record that `matches`, over that of `r`.
template <typename Matches>
std::optional<double> speedup(const std::vector<Record>& group, const Record& r, Matches matches) {
  const auto other = std::find_if(group.begin(), group.end(), matches);
  if (other == group.end() || &*other == &r) return std::nullopt;
  return other->ms / r.ms;
}

}  // namespace

Record count_work(const Group& group, const Variant& variant, const BlockMask* mask) {
  Record record;
  record.suite = group.suite;
  record.problem = group.problem;
  record.variant = variant;
  double pairs = visible_pairs(group.problem);
  if (mask != nullptr) {
    const BlockMaskView view = mask->view();
    pairs = listed_pairs(group.problem, view);
    record.density = view.density();
    record.blocks = static_cast<double>(view.entries) /
                    static_cast<double>(view.batch * view.heads) *
                    static_cast<double>(group.problem.batch * group.problem.heads_q);
  }
  record.flops = flop_count(group.problem, pairs);
  return record;
}

void compare(std::vector<Record>& group) {
  for (Record& r : group) {
    r.speedup_over_standard = speedup(group, r, [&](const Record& other) {
      return other.impl == "standard" && other.variant.threads == r.variant.threads;
    });
    r.speedup_over_one_thread = speedup(group, r, [&](const Record& other) {
      return other.impl == r.impl && other.variant.mask == r.variant.mask &&
             other.variant.precision == r.variant.precision && other.variant.threads == 1;
    });
    r.speedup_over_dense = speedup(group, r, [&](const Record& other) {
      return other.impl == r.impl && other.variant.mask.pattern == Pattern::dense &&
             other.variant.precision == r.variant.precision &&
             other.variant.threads == r.variant.threads;
    });
  }
}

Machine describe_machine(Device device) {
  Machine machine;
  machine.date = utc_now();
  machine.cpu = cpu_model();
  machine.cpus = usable_cpus();
  machine.version = version();
#ifdef TESSERA_GIT_COMMIT
  machine.commit = TESSERA_GIT_COMMIT;
#endif
  machine.blas = blas_name();
  if (device.type == DeviceType::cuda) {
    const device::Properties properties = require(device::properties(device));
    machine.gpu = properties.name;
    machine.driver = properties.driver;
  }
  return machine;
}

std::string to_json(const std::vector<Record>& records, const Machine& machine) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Record& record : records) list.push_back(json_of(record, machine));
  return list.dump(2) + "\n";
}

}  // namespace tessera::cli::bench
