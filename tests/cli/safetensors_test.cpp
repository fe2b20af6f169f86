// The safetensors reader on good files and on everything that can be wrong with one.
#include "io/safetensors.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "cli/file_images.hpp"

namespace tessera::cli {
namespace {

using test::bytes_of_values;
using test::little_endian;
using test::safetensors_image;

std::span<const std::byte> bytes(const std::string& text) { return std::as_bytes(std::span(text)); }

std::string error_of(const std::string& image) {
  return Safetensors::parse(bytes(image)).status().message();
}

// One tensor "x" with these fields over 8 bytes of data.
std::string error_of_fields(const std::string& fields) {
  return error_of(safetensors_image("{\"x\":{" + fields + "}}", std::string(8, '\0')));
}

TEST(Safetensors, ReadsEveryDtype) {
  struct Case {
    const char* name;
    DType as;
    std::string data;
    double second;
  };
  const Case cases[] = {
      {"F16", DType::f16, bytes_of_values<std::uint16_t>({0, 0x3c00}), 1},
      {"BF16", DType::bf16, bytes_of_values<std::uint16_t>({0, 0x3f80}), 1},
      {"F32", DType::f32, bytes_of_values<float>({0, 1.5f}), 1.5},
      {"F64", DType::f64, bytes_of_values<double>({0, 0.1}), 0.1},
      {"I32", DType::i32, bytes_of_values<std::int32_t>({0, -9}), -9},
      {"I64", DType::i32, bytes_of_values<std::int64_t>({0, 1 << 30}), 1 << 30},
      {"U8", DType::i32, bytes_of_values<std::uint8_t>({0, 200}), 200},
      {"BOOL", DType::boolean, bytes_of_values<std::uint8_t>({0, 1}), 1},
  };
  for (const Case& c : cases) {
    const std::string header = std::string("{\"x\":{\"dtype\":\"") + c.name +
                               "\",\"shape\":[2],\"data_offsets\":[0," +
                               std::to_string(c.data.size()) + "]}}";
    const std::string image = safetensors_image(header, c.data);
    const Result<Safetensors> file = Safetensors::parse(bytes(image));
    ASSERT_TRUE(file.ok()) << file.status().message();
    const Result<ArrayView> array = file->tensor("x");
    ASSERT_TRUE(array.ok()) << array.status().message();
    const Result<HostTensor> tensor = to_host_tensor(array.value(), c.as);
    ASSERT_TRUE(tensor.ok()) << tensor.status().message();
    EXPECT_EQ(tensor->at(0), 0);
    EXPECT_EQ(tensor->at(1), c.second) << c.name;
  }
}

TEST(Safetensors, ReadsSeveralTensorsInAnyOrderWithMetadata) {
  const std::string header =
      R"({"b":{"shape":[1,2],"dtype":"F32","data_offsets":[4,12]},)"
      R"("__metadata__":{"format":"pt","note":"\u00e9"},)"
      R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
      R"("none":{"dtype":"F32","shape":[0,7],"data_offsets":[12,12]},)"
      R"("other":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[12,14]}}   )";
  const std::string image =
      safetensors_image(header, bytes_of_values<float>({1, 2, 3}) + std::string(2, '\0'));
  const Result<Safetensors> file = Safetensors::parse(bytes(image));
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_EQ(file->names(), (std::vector<std::string>{"a", "b", "none", "other"}));
  EXPECT_EQ(to_host_tensor(file->tensor("b").value(), DType::f32)->at(1), 3);
  EXPECT_EQ(to_host_tensor(file->tensor("none").value(), DType::f32)->elements(), 0);
  EXPECT_EQ(file->tensor("c").status().message(),
            "no tensor 'c': expected one of a, b, none, other");
  EXPECT_EQ(file->tensor("other").status().message(),
            "dtype F8_E4M3: expected F16, BF16, F32, F64, I32, I64, BOOL or U8");
}

TEST(Safetensors, ListsSomeOfManyNames) {
  std::string header = "{";
  for (int i = 10; i < 30; ++i) {
    header +=
        "\"t" + std::to_string(i) + "\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},";
  }
  header.back() = '}';
  const std::string image = safetensors_image(header, "");
  EXPECT_EQ(Safetensors::parse(bytes(image))->tensor("x").status().message(),
            "no tensor 'x': expected one of t10, t11, t12, t13, t14, t15, t16, t17, …");
}

TEST(Safetensors, RefusesHeaderLengthsBeyondTheFile) {
  EXPECT_EQ(error_of("1234567"), "not a safetensors file: expected an 8-byte header length");
  EXPECT_EQ(error_of(little_endian(3, 8) + "{}"),
            "safetensors header length 3: expected at most the 2 bytes that follow it");
  EXPECT_EQ(error_of(little_endian(~0ull, 8) + "{}"),
            "safetensors header length 18446744073709551615: expected at most the 2 bytes that "
            "follow it");
  EXPECT_EQ(error_of(little_endian(0, 8)),
            "safetensors: byte 1 of the header: expected UTF-8 JSON");
}

TEST(Safetensors, RefusesOffsetsThatDoNotFit) {
  const std::string type = R"("dtype":"F32","shape":[2],)";
  EXPECT_EQ(error_of_fields(type + R"("data_offsets":[0,8])"), "");
  EXPECT_EQ(error_of_fields(type + R"("data_offsets":[0,9])"),
            "safetensors: tensor 'x': data_offsets [0, 9], expected begin ≤ end ≤ 8");
  EXPECT_EQ(error_of_fields(type + R"("data_offsets":[8,0])"),
            "safetensors: tensor 'x': data_offsets [8, 0], expected begin ≤ end ≤ 8");
  EXPECT_EQ(error_of_fields(type + R"("data_offsets":[0,8,8])"),
            "safetensors: tensor 'x': data_offsets [0, 8, 8], expected begin ≤ end ≤ 8");
  EXPECT_EQ(error_of_fields(type + R"("data_offsets":[])"),
            "safetensors: tensor 'x': data_offsets [], expected begin ≤ end ≤ 8");
  EXPECT_EQ(error_of_fields(type + R"("data_offsets":[0,4])"),
            "safetensors: tensor 'x': 4 bytes, expected 8 from dtype and shape");
  EXPECT_EQ(error_of_fields(type + R"("data_offsets":[0,18446744073709551615])"),
            "safetensors: 'x' has the number 18446744073709551615: expected a tensor's dtype, "
            "shape or data_offsets");
  EXPECT_EQ(error_of_fields(type + R"("data_offsets":[-1,8])"),
            "safetensors: 'x' has the number -1: expected a tensor's dtype, shape or data_offsets");
  EXPECT_EQ(error_of_fields(R"("dtype":"F32","shape":[1],"data_offsets":[0,4])"),
            "safetensors: 8 bytes of data: expected the 4 of its tensors");
  EXPECT_EQ(error_of_fields(R"("dtype":"F32","shape":[1],"data_offsets":[4,8])"),
            "safetensors: tensor 'x': data_offsets begin at 4, expected 0: neither overlap nor a "
            "hole");
}

TEST(Safetensors, RefusesOverlaps) {
  const std::string header = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                             R"("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})";
  EXPECT_EQ(error_of(safetensors_image(header, std::string(12, '\0'))),
            "safetensors: tensor 'b': data_offsets begin at 4, expected 8: neither overlap nor a "
            "hole");
}

