// Quantized weights in tiles: the layout in which the CPU multiplies them, since rows of W that lie
// in the lanes of a vector need no sum over lanes, and take scales of their own as a vector.
//
// Rows are in blocks of kBlockRows, one after another. A block has its columns in order, for each
// kColumns (4 of 8-bit types, 8 of 4-bit types) two tiles of 64 bytes: of 16 rows each, 4 bytes for
// each row.
//   8 bits: 16 bytes for each 4 rows: column c of row r at 8 * (c / 2) + 2 * (r % 4) + c % 2, so
//           that interleaving with other bytes gives pairs of columns in the lanes of the rows.
//   4 bits: a word for each row; its four bits from 4 i on are column 2 i, or of i from 4, 2 i - 7,
//           so that the halves of a word shifted right have a pair of columns.
// Scales and zero points by row are [rows / kBlockRows, groups, kBlockRows]. GGUF's blocks have
// theirs beside their columns (block_tiles.h).
#pragma once

#include <cstdint>

#include "ops/linear.h"

namespace uniproc {

constexpr int64_t kBlockRows = 32;
constexpr int64_t kTileBytes = 64;
// Rows of x in one product, and bytes of x, at most.
constexpr int64_t kMaxProductRows = 128;
constexpr int64_t kMaxProductBytes = kMaxProductRows * 2048;

// Of types without blocks.
constexpr int64_t tileColumns(StorageType type) { return isPacked(type) ? 8 : 4; }

// The first bit of column `col` of 8 in a word of 4-bit codes.
constexpr int codeShift(int col) { return 4 * (col / 2 + col % 2 * 4); }

// Whether a quantized weight can be in tiles, if it is sliced at multiples of `sliceRows`.
bool canTile(const LinearWeight& weight, int64_t sliceRows);

// Rearranges blocks [begin, end) of rows in place, from row-major order.
void tileBlocks(const LinearWeight& weight, int64_t begin, int64_t end);

}  // namespace uniproc
