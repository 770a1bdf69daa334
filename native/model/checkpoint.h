// A checkpoint's files, mapped: read where they are used, never whole into memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace uniproc {

class MappedFile {
 public:
  // Throws Error CHECKPOINT_INVALID naming the file when it cannot be read.
  explicit MappedFile(std::string path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;

  const std::string& path() const { return path_; }

  // The bytes [offset, offset + bytes). Throws Error CHECKPOINT_INVALID when the file is shorter.
  const std::byte* at(int64_t offset, int64_t bytes) const;
  // These bytes are read, at least for now: their pages need not stay in this process.
  void doneWith(int64_t offset, int64_t bytes) const noexcept;

 private:
  std::string path_;
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace uniproc