TEST(Safetensors, RefusesSizesThatOverflow) {
  for (const char* shape :
       {"[4294967296,4294967296]", "[0,4294967296,4294967296]", "[9223372036854775807]"}) {
    EXPECT_EQ(
        error_of_fields(std::string(R"("dtype":"F32","data_offsets":[0,8],"shape":)") + shape),
        "safetensors: tensor 'x': sizes: expected a product that fits 63 bits of bytes")
        << shape;
  }
}

TEST(Safetensors, RefusesOtherForms) {
  const std::string good = R"("dtype":"F32","shape":[2],"data_offsets":[0,8])";
  const auto refused = [](const std::string& message) {
    return "safetensors: 'x' has " + message + ": expected a tensor's dtype, shape or data_offsets";
  };
  EXPECT_EQ(error_of_fields(good + R"(,"dtype":"F32")"),
            "safetensors: tensor 'x': expected dtype, shape and data_offsets, once each");
  EXPECT_EQ(error_of_fields(good + R"(,"more":1)"),
            "safetensors: tensor 'x': expected dtype, shape and data_offsets, once each");
  EXPECT_EQ(error_of_fields(R"("dtype":"F32","shape":[2])"),
            "safetensors: tensor 'x': expected dtype, shape and data_offsets");
  EXPECT_EQ(error_of_fields(R"("dtype":7)"), refused("a number"));
  EXPECT_EQ(error_of_fields(R"("dtype":null)"), refused("null"));
  EXPECT_EQ(error_of_fields(R"("dtype":true)"), refused("a boolean"));
  EXPECT_EQ(error_of_fields(R"("shape":[1.5])"), refused("the number 1.5"));
  EXPECT_EQ(error_of_fields(R"("shape":["2"])"), refused("a string"));
  EXPECT_EQ(error_of_fields(R"("shape":[[2]])"), refused("an array"));
  EXPECT_EQ(error_of_fields(R"("shape":{})"), refused("an object"));
  EXPECT_EQ(error_of_fields(R"("dtype":["F32"])"), refused("an array"));
  EXPECT_EQ(error_of(safetensors_image("[]", "")),
            "safetensors: header is an array: expected an object");
  EXPECT_EQ(error_of(safetensors_image("7", "")),
            "safetensors: header is a number: expected an object");
  EXPECT_EQ(error_of(safetensors_image(R"({"x":7})", "")), refused("a number"));
  EXPECT_EQ(error_of(safetensors_image(R"({"__metadata__":{"a":{}}})", "")),
            "safetensors: '__metadata__' has an object: expected strings only");
}

TEST(Safetensors, RefusesDuplicateNames) {
  const std::string header = R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
                             R"("a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})";
  EXPECT_EQ(error_of(safetensors_image(header, "")),
            "safetensors: tensor 'a': expected each name once");
}

TEST(Safetensors, RefusesWhatIsNotUtf8Json) {
  EXPECT_EQ(error_of(safetensors_image("{\"\xff\":{}}", "")),
            "safetensors: byte 3 of the header: expected UTF-8 JSON");
  EXPECT_NE(error_of(safetensors_image("{\"a\":", "")), "");
  EXPECT_NE(error_of(safetensors_image("{} x", "")), "");
  EXPECT_NE(error_of(safetensors_image("\xef\xbb\xbf", "")), "");
}

TEST(Safetensors, RefusesDeepJsonWithoutRecursion) {
  const std::string deep(1 << 20, '[');
  EXPECT_EQ(error_of(safetensors_image(deep, "")),
            "safetensors: header is an array: expected an object");
  EXPECT_NE(error_of(safetensors_image("{\"x\":{\"shape\":" + deep, "")), "");
}

TEST(Safetensors, RefusesEveryTruncation) {
  const std::string image = safetensors_image(
      R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", bytes_of_values<float>({1, 2}));
  for (std::size_t n = 0; n < image.size(); ++n) {
    EXPECT_FALSE(Safetensors::parse(bytes(image.substr(0, n))).ok()) << n;
  }
}

}  // namespace
}  // namespace tessera::cli
