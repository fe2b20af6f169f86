// The .npy reader on good files of every kind and on everything that can be wrong with one.
#include "io/npy.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "cli/file_images.hpp"

namespace tessera::cli {
namespace {

using test::bytes_of_values;
using test::npy_dict;
using test::npy_f32;
using test::npy_image;

std::span<const std::byte> bytes(const std::string& text) { return std::as_bytes(std::span(text)); }

HostTensor read(const std::string& image, DType dtype) {
  const Result<ArrayView> array = parse_npy(bytes(image));
  EXPECT_TRUE(array.ok()) << array.status().message();
  Result<HostTensor> tensor = to_host_tensor(array.value(), dtype);
  EXPECT_TRUE(tensor.ok()) << tensor.status().message();
  return std::move(tensor).value();
}

std::string error_of(const std::string& image) {
  return parse_npy(bytes(image)).status().message();
}

std::string conversion_error(const std::string& image, DType dtype) {
  const Result<ArrayView> array = parse_npy(bytes(image));
  EXPECT_TRUE(array.ok()) << array.status().message();
  return to_host_tensor(array.value(), dtype).status().message();
}

TEST(Npy, ReadsF32OfEachVersion) {
  const std::vector<float> values = {1, -2, 3.5f, 0, 1e30f, 6};
  for (int major : {1, 2, 3}) {
    const HostTensor t =
        read(npy_image(npy_dict("<f4", "2, 3"), bytes_of_values(values), major), DType::f32);
    EXPECT_EQ(t.sizes(), (std::vector<std::int64_t>{2, 3}));
    for (int i = 0; i < 6; ++i) EXPECT_EQ(t.at(i), values[i]);
  }
}

TEST(Npy, ReadsKeysInAnyOrderAndEitherQuote) {
  const std::string dict = "{\"shape\": (2,), \"descr\": \"<f4\",\"fortran_order\":False}";
  EXPECT_EQ(read(npy_image(dict, bytes_of_values<float>({1, 2})), DType::f32).at(1), 2);
}

TEST(Npy, TransposesFortranOrder) {
  // Element (i, j, k) of a [2, 3, 2] array holds 100i + 10j + k.
  std::vector<double> column_major;
  for (int k = 0; k < 2; ++k) {
    for (int j = 0; j < 3; ++j) {
      for (int i = 0; i < 2; ++i) column_major.push_back(100 * i + 10 * j + k);
    }
  }
  for (DType dtype : {DType::f64, DType::f32}) {
    const HostTensor t =
        read(npy_image(npy_dict("<f8", "2, 3, 2", "True"), bytes_of_values(column_major)), dtype);
    for (int x = 0; x < 12; ++x) {
      EXPECT_EQ(t.at(x), 100 * (x / 6) + 10 * (x / 2 % 3) + x % 2) << x;
    }
  }
}

TEST(Npy, ConvertsBetweenFloatingPointTypes) {
  const std::string f64 = npy_image(npy_dict("<f8", "3,"), bytes_of_values<double>({0.1, 1, -3}));
  EXPECT_EQ(read(f64, DType::f32).at(0), double{0.1f});
  EXPECT_EQ(read(f64, DType::f16).at(0), 0.0999755859375);
  EXPECT_EQ(read(f64, DType::bf16).at(0), 0.10009765625);
  const std::string f16 =
      npy_image(npy_dict("<f2", "2,"), bytes_of_values<std::uint16_t>({0x3c00, 0xc500}));
  EXPECT_EQ(read(f16, DType::f32).at(0), 1);
  EXPECT_EQ(read(f16, DType::f64).at(1), -5);
}

TEST(Npy, TakesIntegersThatFit) {
  const std::int64_t most = std::numeric_limits<std::int32_t>::max();
  const auto as_i32 = [](const char* descr, const std::string& data) {
    return read(npy_image(npy_dict(descr, "2,"), data), DType::i32);
  };
  EXPECT_EQ(as_i32("<i8", bytes_of_values<std::int64_t>({-7, most})).at(1), most);
  EXPECT_EQ(as_i32("<i4", bytes_of_values<std::int32_t>({-7, 9})).at(0), -7);
  EXPECT_EQ(as_i32("<i2", bytes_of_values<std::int16_t>({-7, 9})).at(0), -7);
  EXPECT_EQ(as_i32("|i1", bytes_of_values<std::int8_t>({-7, 9})).at(0), -7);
  EXPECT_EQ(as_i32("|u1", bytes_of_values<std::uint8_t>({7, 255})).at(1), 255);
  const std::string beyond =
      npy_image(npy_dict("<i8", "2,"), bytes_of_values<std::int64_t>({0, most + 1}));
  EXPECT_EQ(conversion_error(beyond, DType::i32),
            "element 1 is 2147483648: expected a value that fits i32");
}

TEST(Npy, TakesBooleansAndIntegersThatAreOnes) {
  const std::string boolean =
      npy_image(npy_dict("|b1", "3,"), bytes_of_values<std::uint8_t>({0, 1, 7}));
  EXPECT_EQ(read(boolean, DType::boolean).at(0), 0);
  EXPECT_EQ(read(boolean, DType::boolean).as<std::uint8_t>()[2], 1);
  const std::string u1 = npy_image(npy_dict("|u1", "3,"), bytes_of_values<std::uint8_t>({0, 1, 2}));
  EXPECT_EQ(conversion_error(u1, DType::boolean), "element 2 is 2: expected 0 or 1");
}

TEST(Npy, RefusesOtherKindsOfElements) {
  const std::string f4 = npy_f32("1,", {1});
  EXPECT_EQ(conversion_error(f4, DType::i32), "dtype f32: expected integers");
  EXPECT_EQ(conversion_error(f4, DType::boolean), "dtype f32: expected bool");
  const std::string b1 = npy_image(npy_dict("|b1", "1,"), std::string(1, '\1'));
  EXPECT_EQ(conversion_error(b1, DType::f32), "dtype bool: expected floating point");
  EXPECT_EQ(conversion_error(b1, DType::i32), "dtype bool: expected integers");
}

TEST(Npy, RefusesRanksThatNoTensorHas) {
  EXPECT_EQ(conversion_error(npy_f32("", {1}), DType::f32), "0 dimensions: expected 1 to 4");
  EXPECT_EQ(conversion_error(npy_f32("1,1,1,1,1", {1}), DType::f32),
            "5 dimensions: expected 1 to 4");
}

TEST(Npy, ReadsEmptyArrays) {
  const HostTensor t = read(npy_f32("3, 0, 2", {}), DType::f16);
  EXPECT_EQ(t.elements(), 0);
  EXPECT_EQ(t.size(1), 0);
}

TEST(Npy, RefusesEveryTruncation) {
  const std::string image = npy_f32("2, 3", {1, 2, 3, 4, 5, 6});
  for (std::size_t n = 0; n < image.size(); ++n) {
    EXPECT_FALSE(parse_npy(bytes(image.substr(0, n))).ok()) << n;
  }
  EXPECT_FALSE(parse_npy(bytes(image + "x")).ok());
}

TEST(Npy, SurvivesEveryChangedByte) {
  const std::string image = npy_f32("2, 3", {1, 2, 3, 4, 5, 6});
  for (std::size_t n = 0; n < image.size(); ++n) {
    for (int value : {0, 0x20, 0x27, 0x39, 0x7f, 0xff}) {
      std::string changed = image;
      changed[n] = static_cast<char>(value);
      const Result<ArrayView> array = parse_npy(bytes(changed));
      if (array.ok()) (void)to_host_tensor(array.value(), DType::f32);
    }
  }
}

struct BadHeader {
  const char* dict;
  const char* error;
};

TEST(Npy, NamesWhatIsWrongInAHeader) {
  const BadHeader headers[] = {
      {"", "npy header: expected '{'"},
      {"[]", "npy header: expected '{'"},
      {"{}", "npy header: expected the keys 'descr', 'fortran_order' and 'shape'"},
      {"{'descr': '<f4', 'fortran_order': False}",
       "npy header: expected the keys 'descr', 'fortran_order' and 'shape'"},
      {"{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,)}",
       "npy header: expected the keys 'descr', 'fortran_order' and 'shape', once each"},
      {"{'more': 1}",
       "npy header: expected the keys 'descr', 'fortran_order' and 'shape', once each"},
      {"{descr: '<f4'}", "npy header: expected a quoted key and ':'"},
      {"{'descr' '<f4'}", "npy header: expected a quoted key and ':'"},
      {"{'descr': '<f4' 'shape': (1,)}", "npy header: expected ',' or '}'"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,)} x",
       "npy header: expected nothing after '}'"},
      {"{'descr': '>f4', 'fortran_order': False, 'shape': (1,)}",
       "npy descr: expected '<f2', '<f4', '<f8', '|i1', '<i2', '<i4', '<i8', '|u1' or '|b1'"},
      {"{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (1,)}",
       "npy descr: expected '<f2', '<f4', '<f8', '|i1', '<i2', '<i4', '<i8', '|u1' or '|b1'"},
      {"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
       "npy descr: expected '<f2', '<f4', '<f8', '|i1', '<i2', '<i4', '<i8', '|u1' or '|b1'"},
      {"{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}",
       "npy fortran_order: expected True or False"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': 1}", "npy shape: expected '('"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
       "npy shape: expected sizes of 0 or more that fit 63 bits"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775808,)}",
       "npy shape: expected sizes of 0 or more that fit 63 bits"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (1.5,)}",
       "npy shape: expected ',' or ')'"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296, 4294967296)}",
       "npy shape: sizes: expected a product that fits 63 bits of bytes"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (0, 4294967296, 4294967296)}",
       "npy shape: sizes: expected a product that fits 63 bits of bytes"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (2305843009213693952,)}",
       "npy shape: sizes: expected a product that fits 63 bits of bytes"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}",
       "npy shape [2] of f32: expected 8 bytes of data, found 4"},
  };
  for (const BadHeader& header : headers) {
    EXPECT_EQ(error_of(npy_image(header.dict, "abcd")), header.error) << header.dict;
  }
}

