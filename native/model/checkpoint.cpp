#include "model/checkpoint.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/float_types.h"

namespace uniproc {
namespace {

// Elements that `areEqual` compares per read.
constexpr int64_t kElementsPerPiece = int64_t{1} << 20;

[[noreturn]] void throwInvalid(const std::string& path, const std::string& message) {
  throw Error("CHECKPOINT_INVALID", message, path);
}

[[noreturn]] void throwUnreadable(const std::string& path, const char* what, int reason) {
  throwInvalid(path,
               std::string("cannot be ") + what + ": " + std::generic_category().message(reason));
}

int64_t pageBytes() {
  static const int64_t bytes = ::sysconf(_SC_PAGESIZE);
  return bytes;
}

// Starts read-ahead, on systems that support it.
void readAhead([[maybe_unused]] int descriptor, [[maybe_unused]] int64_t offset,
               [[maybe_unused]] int64_t bytes) noexcept {
#ifdef POSIX_FADV_WILLNEED
  ::posix_fadvise(descriptor, offset, bytes, POSIX_FADV_WILLNEED);
#endif
}

float rounded(float value, DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return widen(narrow<Float16>(value));
    case DType::kBFloat16:
      return widen(narrow<BFloat16>(value));
    default:
      return value;
  }
}

}  // namespace

CheckpointFile::CheckpointFile(std::string path) : path_(std::move(path)) {
  // Non-blocking, because opening a pipe without a writer would block.
  descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor_ < 0) throwUnreadable(path_, "opened", errno);
  struct stat status = {};
  const int reason = ::fstat(descriptor_, &status) == 0 ? 0 : errno;
  if (reason == 0 && S_ISREG(status.st_mode)) {
    bytes_ = status.st_size;
    return;
  }
  ::close(descriptor_);
  if (reason != 0) throwUnreadable(path_, "read", reason);
  throwInvalid(path_, S_ISDIR(status.st_mode) ? "cannot be read: it is a directory"
                                              : "cannot be read: it is not a regular file");
}

CheckpointFile::~CheckpointFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

CheckpointFile::CheckpointFile(CheckpointFile&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      bytes_(std::exchange(other.bytes_, 0)) {}

void CheckpointFile::require(const FileRows& rows) const {
  const int64_t bytes = rows.span();
  if (rows.offset < 0 || bytes < 0 || rows.offset > bytes_ || bytes > bytes_ - rows.offset) {
    throwInvalid(path_, "a tensor needs " + std::to_string(bytes) + " bytes from byte " +
                            std::to_string(rows.offset) + ", but the file has " +
                            std::to_string(bytes_) +
                            " bytes; the file is truncated or its header is wrong");
  }
}

// Rows with whole pages between them are requested one by one, without the gaps.
void CheckpointFile::willRead(const FileRows& rows) const noexcept {
  if (rows.stride - rows.rowBytes < 2 * pageBytes()) {
    return readAhead(descriptor_, rows.offset, rows.span());
  }
  for (int64_t row = 0; row < rows.rows; ++row) {
    readAhead(descriptor_, rows.offset + row * rows.stride, rows.rowBytes);
  }
}

void CheckpointFile::read(int64_t offset, int64_t size, std::byte* to) const {
  while (size > 0) {
    const ssize_t count = ::pread(descriptor_, to, static_cast<size_t>(size), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throwUnreadable(path_, "read", errno);
    if (count == 0) {
      throwInvalid(path_, "was truncated while it was read: it had " + std::to_string(bytes_) +
                              " bytes when it was opened and now ends before byte " +
                              std::to_string(offset + 1) + "; retry when the file is complete");
    }
    to += count;
    offset += count;
    size -= count;
  }
}

bool areEqual(const StoredTensor& a, const StoredTensor& b, int64_t count, DType dtype,
              StopToken stop) {
  const StoredTensor* const tensors[2] = {&a, &b};
  const CheckpointFile files[2] = {CheckpointFile(a.path), CheckpointFile(b.path)};
  std::vector<std::byte> pieces[2];
  for (int64_t first = 0; first < count; first += kElementsPerPiece) {
    if (stop.stopRequested()) throw Error("SHUT_DOWN", "the comparison of two tensors was aborted");
    const int64_t size = std::min(kElementsPerPiece, count - first);
    for (int i = 0; i < 2; ++i) {
      const auto elementBytes = static_cast<int64_t>(sizeOf(tensors[i]->dtype));
      pieces[i].resize(static_cast<size_t>(size * elementBytes));
      files[i].read(tensors[i]->offset + first * elementBytes, size * elementBytes,
                    pieces[i].data());
    }
    if (a.dtype == b.dtype &&
        std::memcmp(pieces[0].data(), pieces[1].data(), pieces[0].size()) == 0)
      continue;
    for (int64_t i = 0; i < size; ++i) {
      const float x = rounded(elementAt(pieces[0].data(), a.dtype, i), dtype);
      const float y = rounded(elementAt(pieces[1].data(), b.dtype, i), dtype);
      if (!(x == y)) return false;  // NaN differs from itself
    }
  }
  return true;
}

}  // namespace uniproc
