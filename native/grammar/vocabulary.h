// A vocabulary's tokens as bytes, arranged for finding all tokens that an automaton accepts.
#pragma once

#include <bitset>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace uniproc {

// Byte strings with token ids, as a prefix tree in depth-first order.
class TokenTrie {
 public:
  struct Node {
    uint32_t end;         // the node after its subtree
    uint32_t firstToken;  // its tokens are those before the next node's first
    uint16_t depth;       // from 1
    uint8_t byte;
  };
  using Entry = std::pair<std::string_view, int32_t>;

  TokenTrie() = default;
  // Strings must not be empty; several tokens may have the same string.
  explicit TokenTrie(const std::vector<Entry>& entries);

  uint32_t numNodes() const {
    return nodes_.empty() ? 0 : static_cast<uint32_t>(nodes_.size() - 1);
  }
  const Node& node(uint32_t index) const { return nodes_[index]; }
  std::span<const int32_t> tokensAt(uint32_t index) const {
    return tokensBetween(index, index + 1);
  }
  // The tokens of nodes `first` to `end`, exclusive.
  std::span<const int32_t> tokensBetween(uint32_t first, uint32_t end) const {
    const uint32_t from = nodes_[first].firstToken;
    return std::span(tokens_).subspan(from, nodes_[end].firstToken - from);
  }
  uint16_t maxDepth() const { return maxDepth_; }

 private:
  std::vector<Node> nodes_;  // and one more as an end
  std::vector<int32_t> tokens_;
  uint16_t maxDepth_ = 0;
};

using ByteMask = std::bitset<256>;

// The tokens that may follow a state of text, such as a string, a word or free text, which
// `repeated` characters, by their first byte in UTF-8, leave as it is: each divided into its
// leading repeated characters and a rest. All tokens without a rest are allowed, and where the
// rests are few, only they have to be walked.
struct TokenDivision {
  ByteMask repeated;
  ByteMask next;
  // Mask of the tokens that have no rest.
  std::vector<uint32_t> whole;
  // Those that begin with a byte of `next`.
  TokenTrie rests;
  // Whether the rests are few; else they are left out.
  bool isUseful = false;
};

// Most tokens are plain text that a JSON string takes as it is, so an automaton that is inside of
// one accepts nearly the whole vocabulary. `plain` characters are those that need no escape: all
// from U+0020 on except " and \. A token is divided into its leading plain characters and a rest.
// Where an automaton takes any plain character to the same state, it accepts all wholly plain
// tokens, and only the rests, which are few, have to be walked.
class GrammarVocabulary {
 public:
  // Tokens with more plain characters count as a rest as a whole.
  static constexpr int kMaxPlain = 24;

  // Token `id` has the bytes [offsets[id], offsets[id + 1]) of `bytes`; none: it is no text, such
  // as a special token, and is never accepted. Tokens from `vocabSize`, the model's, on are
  // ignored.
  GrammarVocabulary(std::vector<uint8_t> bytes, std::vector<uint32_t> offsets, int32_t vocabSize);
  GrammarVocabulary(const GrammarVocabulary&) = delete;
  GrammarVocabulary& operator=(const GrammarVocabulary&) = delete;

  int32_t vocabSize() const { return vocabSize_; }
  size_t maskWords() const { return (static_cast<size_t>(vocabSize_) + 31) / 32; }
  // The token's bytes; empty for no text.
  std::string_view token(int32_t id) const;

  const TokenTrie& all() const { return all_; }
  // Mask of the tokens of 1 to `count` plain characters and no rest.
  std::span<const uint32_t> plainUpTo(int count) const {
    return plainUpTo_[static_cast<size_t>(count)];
  }
  // The rests after exactly `count` plain characters.
  const TokenTrie& rests(int count) const { return rests_[static_cast<size_t>(count)]; }

  // Takes a millisecond the first time; the latest are kept. Not thread-safe.
  std::shared_ptr<const TokenDivision> divide(const ByteMask& repeated, const ByteMask& next) const;

 private:
  const std::vector<uint8_t> bytes_;
  const std::vector<uint32_t> offsets_;
  const int32_t vocabSize_;
  TokenTrie all_;
  std::vector<std::vector<uint32_t>> plainUpTo_;
  std::vector<TokenTrie> rests_;
  // The latest used last.
  mutable std::vector<std::shared_ptr<const TokenDivision>> divisions_;
};

// Bytes of the UTF-8 character at the start of `text`; 0 if it has no complete valid one.
int utf8Length(std::string_view text);

}  // namespace uniproc