TEST(Npy, RefusesHugeHeadersAndShapes) {
  std::string image = npy_f32("1,", {1});
  image[6] = 2;  // the four bytes at 8 are now the header's length
  EXPECT_EQ(error_of(image).substr(0, 19), "npy header length 6");
  std::string dimensions;
  for (int d = 0; d < 100000; ++d) dimensions += "1,";
  EXPECT_EQ(error_of(npy_image(npy_dict("<f4", dimensions), "abcd", 2)),
            "npy shape: expected at most 32 dimensions");
}

TEST(Npy, RefusesShapesTooLargeForAWiderDType) {
  EXPECT_EQ(conversion_error(npy_image(npy_dict("|b1", "0, 8888888888888888888"), ""), DType::f32),
            "sizes: expected a product that fits 63 bits of bytes");
}

TEST(Npy, RefusesOtherVersionsAndFiles) {
  std::string image = npy_f32("1,", {1});
  image[6] = 4;
  EXPECT_EQ(error_of(image), "npy version 4.0: expected 1.0, 2.0 or 3.0");
  image[6] = 1;
  image[7] = 9;
  EXPECT_EQ(error_of(image), "npy version 1.9: expected 1.0, 2.0 or 3.0");
  EXPECT_EQ(error_of("PK\3\4"), "not an npy file: expected the magic \\x93NUMPY");
}

TEST(Npy, WritesWhatItReads) {
  for (DType dtype : {DType::f16, DType::f32, DType::f64, DType::i32, DType::boolean}) {
    HostTensor tensor(dtype, {2, 1, 3});
    for (int i = 0; i < 6; ++i) tensor.set(i, dtype == DType::boolean ? i % 2 : i - 2);
    const std::string header = npy_header(tensor);
    EXPECT_EQ(header.size() % 64, 0u);
    const std::string image = header + std::string(reinterpret_cast<const char*>(tensor.data()),
                                                   static_cast<std::size_t>(tensor.bytes()));
    const HostTensor back = read(image, dtype);
    EXPECT_EQ(back.sizes(), tensor.sizes());
    for (int i = 0; i < 6; ++i) EXPECT_EQ(back.at(i), tensor.at(i));
  }
}

}  // namespace
}  // namespace tessera::cli
