// Runs a grammar's program on bytes, and finds the tokens that may follow a text.
#pragma once

#include <compare>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "grammar/program.h"
#include "grammar/vocabulary.h"

namespace uniproc {

// A pushdown automaton made deterministic as it is used. A state is the set of all (instruction,
// stack) pairs that the text so far leads to; equal stacks are stored once, and so are equal
// states. A state's transitions and its mask are computed when first needed and kept, so a text
// costs one table lookup for each byte after the first time. Results never depend on what is kept.
class GrammarAutomaton {
 public:
  static constexpr int32_t kDead = -1;

  GrammarAutomaton(std::shared_ptr<const GrammarProgram> program,
                   std::shared_ptr<const GrammarVocabulary> vocabulary);

  int32_t start() const { return start_; }
  // Whether the text may end here.
  bool accepts(int32_t state) const { return states_[static_cast<size_t>(state)].accepts; }
  // The state after `bytes`, or kDead. Throws REQUEST_INVALID if the grammar is too ambiguous.
  int32_t advance(int32_t state, std::string_view bytes);
  // The tokens that may follow, [maskWords]; valid until the next call. Throws as `advance`.
  std::span<const uint32_t> mask(int32_t state);
  // The same by trying each token alone: the check of `mask`.
  std::vector<uint32_t> plainMask(int32_t state);

  // Computes masks of states near the start ahead of time, within a fixed amount of work.
  void warmUp();

  // Bytes kept.
  size_t numBytes() const;
  // Copies a state of another automaton of the same program.
  int32_t copyOf(const GrammarAutomaton& other, int32_t state);

 private:
  struct Thread {
    int32_t pc;
    int32_t stack;
    auto operator<=>(const Thread&) const = default;
  };
  // A stack's top: where a call returns to, or a loop with the number of its finished bodies.
  struct Frame {
    int32_t pc;
    int32_t count;
    int32_t parent;
    bool operator==(const Frame&) const = default;
  };
  struct State {
    uint32_t firstThread;
    uint32_t numThreads;
    bool accepts;
    int32_t afterPlain;  // kUnknown until computed
    int8_t isText;       // -1 until computed
  };
  struct FrameHash {
    size_t operator()(const Frame& frame) const;
  };

  static constexpr int32_t kUnknown = -2;
  static constexpr size_t kRowsOfChunk = 16;

  int32_t internFrame(const Frame& frame);
  // Adds what follows (pc, stack) without reading a byte to threads_ and accepts_.
  void beginClosure();
  void addToClosure(Thread thread);
  void push(Thread thread);
  // Whether the pair is new in this closure.
  bool see(Thread thread);
  void growSeen();
  int32_t internClosure();
  int32_t step(int32_t state, uint8_t byte) {
    const int32_t next = row(state)[byte];
    return next == kUnknown ? expand(state, byte) : next;
  }
  int32_t* row(int32_t state) const {
    return rows_[static_cast<size_t>(state) / kRowsOfChunk].get() +
           static_cast<size_t>(state) % kRowsOfChunk * 256;
  }
  int32_t expand(int32_t state, uint8_t byte);
  void spend(int64_t work);

  // The state after any plain character, kDead if there is none, or if it depends on the character.
  int32_t afterPlain(int32_t state);
  int32_t findAfterPlain(int32_t state);
  bool acceptsPlain(int32_t state);
  int32_t afterContinuation(int32_t state, uint8_t low, uint8_t high);
  void walk(const TokenTrie& trie, int32_t state, uint32_t* mask);
  // The characters that leave the state as it is.
  ByteMask repeatedCharacters(int32_t state);
  // Whether many of ASCII do, as inside of a string, of a word and in free text.
  bool isText(int32_t state);
  // The state of text that most plain ASCII characters lead to; kDead if there is none.
  int32_t commonText(int32_t state);
  // Turns the mask of `other` into that of `state` by walking only where they differ.
  void correct(int32_t state, int32_t other, uint32_t* mask);
  void clearSubtree(uint32_t node, uint32_t* mask);
  void computeMask(int32_t state, uint32_t* mask);

  const std::shared_ptr<const GrammarProgram> program_;
  const std::shared_ptr<const GrammarVocabulary> vocabulary_;
  std::vector<Frame> frames_;
  std::unordered_map<Frame, int32_t, FrameHash> frameIndex_;
  std::vector<State> states_;
  std::vector<Thread> stateThreads_;
  std::unordered_multimap<size_t, int32_t> stateIndex_;
  // [states, 256] in chunks, which never move: a state by state and byte.
  std::vector<std::unique_ptr<int32_t[]>> rows_;
  std::unordered_map<int32_t, std::vector<uint32_t>> masks_;
  int32_t start_ = kDead;
  int64_t work_ = 0;

  // The closure being computed.
  std::vector<Thread> pending_;
  std::vector<Thread> threads_;
  // The closure's (instruction, stack) pairs, hashed; an entry of another round is free.
  struct Seen {
    uint64_t key;
    uint32_t round;
  };
  std::vector<Seen> seen_;
  size_t numSeen_ = 0;
  uint32_t round_ = 0;
  bool accepts_ = false;
  std::vector<int32_t> path_;
};

}  // namespace uniproc
