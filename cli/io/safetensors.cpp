#include "io/safetensors.hpp"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

namespace tessera::cli {
namespace {

struct NamedType {
  std::string_view name;
  ElementType type;
};
constexpr std::array kTypes = {
    NamedType{"F16", ElementType::f16}, NamedType{"BF16", ElementType::bf16},
    NamedType{"F32", ElementType::f32}, NamedType{"F64", ElementType::f64},
    NamedType{"I32", ElementType::i32}, NamedType{"I64", ElementType::i64},
    NamedType{"U8", ElementType::u8},   NamedType{"BOOL", ElementType::boolean}};

std::optional<ElementType> type_of(std::string_view name) {
  for (const NamedType& named : kTypes) {
    if (name == named.name) return named.type;
  }
  return std::nullopt;
}

Status invalid(std::string message) {
  return Status(StatusCode::invalid_argument, std::move(message));
}

struct RawEntry {
  std::optional<std::string> dtype;
  std::optional<std::vector<std::int64_t>> sizes;
  std::optional<std::vector<std::int64_t>> offsets;
};

// Takes the header's events one by one and accepts nothing but the format's form, so neither depth
// nor the size of a value costs more than the header's bytes.
class HeaderHandler final : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::map<std::string, RawEntry> entries;
  std::string error;

  bool null() override { return unexpected("null"); }
  bool boolean(bool) override { return unexpected("a boolean"); }
  bool number_float(number_float_t, const string_t& text) override {
    return unexpected("the number " + text.substr(0, kQuoted));
  }
  bool binary(binary_t&) override { return unexpected("binary data"); }

  bool number_integer(number_integer_t value) override {
    return unexpected(fmt::format("the number {}", value));
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ != Place::array) return unexpected("a number");
    if (value > static_cast<number_unsigned_t>(std::numeric_limits<std::int64_t>::max())) {
      return unexpected(fmt::format("the number {}", value));
    }
    numbers_->push_back(static_cast<std::int64_t>(value));
    return true;
  }

  bool string(string_t& value) override {
    if (place_ == Place::metadata) return true;
    if (place_ != Place::tensor || field_ != "dtype") return unexpected("a string");
    entry_->dtype = std::move(value);
    return true;
  }

  bool start_object(std::size_t) override {
    switch (place_) {
      case Place::outside:
        place_ = Place::header;
        return true;
      case Place::header:
        place_ = name_ == "__metadata__" ? Place::metadata : Place::tensor;
        return true;
      default:
        return unexpected("an object");
    }
  }

  bool end_object() override {
    if (place_ == Place::tensor && (!entry_->dtype || !entry_->sizes || !entry_->offsets)) {
      return stop(fmt::format("tensor '{}': expected dtype, shape and data_offsets", name()));
    }
    place_ = place_ == Place::header ? Place::outside : Place::header;
    return true;
  }

  bool start_array(std::size_t) override {
    if (place_ != Place::tensor) return unexpected("an array");
    if (field_ == "shape") {
      numbers_ = &entry_->sizes.emplace();
    } else if (field_ == "data_offsets") {
      numbers_ = &entry_->offsets.emplace();
    } else {
      return unexpected("an array");
    }
    place_ = Place::array;
    return true;
  }

  bool end_array() override {
    place_ = Place::tensor;
    return true;
  }

  bool key(string_t& key) override {
    switch (place_) {
      case Place::header:
        name_ = key;
        if (!names_.insert(key).second) {
          return stop(fmt::format("tensor '{}': expected each name once", name()));
        }
        if (key != "__metadata__") entry_ = &entries[key];
        return true;
      case Place::tensor:
        field_ = key;
        return new_field();
      default:
        return true;
    }
  }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    return stop(fmt::format("byte {} of the header: expected UTF-8 JSON", position));
  }

 private:
  enum class Place { outside, header, metadata, tensor, array };
  static constexpr std::size_t kQuoted = 64;

  std::string name() const { return name_.substr(0, kQuoted); }

  bool new_field() {
    const bool fresh = (field_ == "dtype" && !entry_->dtype) ||
                       (field_ == "shape" && !entry_->sizes) ||
                       (field_ == "data_offsets" && !entry_->offsets);
    if (fresh) return true;
    return stop(
        fmt::format("tensor '{}': expected dtype, shape and data_offsets, once each", name()));
  }

  bool unexpected(const std::string& what) {
    if (place_ == Place::outside) return stop("header is " + what + ": expected an object");
    return stop(fmt::format(
        "'{}' has {}: expected {}", name(), what,
        name_ == "__metadata__" ? "strings only" : "a tensor's dtype, shape or data_offsets"));
  }

  bool stop(std::string message) {
    error = std::move(message);
    return false;
  }

  Place place_ = Place::outside;
  std::string name_;
  std::string field_;
  std::set<std::string> names_;
  RawEntry* entry_ = nullptr;
  std::vector<std::int64_t>* numbers_ = nullptr;
};

