#include "io/file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <utility>

#include "error.hpp"
#include "io/npy.hpp"

namespace tessera::cli {
namespace {

std::string reason(int error) { return std::generic_category().message(error); }

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int get() const { return fd_; }
  int close() { return ::close(std::exchange(fd_, -1)); }

 private:
  int fd_;
};

// mkstemp makes files private to the user; an output is as readable as any file they create.
mode_t default_mode() {
  const mode_t mask = ::umask(0);
  ::umask(mask);
  return 0666 & ~mask;
}

// Creates the temporary file and stores its name in `name`.
int make_temporary(const std::string& target, std::string& name) {
  const std::string folder = std::filesystem::path(target).parent_path().string();
  std::string pattern = (folder.empty() ? "." : folder) + "/.tessera-XXXXXX";
  const int fd = ::mkstemp(pattern.data());
  if (fd >= 0) name = std::move(pattern);
  return fd;
}

bool write_all(int fd, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
  return true;
}

}  // namespace

MappedFile::MappedFile(const std::string& path) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.get() < 0) fail("{}: cannot open: {}", path, reason(errno));
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) fail("{}: cannot read: {}", path, reason(errno));
  if (!S_ISREG(status.st_mode)) fail("{}: expected a regular file", path);
  bytes_ = static_cast<std::size_t>(status.st_size);
  if (bytes_ == 0) return;
  memory_ = ::mmap(nullptr, bytes_, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (memory_ == MAP_FAILED) fail("{}: cannot map: {}", path, reason(errno));
}

MappedFile::~MappedFile() {
  if (memory_ != nullptr) ::munmap(memory_, bytes_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : memory_(std::exchange(other.memory_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

OutputFile::OutputFile(std::string argument, std::string path)
    : argument_(std::move(argument)), path_(std::move(path)) {
  std::error_code error;
  target_ =
      std::filesystem::weakly_canonical(std::filesystem::absolute(path_, error), error).string();
  if (error) fail("{} {}: cannot write: {}", argument_, path_, error.message());
  struct stat status {};
  if (::stat(target_.c_str(), &status) == 0) {
    if (!S_ISREG(status.st_mode)) fail("{} {}: expected a regular file", argument_, path_);
    if (::access(target_.c_str(), W_OK) != 0) {
      fail("{} {}: cannot write: {}", argument_, path_, reason(errno));
    }
  } else if (errno != ENOENT) {
    fail("{} {}: cannot write: {}", argument_, path_, reason(errno));
  } else if (!std::filesystem::path(path_).has_filename() ||
             std::filesystem::is_symlink(path_, error)) {
    fail("{} {}: expected a file's name", argument_, path_);
  }
  std::string probe;
  const Descriptor file(make_temporary(target_, probe));
  if (file.get() < 0) fail("{} {}: cannot write: {}", argument_, path_, reason(errno));
  ::unlink(probe.c_str());
}

OutputFile::~OutputFile() {
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : argument_(std::move(other.argument_)),
      path_(std::move(other.path_)),
      target_(std::move(other.target_)),
      temporary_(std::exchange(other.temporary_, {})) {}

void OutputFile::write(std::span<const std::span<const std::byte>> pieces) {
  Descriptor file(make_temporary(target_, temporary_));
  bool good = file.get() >= 0 && ::fchmod(file.get(), default_mode()) == 0;
  for (const std::span<const std::byte> piece : pieces) {
    good = good && write_all(file.get(), piece);
  }
  good = good && file.close() == 0;
  if (!good) fail("{} {}: cannot write: {}", argument_, path_, reason(errno));
}

void OutputFile::commit() {
  if (::rename(temporary_.c_str(), target_.c_str()) != 0) {
    fail("{} {}: cannot write: {}", argument_, path_, reason(errno));
  }
  temporary_.clear();
}

void write_npy(OutputFile& file, const HostTensor& tensor) {
  if (tensor.dtype() == DType::bf16) return write_npy(file, tensor.converted(DType::f32));
  const std::string header = npy_header(tensor);
  const std::array<std::span<const std::byte>, 2> pieces = {
      std::as_bytes(std::span(header)),
      std::span(tensor.data(), static_cast<std::size_t>(tensor.bytes()))};
  file.write(pieces);
}

}  // namespace tessera::cli
