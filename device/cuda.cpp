// The CPU, and NVIDIA GPUs through the CUDA runtime.
#include <cuda_runtime_api.h>

#include <cstring>
#include <fstream>
#include <utility>

#include "device/host.hpp"

namespace tessera::device {
namespace {

/// Makes a device current for a scope and restores the caller's after it.
class Current {
 public:
  explicit Current(Device device) {
    error_ = cudaGetDevice(&previous_);
    if (error_ == cudaSuccess) error_ = cudaSetDevice(device.index);
  }
  ~Current() {
    if (error_ == cudaSuccess) cudaSetDevice(previous_);
  }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;
  cudaError_t error() const { return error_; }

 private:
  int previous_ = 0;
  cudaError_t error_ = cudaSuccess;
};

/// The error as a status, taken from the runtime so that later calls do not report it again.
Status to_status(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return {};
  cudaGetLastError();
  return {StatusCode::device_error, std::string(what) + ": " + cudaGetErrorString(error)};
}

/// Calls `function` with `device` current.
template <typename Function>
Status on(Device device, const char* what, Function&& function) {
  const Current current(device);
  return to_status(current.error() == cudaSuccess ? function() : current.error(), what);
}

cudaStream_t handle_of(const Stream& stream) { return static_cast<cudaStream_t>(stream.handle()); }

/// Peer copies name both devices; every other kind is found out from the addresses.
cudaError_t enqueue_copy(Place to, Place from, std::size_t bytes, cudaStream_t stream) {
  if (!on_host(to.device) && !on_host(from.device) && to.device.index != from.device.index) {
    return cudaMemcpyPeerAsync(to.data, to.device.index, from.data, from.device.index, bytes,
                               stream);
  }
  return cudaMemcpyAsync(to.data, from.data, bytes, cudaMemcpyDefault, stream);
}

/// The kernel module's version, the first number with a point that it gives; "" if it tells none.
std::string driver_version() {
  std::ifstream file("/proc/driver/nvidia/version");
  for (std::string word; file >> word;) {
    const bool number = word.find_first_not_of("0123456789.") == std::string::npos;
    if (number && word.find('.') != std::string::npos) return word;
  }
  return "";
}

Result<std::shared_ptr<void>> make_event() {
  cudaEvent_t event = nullptr;
  if (Status status = to_status(cudaEventCreate(&event), "event"); !status.ok()) return status;
  return std::shared_ptr<void>(
      event, [](void* owned) { cudaEventDestroy(static_cast<cudaEvent_t>(owned)); });
}

}  // namespace

int count(DeviceType type) {
  if (type == DeviceType::cpu) return 1;
  int devices = 0;
  if (cudaGetDeviceCount(&devices) == cudaSuccess) return devices;
  cudaGetLastError();
  return 0;
}

Result<Properties> properties(Device device) {
  cudaDeviceProp found;
  int driver = 0;
  Status status = to_status(cudaGetDeviceProperties(&found, device.index), "device properties");
  if (status.ok()) status = to_status(cudaDriverGetVersion(&driver), "driver version");
  if (!status.ok()) return status;
  const std::string cuda =
      "CUDA " + std::to_string(driver / 1000) + "." + std::to_string(driver % 1000 / 10);
  const std::string version = driver_version();
  return Properties{found.name, version.empty() ? cuda : version + " (" + cuda + ")",
                    found.totalGlobalMem, static_cast<std::size_t>(found.l2CacheSize)};
}

Result<std::size_t> memory_in_use(Device device) {
  std::size_t free = 0, total = 0;
  const Status status = on(device, "memory in use", [&] { return cudaMemGetInfo(&free, &total); });
  if (!status.ok()) return status;
  return total - free;
}

Result<Stream> Stream::create(Device device) {
  cudaStream_t stream = nullptr;
  const Status status = on(
      device, "stream", [&] { return cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking); });
  if (!status.ok()) return status;
  Stream created;
  created.device_ = device;
  created.handle_ = {stream,
                     [](void* owned) { cudaStreamDestroy(static_cast<cudaStream_t>(owned)); }};
  return created;
}

Status Stream::synchronize() const {
  return on(device_, "stream", [&] { return cudaStreamSynchronize(handle_of(*this)); });
}

Result<Buffer> Buffer::allocate(std::size_t bytes, Device device) {
  Buffer buffer;
  buffer.device_ = device;
  buffer.memory_ = {nullptr, Free{device}};
  if (on_host(device)) {
    buffer.memory_.reset(allocate_host(bytes));
    if (bytes > 0 && buffer.data() == nullptr) return short_of_memory(bytes, device);
  } else if (bytes > 0) {
    void* memory = nullptr;
    cudaError_t error = cudaSuccess;
    const Status status =
        on(device, "device memory", [&] { return error = cudaMalloc(&memory, bytes); });
    if (error == cudaErrorMemoryAllocation) return short_of_memory(bytes, device);
    if (!status.ok()) return status;
    buffer.memory_.reset(memory);
  }
  buffer.bytes_ = bytes;
  return buffer;
}

