#include "gnuplot.hpp"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <span>
#include <system_error>

#include "error.hpp"
#include "io/file.hpp"

extern char** environ;

namespace tessera::cli {
namespace {

namespace fs = std::filesystem;

class SpawnActions {
 public:
  SpawnActions() { posix_spawn_file_actions_init(&actions_); }
  ~SpawnActions() { posix_spawn_file_actions_destroy(&actions_); }
  SpawnActions(const SpawnActions&) = delete;
  SpawnActions& operator=(const SpawnActions&) = delete;

  void open(int descriptor, const std::string& path, int flags) {
    posix_spawn_file_actions_addopen(&actions_, descriptor, path.c_str(), flags, 0600);
  }
  void duplicate(int from, int to) { posix_spawn_file_actions_adddup2(&actions_, from, to); }
  const posix_spawn_file_actions_t* get() const { return &actions_; }

 private:
  posix_spawn_file_actions_t actions_;
};

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    if (line.find_first_not_of(" \t^") != std::string::npos) return line;
  }
  return "no message";
}

}  // namespace

TemporaryFolder::TemporaryFolder() {
  std::error_code error;
  const fs::path parent = fs::temp_directory_path(error);
  path_ = (error ? fs::path("/tmp") : parent) / "tessera-XXXXXX";
  if (mkdtemp(path_.data()) == nullptr) {
    fail("TMPDIR: {}, expected a folder to write in ({})", path_, std::strerror(errno));
  }
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

bool run_gnuplot(const std::string& script, const TemporaryFolder& folder) {
  const std::string script_path = folder.file("plot.gp");
  const std::string log_path = folder.file("gnuplot.log");
  std::ofstream file(script_path);
  file << script;
  file.close();
  if (!file) fail("{}: could not be written", script_path);

  SpawnActions actions;
  actions.open(STDIN_FILENO, "/dev/null", O_RDONLY);
  actions.open(STDOUT_FILENO, log_path, O_WRONLY | O_CREAT | O_TRUNC);
  actions.duplicate(STDOUT_FILENO, STDERR_FILENO);
  std::string name = "gnuplot";
  std::string argument = script_path;
  char* const arguments[] = {name.data(), argument.data(), nullptr};
  pid_t child = 0;
  const int spawned =
      posix_spawnp(&child, name.c_str(), actions.get(), nullptr, arguments, environ);
  if (spawned == ENOENT) return false;
  if (spawned != 0) fail("gnuplot: {}", std::strerror(spawned));
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  // How a missing program shows where the new process looks for it itself.
  if (WIFEXITED(status) && WEXITSTATUS(status) == 127) return false;
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) fail("gnuplot: {}", first_line(log_path));
  return true;
}

std::string plot_string(const std::string& text) {
  std::string result = "'";
  for (char c : text) result += c == '\'' ? std::string("''") : std::string(1, c);
  return result + "'";
}

bool is_svg(const std::string& output) { return fs::path(output).extension() == ".svg"; }

std::string plot_terminal(const std::string& output) {
  return is_svg(output) ? "svg size 960,640 noenhanced font 'Helvetica,16' background 'white'"
                        : "pngcairo size 1440,960 noenhanced font 'Helvetica,20'";
}

void check_plot(const std::string& prefix, const std::string& path) {
  const fs::path folder = fs::path(prefix).parent_path();
  std::error_code error;
  if (!folder.empty()) fs::create_directories(folder, error);
  if (error) fail("--plot: {}, expected a prefix in a folder that can be made", prefix);
  const OutputFile writable("--plot", path);
}

void keep_plot(const std::string& drawn, const std::string& path) {
  const MappedFile bytes(drawn);
  OutputFile file("--plot", path);
  const std::array<std::span<const std::byte>, 1> pieces{bytes.bytes()};
  file.write(pieces);
  file.commit();
}

}  // namespace tessera::cli
