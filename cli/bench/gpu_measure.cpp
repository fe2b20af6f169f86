#include "bench/gpu_measure.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <numeric>

#include "bench/contender.hpp"
#include "bench/statistics.hpp"
#include "error.hpp"

namespace tessera::cli::bench {
namespace {

constexpr int kRunsPerTurn = 5;
constexpr std::size_t kFewestSamples = 5;
constexpr std::size_t kMostSamples = 100;
constexpr double kLongRunMs = 500;
constexpr int kProductsPerTurn = 2;
constexpr std::size_t kMostCeilings = 12;
constexpr std::int64_t kMostSets = 3;

std::string label_of(const Group& group, const Variant& variant) {
  return fmt::format("{} {} {} {}", variant.impl, name_of(group.problem.pass),
                     shape_label(group.problem), mask_label(group.problem, variant.mask));
}

}  // namespace

// One variant while its group is being measured.
struct GpuMeter::Running {
  Variant variant;
  std::optional<BlockMask> mask;
  std::unique_ptr<GpuContender> contender;
  std::size_t runs = 0;
  std::vector<double> ms;

  bool done(double budget_seconds) const {
    if (ms.empty()) return false;
    const double spent = std::accumulate(ms.begin(), ms.end(), 0.0);
    const bool enough = ms.size() >= kFewestSamples || ms.front() > kLongRunMs;
    return enough && (spent >= 1e3 * budget_seconds || ms.size() >= kMostSamples);
  }
  int runs_of_a_turn() const { return !ms.empty() && ms.front() > kLongRunMs ? 1 : kRunsPerTurn; }
};

GpuMeter::GpuMeter(Device device, double budget_seconds)
    : device_(device),
      budget_seconds_(budget_seconds),
      properties_(require(device::properties(device))),
      stream_(require(device::Stream::create(device))),
      flush_(require(device::Buffer::allocate(
          std::max<std::size_t>(2 * properties_.l2_bytes, std::size_t{32} << 20), device))) {
  Result<std::unique_ptr<MatrixProduct>> product = MatrixProduct::load(stream_);
  if (product.ok()) {
    product_ = std::move(product).value();
  } else {
    no_product_ = product.status().message();
  }
}

template <typename Enqueue>
std::vector<double> GpuMeter::time(int runs, const Enqueue& enqueue) {
  std::vector<device::Timer> timers;
  for (int run = 0; run < runs; ++run) {
    timers.push_back(require(device::Timer::create(stream_)));
    // While this writes, the host is ahead of the device and the launch's latency is not timed.
    require(device::fill({flush_.data(), device_}, static_cast<unsigned char>(run), flush_.bytes(),
                         stream_));
    require(timers.back().start());
    enqueue();
    require(timers.back().stop());
  }
  require(stream_.synchronize());
  std::vector<double> ms;
  ms.reserve(timers.size());
  for (const device::Timer& timer : timers) ms.push_back(require(timer.milliseconds()));
  return ms;
}

std::vector<GpuTensors> GpuMeter::make_tensors(const Case& problem) {
  if (!pool_ || pool_dtype_ != problem.dtype) {
    pool_.emplace(problem.dtype, device_);
    pool_dtype_ = problem.dtype;
  }
  const auto half = static_cast<std::int64_t>(properties_.memory_bytes / 2);
  const std::int64_t sets = std::clamp<std::int64_t>(
      half / std::max<std::int64_t>(input_output_bytes(problem), 1), 1, kMostSets);
  std::vector<GpuTensors> tensors;
  for (std::int64_t set = 0; set < sets; ++set) {
    tensors.emplace_back(problem, *pool_, device_, static_cast<std::size_t>(set));
  }
  return tensors;
}

void GpuMeter::run_forward(const Case& problem, const BlockMask* mask,
                           const std::vector<GpuTensors>& tensors) {
  Case forward = problem;
  forward.pass = Pass::forward;
  const GpuContender contender(forward, {}, mask, tensors.front(), stream_);
  for (const GpuTensors& set : tensors) contender.enqueue(set);
  require(stream_.synchronize());
}

std::vector<double> GpuMeter::ceiling(DType dtype, std::vector<std::string>& notes) {
  if (product_ != nullptr) {
    const Status status = product_->prepare(dtype);
    if (status.ok()) {
      std::vector<double> rates;
      for (double ms : time(kProductsPerTurn, [this] { require(product_->run()); })) {
        rates.push_back(product_->flops() / ms * 1e-6);
      }
      return rates;
    }
    product_.reset();
    no_product_ = status.message();
  }
  notes.push_back(fmt::format("ceiling unknown: {}", no_product_));
  return {};
}

double GpuMeter::copy_gbytes_per_s() {
  if (copy_gbytes_per_s_) return *copy_gbytes_per_s_;
  constexpr std::size_t kMostBytes = std::size_t{2} << 30;
  constexpr int kCopies = 10;
  const std::size_t bytes = std::min(kMostBytes, properties_.memory_bytes / 8);
  const device::Buffer from = require(device::Buffer::allocate(bytes, device_));
  const device::Buffer to = require(device::Buffer::allocate(bytes, device_));
  require(device::fill({from.data(), device_}, 1, bytes));
  const std::vector<double> ms = time(kCopies, [&] {
    require(device::copy({to.data(), device_}, {from.data(), device_}, bytes, stream_));
  });
  copy_gbytes_per_s_ = 2.0 * static_cast<double>(bytes) / median(ms) * 1e-6;
  return *copy_gbytes_per_s_;
}

std::vector<Record> GpuMeter::measure(const Group& group, const Progress& progress,
                                      std::vector<std::string>& notes) {
  const Case& problem = group.problem;
  const std::vector<GpuTensors> tensors = make_tensors(problem);
  std::vector<Running> all;
  for (const Variant& variant : group.variants) {
    progress(label_of(group, variant));
    Running& r = all.emplace_back();
    r.variant = variant;
    r.mask = build_mask(problem, variant.mask);
    const BlockMask* mask = r.mask ? &*r.mask : nullptr;
    if (problem.pass == Pass::backward && all.size() == 1) run_forward(problem, mask, tensors);
    r.contender = std::make_unique<GpuContender>(problem, variant, mask, tensors.front(), stream_);
    for (int run = 0; run < 2; ++run) r.contender->enqueue(tensors.front());
    require(stream_.synchronize());
  }
  std::vector<double> ceilings;
  const auto add_ceilings = [&] {
    if (ceilings.size() >= kMostCeilings) return;
    const std::vector<double> more = ceiling(problem.dtype, notes);
    ceilings.insert(ceilings.end(), more.begin(), more.end());
  };
  add_ceilings();
  for (bool any = true; any;) {
    any = false;
    for (Running& r : all) {
      if (r.done(budget_seconds_)) continue;
      const std::vector<double> ms = time(
          r.runs_of_a_turn(), [&] { r.contender->enqueue(tensors[r.runs++ % tensors.size()]); });
      r.ms.insert(r.ms.end(), ms.begin(), ms.end());
      any = true;
    }
    add_ceilings();
  }
  std::vector<Record> records;
  records.reserve(all.size());
  for (const Running& r : all) records.push_back(to_record(group, r, ceilings));
  compare(records);
  return records;
}

Record GpuMeter::to_record(const Group& group, const Running& r,
                           const std::vector<double>& ceilings) {
  Record record = count_work(group, r.variant, r.mask ? &*r.mask : nullptr);
  record.device = device_;
  record.impl = r.contender->name();
  record.samples = static_cast<int>(r.ms.size());
  record.ms = median(r.ms);
  record.ms_min = minimum(r.ms);
  if (!ceilings.empty()) {
    record.ceiling = fmt::format("{} matrix product", name_of(group.problem.dtype));
    record.ceiling_gflops = median(ceilings);
    record.ceiling_gflops_best = maximum(ceilings);
  }
  record.peak_extra_bytes = record.workspace_bytes = r.contender->workspace_bytes();
  record.copy_gbytes_per_s = copy_gbytes_per_s();
  return record;
}

}  // namespace tessera::cli::bench
