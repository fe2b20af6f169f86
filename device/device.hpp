// Device memory, streams and timing for the edges: the command line and the tests. The library
// itself takes pointers and streams from its caller and uses none of this.
//
// The build links cuda.cpp where a CUDA toolkit was found, else absent.cpp. Every call takes a
// Device; on the CPU memory is the host's and there are no streams to wait for.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include "tessera/status.hpp"
#include "tessera/tensor.hpp"

namespace tessera::device {

/// Devices of this type that can be used: 1 for the CPU, 0 for CUDA without a driver or a device.
int count(DeviceType type);

/// What a device says about itself.
struct Properties {
  std::string name;    ///< E.g. "NVIDIA H200".
  std::string driver;  ///< Its version and the newest CUDA that it supports, "580.95 (CUDA 13.0)".
  std::size_t memory_bytes = 0;
  std::size_t l2_bytes = 0;
};

/// Properties of a CUDA device.
Result<Properties> properties(Device device);

/// Memory in use on a CUDA device, by all processes.
Result<std::size_t> memory_in_use(Device device);

/// Work in order on one CUDA device; other streams, the default one too, do not wait for it.
class Stream {
 public:
  static Result<Stream> create(Device device);
  /// An empty one, whose handle is null.
  Stream() = default;

  /// The cudaStream_t.
  void* handle() const { return handle_.get(); }
  Device device() const { return device_; }
  /// Returns when everything enqueued so far is done, with the error of whatever failed.
  Status synchronize() const;

 private:
  Device device_;
  std::shared_ptr<void> handle_;
};

/// Owns memory on a device, aligned to at least 64 bytes and uninitialised. Movable.
class Buffer {
 public:
  static Result<Buffer> allocate(std::size_t bytes, Device device);
  /// No memory, zero bytes.
  Buffer() = default;

  void* data() const { return memory_.get(); }
  std::size_t bytes() const { return bytes_; }
  Device device() const { return device_; }

 private:
  struct Free {
    Device device;
    void operator()(void* memory) const;
  };

  std::size_t bytes_ = 0;
  Device device_;
  std::unique_ptr<void, Free> memory_;
};

/// Memory on some device.
struct Place {
  void* data = nullptr;
  Device device;
};

/// Copies between any two devices and returns when the bytes have arrived. Work on streams is not
/// waited for.
Status copy(Place to, Place from, std::size_t bytes);

/// Sets every byte and returns when that is done.
Status fill(Place to, unsigned char value, std::size_t bytes);

/// The same on a CUDA device, enqueued.
Status copy(Place to, Place from, std::size_t bytes, const Stream& stream);
Status fill(Place to, unsigned char value, std::size_t bytes, const Stream& stream);

/// Returns when all work of a device is done, with the error of whatever failed.
Status synchronize(Device device);

/// Time between two points of a stream, by events.
class Timer {
 public:
  static Result<Timer> create(const Stream& stream);

  Status start();
  Status stop();
  /// Waits for both points.
  Result<double> milliseconds() const;

 private:
  Timer() = default;

  Stream stream_;
  std::shared_ptr<void> begin_, end_;
};

/// Work of one stream, recorded once and then enqueued as a whole.
class Graph {
 public:
  /// Records what `enqueue` enqueues on the stream, none of which runs. Fails with `enqueue`'s
  /// error, or with the device's where it did what cannot be recorded: waited, allocated, or used
  /// another stream.
  static Result<Graph> record(const Stream& stream, const std::function<Status()>& enqueue);

  Status launch(const Stream& stream) const;

 private:
  Graph() = default;

  std::shared_ptr<void> executable_;
};

}  // namespace tessera::device
