#include "io/npy.hpp"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <optional>
#include <string_view>
#include <system_error>
#include <utility>

#include "error.hpp"

namespace tessera::cli {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr std::size_t kMaxDimensions = 32;  // NumPy's own limit in these format versions

struct NamedType {
  std::string_view descr;
  ElementType type;
};
constexpr std::array kTypes = {
    NamedType{"<f2", ElementType::f16},    NamedType{"<f4", ElementType::f32},
    NamedType{"<f8", ElementType::f64},    NamedType{"|i1", ElementType::i8},
    NamedType{"<i2", ElementType::i16},    NamedType{"<i4", ElementType::i32},
    NamedType{"<i8", ElementType::i64},    NamedType{"|u1", ElementType::u8},
    NamedType{"|b1", ElementType::boolean}};

Status invalid(std::string message) {
  return Status(StatusCode::invalid_argument, std::move(message));
}

// The header is a Python dict literal with the keys descr, fortran_order and shape.
class HeaderParser {
 public:
  explicit HeaderParser(std::string_view text) : rest_(text) {}

  Result<ArrayView> parse() {
    if (!take('{')) return invalid("npy header: expected '{'");
    while (!take('}')) {
      const std::optional<std::string_view> key = take_string();
      if (!key || !take(':')) return invalid("npy header: expected a quoted key and ':'");
      const Status status = parse_value(*key);
      if (!status.ok()) return status;
      if (!take(',') && peek() != '}') return invalid("npy header: expected ',' or '}'");
    }
    skip_space();
    if (!rest_.empty()) return invalid("npy header: expected nothing after '}'");
    if (!type_ || !column_major_ || !sizes_) {
      return invalid("npy header: expected the keys 'descr', 'fortran_order' and 'shape'");
    }
    return ArrayView{*type_, std::move(*sizes_), *column_major_, {}};
  }

 private:
  void skip_space() {
    const std::size_t n = rest_.find_first_not_of(" \t\r\n");
    rest_.remove_prefix(std::min(n, rest_.size()));
  }

  char peek() {
    skip_space();
    return rest_.empty() ? '\0' : rest_.front();
  }

  bool take(char c) {
    if (peek() != c) return false;
    rest_.remove_prefix(1);
    return true;
  }

  bool take_word(std::string_view word) {
    skip_space();
    if (!rest_.starts_with(word)) return false;
    rest_.remove_prefix(word.size());
    return true;
  }

  // None of the strings that belong here needs an escape.
  std::optional<std::string_view> take_string() {
    const char quote = peek();
    if (quote != '\'' && quote != '"') return std::nullopt;
    const std::size_t end = rest_.find(quote, 1);
    if (end == std::string_view::npos) return std::nullopt;
    const std::string_view text = rest_.substr(1, end - 1);
    rest_.remove_prefix(end + 1);
    return text;
  }

  std::optional<std::int64_t> take_size() {
    skip_space();
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), value);
    if (error != std::errc() || value < 0) return std::nullopt;
    rest_.remove_prefix(static_cast<std::size_t>(end - rest_.data()));
    return value;
  }

  Status parse_value(std::string_view key) {
    if (key == "descr" && !type_) return parse_descr();
    if (key == "fortran_order" && !column_major_) return parse_order();
    if (key == "shape" && !sizes_) return parse_shape();
    return invalid("npy header: expected the keys 'descr', 'fortran_order' and 'shape', once each");
  }

  Status parse_descr() {
    const std::optional<std::string_view> descr = take_string();
    for (const NamedType& named : kTypes) {
      if (descr == named.descr) {
        type_ = named.type;
        return {};
      }
    }
    return invalid(
        "npy descr: expected '<f2', '<f4', '<f8', '|i1', '<i2', '<i4', '<i8', '|u1' or '|b1'");
  }

  Status parse_order() {
    if (take_word("True")) {
      column_major_ = true;
    } else if (take_word("False")) {
      column_major_ = false;
    } else {
      return invalid("npy fortran_order: expected True or False");
    }
    return {};
  }

  Status parse_shape() {
    if (!take('(')) return invalid("npy shape: expected '('");
    sizes_.emplace();
    while (!take(')')) {
      const std::optional<std::int64_t> size = take_size();
      if (!size) return invalid("npy shape: expected sizes of 0 or more that fit 63 bits");
      if (sizes_->size() == kMaxDimensions) {
        return invalid(fmt::format("npy shape: expected at most {} dimensions", kMaxDimensions));
      }
      sizes_->push_back(*size);
      if (!take(',') && peek() != ')') return invalid("npy shape: expected ',' or ')'");
    }
    return {};
  }

  std::string_view rest_;
  std::optional<ElementType> type_;
  std::optional<bool> column_major_;
  std::optional<std::vector<std::int64_t>> sizes_;
};

}  // namespace

