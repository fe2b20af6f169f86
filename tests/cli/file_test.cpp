// Outputs are written whole or not at all.
#include "io/file.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <string>
#include <vector>

#include "cli/temporary_folder.hpp"
#include "error.hpp"

namespace tessera::cli {
namespace {

using test::read_file;
using test::TemporaryFolder;

void write_text(OutputFile& file, const std::string& text) {
  const std::array pieces = {std::as_bytes(std::span(text))};
  file.write(pieces);
}

std::string error_of(const std::string& path) {
  try {
    OutputFile file("--out", path);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(OutputFile, ReplacesItsTargetOnCommit) {
  const TemporaryFolder folder;
  const std::string path = folder.write("o.npy", "before");
  OutputFile file("--out", path);
  EXPECT_EQ(folder.names().size(), 1u);
  write_text(file, "after");
  EXPECT_EQ(read_file(path), "before");
  file.commit();
  EXPECT_EQ(read_file(path), "after");
  EXPECT_EQ(folder.names(), std::vector<std::string>{"o.npy"});
}

TEST(OutputFile, LeavesNothingWithoutCommit) {
  const TemporaryFolder folder;
  {
    OutputFile file("--out", folder / "o.npy");
    write_text(file, "half");
  }
  EXPECT_TRUE(folder.names().empty());
}

TEST(OutputFile, HasTheModeOfAnyNewFile) {
  const TemporaryFolder folder;
  const mode_t mask = ::umask(022);
  OutputFile file("--out", folder / "o.npy");
  write_text(file, "x");
  file.commit();
  ::umask(mask);
  struct stat status {};
  ASSERT_EQ(::stat((folder / "o.npy").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0644u);
}

TEST(OutputFile, FollowsLinks) {
  const TemporaryFolder folder;
  const std::string path = folder.write("real.npy", "before");
  std::filesystem::create_symlink(path, folder / "link.npy");
  OutputFile file("--out", folder / "link.npy");
  EXPECT_EQ(file.target(), OutputFile("--out", path).target());
  write_text(file, "after");
  file.commit();
  EXPECT_TRUE(std::filesystem::is_symlink(folder / "link.npy"));
  EXPECT_EQ(read_file(path), "after");
}

TEST(OutputFile, RefusesAtOnceWhatItCannotWrite) {
  const TemporaryFolder folder;
  std::filesystem::create_directory(folder / "d");
  std::filesystem::create_symlink(folder / "nowhere", folder / "dangling");
  const std::string missing = folder / "none/o.npy";
  EXPECT_EQ(error_of(missing), "--out " + missing + ": cannot write: No such file or directory");
  EXPECT_EQ(error_of(folder / "d"), "--out " + (folder / "d") + ": expected a regular file");
  EXPECT_EQ(error_of(folder / "new/"), "--out " + (folder / "new/") + ": expected a file's name");
  EXPECT_NE(error_of(folder / "dangling"), "");
  EXPECT_EQ(error_of("/dev/null"), "--out /dev/null: expected a regular file");
  EXPECT_NE(error_of(""), "");
}

TEST(OutputFile, WritesBf16AsF32) {
  const TemporaryFolder folder;
  HostTensor tensor(DType::bf16, {2});
  tensor.set(0, 1.5);
  tensor.set(1, -2);
  OutputFile file("--out", folder / "o.npy");
  write_npy(file, tensor);
  file.commit();
  const std::string image = read_file(folder / "o.npy");
  EXPECT_NE(image.find("'<f4'"), std::string::npos);
  EXPECT_EQ(image.size(), 128u + 8u);
}

TEST(MappedFile, RefusesWhatIsNotARegularFile) {
  const TemporaryFolder folder;
  EXPECT_THROW(MappedFile(folder / "none"), Error);
  EXPECT_THROW(MappedFile("/"), Error);
  EXPECT_THROW(MappedFile("/dev/zero"), Error);
  EXPECT_EQ(MappedFile(folder.write("empty", "")).bytes().size(), 0u);
  EXPECT_EQ(MappedFile(folder.write("three", "abc")).bytes().size(), 3u);
}

}  // namespace
}  // namespace tessera::cli
