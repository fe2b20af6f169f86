#include "bench/gnuplot.hpp"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "error.hpp"

extern char** environ;

namespace tessera::cli::bench {
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

}  // namespace tessera::cli::bench