Result<ArrayView> parse_npy(std::span<const std::byte> file) {
  const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
  if (!text.starts_with(kMagic)) return invalid("not an npy file: expected the magic \\x93NUMPY");
  constexpr std::size_t kVersionEnd = 8;
  if (text.size() < kVersionEnd) return invalid("npy file ends inside its version");
  const int major = static_cast<unsigned char>(text[6]);
  const int minor = static_cast<unsigned char>(text[7]);
  if (major < 1 || major > 3 || minor != 0) {
    return invalid(fmt::format("npy version {}.{}: expected 1.0, 2.0 or 3.0", major, minor));
  }
  const std::size_t length_bytes = major == 1 ? 2 : 4;
  const std::size_t header_begin = kVersionEnd + length_bytes;
  if (text.size() < header_begin) return invalid("npy file ends inside its header length");
  std::size_t header_bytes = 0;
  for (std::size_t i = 0; i < length_bytes; ++i) {
    header_bytes |= static_cast<std::size_t>(file[kVersionEnd + i]) << 8 * i;
  }
  if (header_bytes > text.size() - header_begin) {
    return invalid(fmt::format("npy header length {}: expected at most the {} bytes that follow it",
                               header_bytes, text.size() - header_begin));
  }
  Result<ArrayView> array = HeaderParser(text.substr(header_begin, header_bytes)).parse();
  if (!array.ok()) return array;
  const Result<std::int64_t> bytes = bytes_of(array->type, array->sizes);
  if (!bytes.ok()) return invalid("npy shape: " + bytes.status().message());
  const std::size_t found = text.size() - header_begin - header_bytes;
  if (static_cast<std::size_t>(bytes.value()) != found) {
    return invalid(fmt::format("npy shape {} of {}: expected {} bytes of data, found {}",
                               sizes_to_string(array->sizes), name_of(array->type), bytes.value(),
                               found));
  }
  array->bytes = file.subspan(header_begin + header_bytes);
  return array;
}

std::string npy_header(const HostTensor& tensor) {
  std::string_view descr;
  switch (tensor.dtype()) {
    case DType::f16:
      descr = "<f2";
      break;
    case DType::f32:
      descr = "<f4";
      break;
    case DType::f64:
      descr = "<f8";
      break;
    case DType::i32:
      descr = "<i4";
      break;
    case DType::boolean:
      descr = "|b1";
      break;
    case DType::bf16:
      fail("dtype bf16: expected one that .npy has");
  }
  std::string dict = fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({},), }}",
                                 descr, fmt::join(tensor.sizes(), ", "));
  constexpr std::size_t kPrefix = 10;  // magic, version, u16 length
  const std::size_t padding = 63 - (kPrefix + dict.size()) % 64;
  dict.append(padding, ' ');
  dict.push_back('\n');
  std::string header(kMagic);
  header.push_back('\x01');
  header.push_back('\x00');
  header.push_back(static_cast<char>(dict.size() & 0xff));
  header.push_back(static_cast<char>(dict.size() >> 8));
  return header + dict;
}

}  // namespace tessera::cli
