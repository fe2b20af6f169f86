#include "progress.hpp"

#include <fmt/core.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace tessera::cli {
namespace {

constexpr int kBarWidth = 24;

int terminal_columns() {
  winsize size{};
  const bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : 80;
}

}  // namespace

ProgressBar::ProgressBar(int total)
    : visible_(isatty(STDERR_FILENO) == 1), total_(std::max(1, total)) {}

ProgressBar::~ProgressBar() { erase(); }

void ProgressBar::step(const std::string& label) {
  ++begun_;
  if (!visible_) return;
  const int filled = kBarWidth * std::min(begun_ - 1, total_) / total_;
  std::string line = fmt::format("[{:#<{}}{:.<{}}] {}/{} {}", "", filled, "", kBarWidth - filled,
                                 begun_, total_, label);
  line.resize(std::min<std::size_t>(line.size(), terminal_columns() - 1));
  fmt::print(stderr, "\r\033[K{}", line);
  std::fflush(stderr);
}

void ProgressBar::erase() {
  if (!visible_) return;
  fmt::print(stderr, "\r\033[K");
  std::fflush(stderr);
}

}  // namespace tessera::cli
