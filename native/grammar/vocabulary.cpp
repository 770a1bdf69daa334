#include "grammar/vocabulary.h"

#include <algorithm>
#include <limits>
#include <string>

#include "base/error.h"

namespace uniproc {
namespace {

// Divisions kept, of some 100 KB each.
constexpr size_t kMaxDivisions = 64;
constexpr size_t kMaxDepth = std::numeric_limits<uint16_t>::max();

bool isContinuation(std::string_view text, size_t index, uint8_t low = 0x80, uint8_t high = 0xbf) {
  if (index >= text.size()) return false;
  const auto byte = static_cast<uint8_t>(text[index]);
  return byte >= low && byte <= high;
}

bool startsPlain(std::string_view text) {
  return !text.empty() && static_cast<uint8_t>(text[0]) >= 0x20 && text[0] != '"' &&
         text[0] != '\\';
}

size_t commonPrefix(std::string_view a, std::string_view b) {
  const size_t limit = std::min(a.size(), b.size());
  size_t length = 0;
  while (length < limit && a[length] == b[length]) ++length;
  return length;
}

}  // namespace

int utf8Length(std::string_view text) {
  if (text.empty()) return 0;
  const auto lead = static_cast<uint8_t>(text[0]);
  if (lead < 0x80) return 1;
  if (lead < 0xc2 || lead > 0xf4) return 0;
  // The second byte excludes overlong forms, surrogates, and code points above U+10FFFF.
  const uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  const uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  if (!isContinuation(text, 1, low, high)) return 0;
  if (lead < 0xe0) return 2;
  if (!isContinuation(text, 2)) return 0;
  if (lead < 0xf0) return 3;
  return isContinuation(text, 3) ? 4 : 0;
}

TokenTrie::TokenTrie(const std::vector<Entry>& entries) {
  // Most comparisons are decided by the first 8 bytes.
  struct Keyed {
    uint64_t key;
    Entry entry;
    bool operator<(const Keyed& other) const {
      return key != other.key ? key < other.key : entry < other.entry;
    }
  };
  std::vector<Keyed> sorted;
  sorted.reserve(entries.size());
  size_t numBytes = 0;
  for (const Entry& entry : entries) {
    uint64_t key = 0;
    for (size_t i = 0; i < 8; ++i) {
      key = key << 8 | (i < entry.first.size() ? static_cast<uint8_t>(entry.first[i]) : 0);
    }
    sorted.push_back({key, entry});
    numBytes += entry.first.size();
  }
  std::sort(sorted.begin(), sorted.end());
  nodes_.reserve(numBytes / 2);
  tokens_.reserve(entries.size());
  std::vector<uint32_t> open;  // nodes of the current string, by depth - 1
  const auto close = [&](size_t depth) {
    for (; open.size() > depth; open.pop_back()) {
      nodes_[open.back()].end = static_cast<uint32_t>(nodes_.size());
    }
  };
  std::string_view previous;
  for (const auto& [key, entry] : sorted) {
    const auto& [text, id] = entry;
    close(commonPrefix(previous, text));
    while (open.size() < text.size()) {
      const auto byte = static_cast<uint8_t>(text[open.size()]);
      open.push_back(static_cast<uint32_t>(nodes_.size()));
      nodes_.push_back(
          {0, static_cast<uint32_t>(tokens_.size()), static_cast<uint16_t>(open.size()), byte});
    }
    tokens_.push_back(id);
    maxDepth_ = std::max(maxDepth_, static_cast<uint16_t>(text.size()));
    previous = text;
  }
  close(0);
  nodes_.push_back({0, static_cast<uint32_t>(tokens_.size()), 0, 0});
}

GrammarVocabulary::GrammarVocabulary(std::vector<uint8_t> bytes, std::vector<uint32_t> offsets,
                                     int32_t vocabSize)
    : bytes_(std::move(bytes)), offsets_(std::move(offsets)), vocabSize_(vocabSize) {
  if (offsets_.empty() || offsets_.back() > bytes_.size() ||
      !std::is_sorted(offsets_.begin(), offsets_.end()) || vocabSize < 0) {
    throw Error("INVALID_STATE", "the vocabulary's offsets do not fit its bytes");
  }
  std::vector<TokenTrie::Entry> all;
  std::vector<std::vector<TokenTrie::Entry>> rests(kMaxPlain + 1);
  plainUpTo_.assign(kMaxPlain + 1, std::vector<uint32_t>(maskWords()));
  const auto size = static_cast<int32_t>(offsets_.size() - 1);
  for (int32_t id = 0; id < std::min(size, vocabSize_); ++id) {
    const std::string_view text = token(id);
    if (text.empty()) continue;
    all.emplace_back(text, id);
    int numPlain = 0;
    std::string_view rest = text;
    while (startsPlain(rest)) {
      const int length = utf8Length(rest);
      if (length == 0) break;
      rest.remove_prefix(static_cast<size_t>(length));
      ++numPlain;
    }
    if (numPlain > kMaxPlain) {
      rests[0].emplace_back(text, id);
    } else if (!rest.empty()) {
      rests[static_cast<size_t>(numPlain)].emplace_back(rest, id);
    } else {
      plainUpTo_[static_cast<size_t>(numPlain)][static_cast<size_t>(id) / 32] |= 1u << (id % 32);
    }
  }
  for (size_t count = 1; count < plainUpTo_.size(); ++count) {
    for (size_t i = 0; i < maskWords(); ++i) plainUpTo_[count][i] |= plainUpTo_[count - 1][i];
  }
  all_ = TokenTrie(all);
  for (const auto& entries : rests) rests_.emplace_back(entries);
}

std::shared_ptr<const TokenDivision> GrammarVocabulary::divide(const ByteMask& repeated,
                                                               const ByteMask& next) const {
  const auto known = std::find_if(divisions_.begin(), divisions_.end(), [&](const auto& division) {
    return division->repeated == repeated && division->next == next;
  });
  if (known != divisions_.end()) {
    std::rotate(known, known + 1, divisions_.end());
    return divisions_.back();
  }
  auto made = std::make_shared<TokenDivision>();
  made->repeated = repeated;
  made->next = next;
  made->whole.resize(maskWords());
  std::vector<TokenTrie::Entry> rests;
  const auto size = static_cast<int32_t>(offsets_.size() - 1);
  for (int32_t id = 0; id < std::min(size, vocabSize_); ++id) {
    std::string_view rest = token(id);
    if (rest.empty()) continue;
    while (!rest.empty() && repeated[static_cast<uint8_t>(rest[0])]) {
      const int length = utf8Length(rest);
      if (length == 0) break;
      rest.remove_prefix(static_cast<size_t>(length));
    }
    if (rest.empty()) {
      made->whole[static_cast<size_t>(id) / 32] |= 1u << (id % 32);
    } else if (next[static_cast<uint8_t>(rest[0])]) {
      rests.emplace_back(rest, id);
    }
  }
  made->rests = TokenTrie(rests);
  if (divisions_.size() == kMaxDivisions) divisions_.erase(divisions_.begin());
  divisions_.push_back(std::move(made));
  return divisions_.back();
}

std::string_view GrammarVocabulary::token(int32_t id) const {
  if (id < 0 || static_cast<size_t>(id) + 1 >= offsets_.size()) return {};
  const auto index = static_cast<size_t>(id);
  const size_t length = offsets_[index + 1] - offsets_[index];
  if (length == 0 || length > kMaxDepth) return {};
  return {reinterpret_cast<const char*>(bytes_.data()) + offsets_[index], length};
}

}  // namespace uniproc