struct Extent {
  std::int64_t begin;
  std::int64_t end;
  std::string_view name;
};

// The tensors tile the data: in order of offset each begins where the one before ends.
Status check_extents(std::vector<Extent> extents, std::int64_t data_bytes) {
  std::sort(extents.begin(), extents.end(), [](const Extent& x, const Extent& y) {
    return std::pair(x.begin, x.end) < std::pair(y.begin, y.end);
  });
  std::int64_t covered = 0;
  for (const Extent& extent : extents) {
    if (extent.begin != covered) {
      return invalid(
          fmt::format("tensor '{}': data_offsets begin at {}, expected {}: neither "
                      "overlap nor a hole",
                      extent.name, extent.begin, covered));
    }
    covered = extent.end;
  }
  if (covered != data_bytes) {
    return invalid(
        fmt::format("{} bytes of data: expected the {} of its tensors", data_bytes, covered));
  }
  return {};
}

Status check_entry(const RawEntry& entry, const std::string& name, std::int64_t data_bytes) {
  const std::vector<std::int64_t>& offsets = *entry.offsets;
  if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] > data_bytes) {
    return invalid(fmt::format(
        "tensor '{}': data_offsets [{}], expected begin ≤ end ≤ {}", name,
        fmt::join(offsets.begin(),
                  offsets.begin() + std::min<std::ptrdiff_t>(std::ssize(offsets), 4), ", "),
        data_bytes));
  }
  const std::optional<ElementType> type = type_of(*entry.dtype);
  if (!type) return {};
  const Result<std::int64_t> bytes = bytes_of(*type, *entry.sizes);
  if (!bytes.ok()) {
    return invalid(fmt::format("tensor '{}': {}", name, bytes.status().message()));
  }
  if (bytes.value() != offsets[1] - offsets[0]) {
    return invalid(fmt::format("tensor '{}': {} bytes, expected {} from dtype and shape", name,
                               offsets[1] - offsets[0], bytes.value()));
  }
  return {};
}

}  // namespace

Result<Safetensors> Safetensors::parse(std::span<const std::byte> file) {
  constexpr std::size_t kLengthBytes = 8;
  if (file.size() < kLengthBytes) {
    return invalid("not a safetensors file: expected an 8-byte header length");
  }
  std::uint64_t header_bytes = 0;
  for (std::size_t i = 0; i < kLengthBytes; ++i) {
    header_bytes |= static_cast<std::uint64_t>(file[i]) << 8 * i;
  }
  if (header_bytes > file.size() - kLengthBytes) {
    return invalid(
        fmt::format("safetensors header length {}: expected at most the {} bytes that follow it",
                    header_bytes, file.size() - kLengthBytes));
  }
  const std::span<const std::byte> header = file.subspan(kLengthBytes, header_bytes);
  const std::span<const std::byte> data = file.subspan(kLengthBytes + header_bytes);
  const auto data_bytes = static_cast<std::int64_t>(data.size());

  HeaderHandler handler;
  const char* text = reinterpret_cast<const char*>(header.data());
  if (!nlohmann::json::sax_parse(text, text + header.size(), &handler)) {
    return invalid("safetensors: " + handler.error);
  }
  Safetensors result;
  std::vector<Extent> extents;
  for (auto& [name, raw] : handler.entries) {
    const Status status = check_entry(raw, name.substr(0, 64), data_bytes);
    if (!status.ok()) return invalid("safetensors: " + status.message());
    const std::int64_t begin = (*raw.offsets)[0];
    const std::int64_t end = (*raw.offsets)[1];
    extents.push_back({begin, end, name});
    Entry& entry = result.entries_[name];
    entry.array.bytes =
        data.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
    entry.array.type = type_of(*raw.dtype).value_or(ElementType::u8);
    entry.array.sizes = std::move(*raw.sizes);
    entry.dtype = std::move(*raw.dtype);
  }
  const Status status = check_extents(std::move(extents), data_bytes);
  if (!status.ok()) return invalid("safetensors: " + status.message());
  return result;
}

Result<ArrayView> Safetensors::tensor(const std::string& name) const {
  const auto entry = entries_.find(name);
  if (entry == entries_.end()) {
    constexpr std::size_t kListed = 8;
    std::vector<std::string> some = names();
    const bool more = some.size() > kListed;
    some.resize(std::min(some.size(), kListed));
    return invalid(fmt::format("no tensor '{}': expected one of {}{}", name, fmt::join(some, ", "),
                               more ? ", …" : ""));
  }
  if (!type_of(entry->second.dtype)) {
    return invalid(fmt::format("dtype {}: expected F16, BF16, F32, F64, I32, I64, BOOL or U8",
                               entry->second.dtype.substr(0, 64)));
  }
  return entry->second.array;
}

std::vector<std::string> Safetensors::names() const {
  std::vector<std::string> names;
  for (const auto& [name, entry] : entries_) names.push_back(name);
  return names;
}

}  // namespace tessera::cli
