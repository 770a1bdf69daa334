// Checkpoint files. They are read in pieces, not mapped: if another program truncates a file
// while it is read, reading fails with an error, while accessing a mapping would kill the process
// with SIGBUS.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/stop_token.h"
#include "ops/ops.h"

namespace uniproc {

// Rows of bytes in a file, `stride` bytes apart.
struct FileRows {
  int64_t offset = 0;
  int64_t rows = 0;  // at least 1
  int64_t rowBytes = 0;
  int64_t stride = 0;

  // Bytes from the start of the first row to the end of the last.
  int64_t span() const { return (rows - 1) * stride + rowBytes; }
};

class CheckpointFile final : public HostBytes {
 public:
  // Throws Error CHECKPOINT_INVALID, which names the file, if it cannot be opened or is not a
  // regular file.
  explicit CheckpointFile(std::string path);
  ~CheckpointFile() override;
  CheckpointFile(CheckpointFile&& other) noexcept;
  CheckpointFile& operator=(CheckpointFile&&) = delete;

  const std::string& path() const { return path_; }

  // Throws Error CHECKPOINT_INVALID if the file, at its size when opened, is too short for the
  // rows.
  void require(const FileRows& rows) const;
  // Announces that these rows, but not the bytes between them, are read next.
  void willRead(const FileRows& rows) const noexcept;
  // Throws Error CHECKPOINT_INVALID if the file became shorter or reading fails.
  void read(int64_t offset, int64_t size, std::byte* to) const override;

 private:
  std::string path_;
  int descriptor_ = -1;
  int64_t bytes_ = 0;
};

// A contiguous tensor in a file.
struct StoredTensor {
  std::string path;
  int64_t offset = 0;
  DType dtype = DType::kFloat32;
};

// Whether two tensors of `count` elements are equal after conversion to `dtype`. Stops reading at
// the first difference. Throws CHECKPOINT_INVALID, as CheckpointFile, and SHUT_DOWN when asked to
// stop.
bool areEqual(const StoredTensor& a, const StoredTensor& b, int64_t count, DType dtype,
              StopToken stop);

}  // namespace uniproc
