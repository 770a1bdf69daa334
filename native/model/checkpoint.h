// A checkpoint's files, read where they are used, never whole into memory. They are read, not
// mapped: a file that another program truncates meanwhile is an error of the load, where a mapping
// would end the process with SIGBUS.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stop_token>
#include <string>

#include "ops/ops.h"

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

class CheckpointFile final : public HostBytes {
 public:
  // Throws Error CHECKPOINT_INVALID naming the file when it cannot be opened or is no regular file.
  explicit CheckpointFile(std::string path);
  ~CheckpointFile() override;
  CheckpointFile(CheckpointFile&& other) noexcept;
  CheckpointFile& operator=(CheckpointFile&&) = delete;

  const std::string& path() const { return path_; }

  // Throws Error CHECKPOINT_INVALID when the file, as it was opened, is too short to hold the rows.
  void require(const FileRows& rows) const;
  // These rows are read next: what lies between them need not be.
  void willRead(const FileRows& rows) const noexcept;
  // Throws Error CHECKPOINT_INVALID when the file has become shorter, or reading fails.
  void read(int64_t offset, int64_t size, std::byte* to) const override;

 private:
  std::string path_;
  int descriptor_ = -1;
  int64_t bytes_ = 0;
};

// A tensor in a file, its elements side by side.
struct StoredTensor {
  std::string path;
  int64_t offset = 0;
  DType dtype = DType::kFloat32;
};

// Whether two tensors of `count` elements are equal once both are converted to `dtype`. Reads them
// up to the first difference. Throws as CheckpointFile does, and SHUT_DOWN when asked to stop.
bool areEqual(const StoredTensor& a, const StoredTensor& b, int64_t count, DType dtype,
              std::stop_token stop);

}  // namespace uniproc
