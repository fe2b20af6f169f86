// A build without a CUDA toolkit: the CPU alone.
#include <cstring>

#include "device/host.hpp"

namespace tessera::device {
namespace {

Status absent() {
  return {StatusCode::unsupported, "device: cuda, this build has no CUDA support"};
}

}  // namespace

int count(DeviceType type) { return type == DeviceType::cpu ? 1 : 0; }

Result<Properties> properties(Device) { return absent(); }

Result<std::size_t> memory_in_use(Device) { return absent(); }

Result<Stream> Stream::create(Device) { return absent(); }

Status Stream::synchronize() const { return absent(); }

Result<Buffer> Buffer::allocate(std::size_t bytes, Device device) {
  if (!on_host(device)) return absent();
  Buffer buffer;
  buffer.memory_ = {allocate_host(bytes), Free{device}};
  if (bytes > 0 && buffer.data() == nullptr) return short_of_memory(bytes, device);
  buffer.bytes_ = bytes;
  return buffer;
}

void Buffer::Free::operator()(void* memory) const { std::free(memory); }

Status copy(Place to, Place from, std::size_t bytes) {
  if (!on_host(to.device) || !on_host(from.device)) return absent();
  if (bytes > 0) std::memcpy(to.data, from.data, bytes);
  return {};
}

Status fill(Place to, unsigned char value, std::size_t bytes) {
  if (!on_host(to.device)) return absent();
  if (bytes > 0) std::memset(to.data, value, bytes);
  return {};
}

Status copy(Place, Place, std::size_t, const Stream&) { return absent(); }

Status fill(Place, unsigned char, std::size_t, const Stream&) { return absent(); }

Status synchronize(Device device) { return on_host(device) ? Status() : absent(); }

Result<Timer> Timer::create(const Stream&) { return absent(); }

Status Timer::start() { return absent(); }

Status Timer::stop() { return absent(); }

Result<double> Timer::milliseconds() const { return absent(); }

Result<Graph> Graph::record(const Stream&, const std::function<Status()>&) { return absent(); }

Status Graph::launch(const Stream&) const { return absent(); }

}  // namespace tessera::device
