// The subcommands. Each function adds one to `app` with its options and a callback that runs it and
// sets `exit_code` if it is not 0; bad input is thrown as Error.
#pragma once

namespace CLI {
class App;
}

namespace tessera::cli {

void add_info_command(CLI::App& app, int& exit_code);
void add_run_command(CLI::App& app, int& exit_code);
void add_check_command(CLI::App& app, int& exit_code);
void add_bench_command(CLI::App& app, int& exit_code);
void add_explain_command(CLI::App& app, int& exit_code);
void add_calibrate_command(CLI::App& app, int& exit_code);

}  // namespace tessera::cli
