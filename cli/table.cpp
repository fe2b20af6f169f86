#include "table.hpp"

#include <algorithm>
#include <cstddef>
#include <string_view>

namespace tessera::cli {
namespace {

std::size_t characters(std::string_view text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

}  // namespace

std::string Table::to_string() const {
  std::vector<std::string> titles;
  for (const Column& column : columns_) titles.push_back(column.title);

  std::vector<std::size_t> widths(columns_.size(), 0);
  const auto measure = [&](const std::vector<std::string>& cells) {
    for (std::size_t c = 0; c < std::min(cells.size(), widths.size()); ++c) {
      widths[c] = std::max(widths[c], characters(cells[c]));
    }
  };
  measure(titles);
  for (const auto& row : rows_) measure(row);

  std::string text;
  const auto print = [&](const std::vector<std::string>& cells) {
    std::string line;
    for (std::size_t c = 0; c < std::min(cells.size(), widths.size()); ++c) {
      const std::string padding(widths[c] - characters(cells[c]), ' ');
      if (c > 0) line += "  ";
      line += columns_[c].align == Align::right ? padding + cells[c] : cells[c] + padding;
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  };
  print(titles);
  for (const auto& row : rows_) print(row);
  return text;
}

}  // namespace tessera::cli
