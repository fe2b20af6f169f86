// tessera info: what this machine has and what the table can do on it.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <string>

#include "commands.hpp"
#include "table.hpp"
#include "tessera/attention.hpp"

namespace tessera::cli {
namespace {

void print_info() {
  fmt::print("tessera {}\n", version());
  for (const std::string& device : describe_devices()) fmt::print("{}\n", device);
  for (const char* variable : {"TESSERA_FORCE", "TESSERA_THREADS", "TESSERA_LOG"}) {
    if (const char* value = std::getenv(variable)) fmt::print("{}={}\n", variable, value);
  }
  Table table({{"row"}, {"device"}, {"usable"}, {"supports"}});
  for (const Implementation& row : implementations()) {
    table.add({row.name, name_of(row.device), row.available ? "yes" : "no: " + row.unavailable,
               row.supports});
  }
  fmt::print("\nRows of the table, in the order in which they are tried:\n{}", table.to_string());
}

}  // namespace

void add_info_command(CLI::App& app, int&) {
  CLI::App* command =
      app.add_subcommand("info", "Show the machine's devices and the table of implementations");
  command->footer(
      "\"usable\" says whether this machine can run the row; explain says whether the row accepts\n"
      "a given problem.\n"
      "Example:\n"
      "  tessera info");
  command->callback([] { print_info(); });
}

}  // namespace tessera::cli