void Buffer::Free::operator()(void* memory) const {
  if (on_host(device)) {
    std::free(memory);
  } else {
    cudaFree(memory);
  }
}

Status copy(Place to, Place from, std::size_t bytes) {
  if (bytes == 0) return {};
  if (on_host(to.device) && on_host(from.device)) {
    std::memcpy(to.data, from.data, bytes);
    return {};
  }
  // The copy of pageable memory may return before the bytes are there: wait for the stream.
  return on(on_host(to.device) ? from.device : to.device, "copy", [&] {
    const cudaError_t error = enqueue_copy(to, from, bytes, cudaStreamLegacy);
    return error == cudaSuccess ? cudaStreamSynchronize(cudaStreamLegacy) : error;
  });
}

Status fill(Place to, unsigned char value, std::size_t bytes) {
  if (bytes == 0) return {};
  if (on_host(to.device)) {
    std::memset(to.data, value, bytes);
    return {};
  }
  return on(to.device, "fill", [&] {
    const cudaError_t error = cudaMemsetAsync(to.data, value, bytes, cudaStreamLegacy);
    return error == cudaSuccess ? cudaStreamSynchronize(cudaStreamLegacy) : error;
  });
}

Status copy(Place to, Place from, std::size_t bytes, const Stream& stream) {
  if (bytes == 0) return {};
  return on(stream.device(), "copy",
            [&] { return enqueue_copy(to, from, bytes, handle_of(stream)); });
}

Status fill(Place to, unsigned char value, std::size_t bytes, const Stream& stream) {
  if (bytes == 0) return {};
  return on(stream.device(), "fill",
            [&] { return cudaMemsetAsync(to.data, value, bytes, handle_of(stream)); });
}

Status synchronize(Device device) {
  if (on_host(device)) return {};
  return on(device, "synchronize", [] { return cudaDeviceSynchronize(); });
}

Result<Timer> Timer::create(const Stream& stream) {
  const Current current(stream.device());
  Result<std::shared_ptr<void>> begin = make_event();
  if (!begin.ok()) return begin.status();
  Result<std::shared_ptr<void>> end = make_event();
  if (!end.ok()) return end.status();
  Timer timer;
  timer.stream_ = stream;
  timer.begin_ = std::move(begin).value();
  timer.end_ = std::move(end).value();
  return timer;
}

Status Timer::start() {
  return on(stream_.device(), "timer", [&] {
    return cudaEventRecord(static_cast<cudaEvent_t>(begin_.get()), handle_of(stream_));
  });
}

Status Timer::stop() {
  return on(stream_.device(), "timer", [&] {
    return cudaEventRecord(static_cast<cudaEvent_t>(end_.get()), handle_of(stream_));
  });
}

Result<double> Timer::milliseconds() const {
  float elapsed = 0;
  const Status status = on(stream_.device(), "timer", [&] {
    const cudaError_t error = cudaEventSynchronize(static_cast<cudaEvent_t>(end_.get()));
    if (error != cudaSuccess) return error;
    return cudaEventElapsedTime(&elapsed, static_cast<cudaEvent_t>(begin_.get()),
                                static_cast<cudaEvent_t>(end_.get()));
  });
  if (!status.ok()) return status;
  return static_cast<double>(elapsed);
}

Result<Graph> Graph::record(const Stream& stream, const std::function<Status()>& enqueue) {
  const Current current(stream.device());
  const cudaStream_t handle = handle_of(stream);
  Status status = to_status(cudaStreamBeginCapture(handle, cudaStreamCaptureModeGlobal), "graph");
  if (!status.ok()) return status;
  const Status enqueued = enqueue();
  cudaGraph_t recorded = nullptr;
  status = to_status(cudaStreamEndCapture(handle, &recorded), "graph");
  if (!enqueued.ok()) status = enqueued;
  cudaGraphExec_t executable = nullptr;
  if (status.ok()) {
    status = to_status(cudaGraphInstantiate(&executable, recorded, 0), "graph");
  }
  if (recorded != nullptr) cudaGraphDestroy(recorded);
  if (!status.ok()) return status;
  Graph graph;
  graph.executable_ = {
      executable, [](void* owned) { cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(owned)); }};
  return graph;
}

Status Graph::launch(const Stream& stream) const {
  return on(stream.device(), "graph", [&] {
    return cudaGraphLaunch(static_cast<cudaGraphExec_t>(executable_.get()), handle_of(stream));
  });
}

}  // namespace tessera::device
