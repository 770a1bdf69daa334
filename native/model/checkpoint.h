// A checkpoint's files, mapped: read where they are used, never whole into memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace uniproc {

// Rows of bytes that lie in a file `stride` bytes apart.
struct FileRows {
  int64_t offset = 0;
  int64_t rows = 0;  // at least 1
  int64_t rowBytes = 0;
  int64_t stride = 0;

  // From the first row's beginning to the last one's end.
  int64_t span() const { return (rows - 1) * stride + rowBytes; }
};

class MappedFile {
 public:
  // Throws Error CHECKPOINT_INVALID naming the file when it cannot be read.
  explicit MappedFile(std::string path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;

  const std::string& path() const { return path_; }

  // Where the rows are. Throws Error CHECKPOINT_INVALID when the file is shorter.
  const std::byte* at(const FileRows& rows) const;
  // These rows are read next: what lies between them need not be.
  void willRead(const FileRows& rows) const noexcept;
  // They are read, at least for now: their pages need not stay in this process.
  void doneWith(const FileRows& rows) const noexcept;

 private:
  // Of whole pages, all that touch the bytes.
  void advise(int64_t offset, int64_t bytes, int advice) const noexcept;

  std::string path_;
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace uniproc
