// Rows that are made one by one, read as if they were adjacent bytes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace uniproc {

// Copies bytes [offset, offset + size) of rows of `rowBytes`, which `rowAt` gives one by one.
template <class RowAt>
void copyRows(int64_t offset, int64_t size, int64_t rowBytes, std::byte* to, RowAt rowAt) {
  while (size > 0) {
    const auto row = rowAt(offset / rowBytes);
    const int64_t skipped = offset % rowBytes;
    const int64_t count = std::min(size, rowBytes - skipped);
    std::memcpy(to, reinterpret_cast<const std::byte*>(row.data()) + skipped,
                static_cast<size_t>(count));
    to += count;
    offset += count;
    size -= count;
  }
}

}  // namespace uniproc
