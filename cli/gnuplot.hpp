// gnuplot as a child process.
#pragma once

#include <array>
#include <string>

namespace tessera::cli {

/// A new folder among the system's temporary files, removed with all that is in it on destruction.
class TemporaryFolder {
 public:
  /// Throws Error if none can be made.
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  /// The path of `name` inside.
  std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

/// Runs gnuplot on a script in `folder`, without a shell. False if the machine has no gnuplot;
/// throws Error with its first complaint if it fails.
bool run_gnuplot(const std::string& script, const TemporaryFolder& folder);

/// Told apart with any colour vision (Okabe and Ito 2008), and by the points' shapes.
inline constexpr std::array<const char*, 7> kPlotColours{"#0072B2", "#D55E00", "#009E73", "#CC79A7",
                                                         "#E69F00", "#56B4E9", "#000000"};
inline constexpr std::array<int, 7> kPlotPoints{7, 5, 9, 13, 11, 4, 6};

/// `text` in quotes, as a script has it.
std::string plot_string(const std::string& text);
bool is_svg(const std::string& output);
/// What to set as terminal for an output whose name ends in .png or .svg.
std::string plot_terminal(const std::string& output);

/// Makes the folder of the prefix. Throws Error, naming --plot, if `path` could not be written.
void check_plot(const std::string& prefix, const std::string& path);
/// Gives a plot that was drawn in a temporary folder its place, in one step.
void keep_plot(const std::string& drawn, const std::string& path);

}  // namespace tessera::cli
