#include "app.hpp"

#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "commands.hpp"
#include "error.hpp"
#include "tessera/attention.hpp"

namespace tessera::cli {
namespace {

// Whatever a message quotes (a file name, a flag's value), the report stays one line.
int report(std::string message, int exit_code) {
  for (char& c : message) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  }
  fmt::print(stderr, "tessera: {}\n", message);
  return exit_code;
}

std::string command_names(const CLI::App& app) {
  std::string names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    names += (names.empty() ? "" : ", ") + command->get_name();
  }
  return names;
}

std::string describe(const CLI::ParseError& error, const CLI::App& app) {
  const std::vector<std::string> unexpected = app.remaining(true);
  if (dynamic_cast<const CLI::ExtrasError*>(&error) == nullptr || unexpected.empty()) {
    return error.what();
  }
  const std::vector<CLI::App*> commands = app.get_subcommands();
  if (commands.empty()) return unexpected.front() + ": expected " + command_names(app);
  return fmt::format("{0}: expected a flag of {1}, see tessera {1} --help", unexpected.front(),
                     commands.front()->get_name());
}

int parse_and_run(int argc, const char* const* argv) {
  CLI::App app("Attention in tiles: exact, block-sparse and quantised.", "tessera");
  app.set_version_flag("--version", fmt::format("tessera {}", version()));
  app.footer(
      "Exit codes: 0 good, 1 a check failed, 2 bad input.\n"
      "Example: tessera run --q x.safetensors:q --k x.safetensors:k --v x.safetensors:v "
      "--causal --out o.npy");
  app.require_subcommand(0, 1);
  int exit_code = kGood;
  add_info_command(app, exit_code);
  add_run_command(app, exit_code);
  add_check_command(app, exit_code);
  add_bench_command(app, exit_code);
  add_explain_command(app, exit_code);
  add_calibrate_command(app, exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) {
      app.exit(error);  // prints the help or the version
      return kGood;
    }
    return report(describe(error, app), kBadInput);
  }
  if (app.get_subcommands().empty()) {
    return report("no command: expected " + command_names(app), kBadInput);
  }
  return exit_code;
}

}  // namespace

int run_app(int argc, const char* const* argv) {
  try {
    return parse_and_run(argc, argv);
  } catch (const Error& error) {
    return report(error.what(), kBadInput);
  } catch (const std::bad_alloc&) {
    return report("out of memory", kBadInput);
  } catch (const std::exception& error) {
    return report(error.what(), kBadInput);
  }
}

}  // namespace tessera::cli
