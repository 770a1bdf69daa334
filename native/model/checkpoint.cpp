#include "model/checkpoint.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "runtime/error.h"

namespace uniproc {
namespace {

[[noreturn]] void throwUnreadable(const std::string& path, const char* what, int reason) {
  throw Error("CHECKPOINT_INVALID",
              std::string("cannot be ") + what + ": " + std::generic_category().message(reason),
              path);
}

int64_t pageBytes() {
  static const int64_t bytes = ::sysconf(_SC_PAGESIZE);
  return bytes;
}

}  // namespace

MappedFile::MappedFile(std::string path) : path_(std::move(path)) {
  const int file = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) throwUnreadable(path_, "opened", errno);
  struct stat status = {};
  int reason = ::fstat(file, &status) == 0 ? 0 : errno;
  if (reason == 0 && !S_ISREG(status.st_mode)) reason = EINVAL;
  bytes_ = status.st_size;
  if (reason == 0 && bytes_ > 0) {
    void* mapping = ::mmap(nullptr, bytes_, PROT_READ, MAP_PRIVATE, file, 0);
    if (mapping == MAP_FAILED) {
      reason = errno;
    } else {
      data_ = static_cast<std::byte*>(mapping);
      ::madvise(data_, bytes_, MADV_SEQUENTIAL);
    }
  }
  ::close(file);
  if (reason != 0) throwUnreadable(path_, "mapped", reason);
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(data_, bytes_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

const std::byte* MappedFile::at(const FileRows& rows) const {
  const int64_t bytes = rows.span();
  if (rows.offset < 0 || bytes < 0 || rows.offset > bytes_ || bytes > bytes_ - rows.offset) {
    throw Error("CHECKPOINT_INVALID",
                "a tensor takes " + std::to_string(bytes) + " bytes from byte " +
                    std::to_string(rows.offset) + " on, but the file has " +
                    std::to_string(bytes_) + "; it is truncated or its header is wrong",
                path_);
  }
  return data_ + rows.offset;
}

// The system reads ahead of what is read in turn: a little beyond a run of rows, but all of a
// tensor that some columns are wanted of. Rows that have whole pages between them are therefore
// asked for one by one, and nothing ahead of them.
void MappedFile::willRead(const FileRows& rows) const noexcept {
  if (rows.stride - rows.rowBytes < 2 * pageBytes()) return;
  advise(rows.offset, rows.span(), MADV_RANDOM);
  for (int64_t row = 0; row < rows.rows; ++row) {
    advise(rows.offset + row * rows.stride, rows.rowBytes, MADV_WILLNEED);
  }
}

void MappedFile::doneWith(const FileRows& rows) const noexcept {
  advise(rows.offset, rows.span(), MADV_DONTNEED);
}

void MappedFile::advise(int64_t offset, int64_t bytes, int advice) const noexcept {
  const int64_t first = offset / pageBytes() * pageBytes();
  ::madvise(data_ + first, offset + bytes - first, advice);
}

}  // namespace uniproc
