// Follows the texts of requests through their grammars, and fills their masks.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "grammar/automaton.h"

namespace uniproc {

// A grammar and the automaton that its matchers share.
class Grammar {
 public:
  Grammar(std::span<const int32_t> program, std::shared_ptr<const GrammarVocabulary> vocabulary);
  Grammar(const Grammar&) = delete;
  Grammar& operator=(const Grammar&) = delete;

  GrammarAutomaton& automaton() { return *automaton_; }
  const GrammarVocabulary& vocabulary() const { return *vocabulary_; }

 private:
  friend class GrammarMatcher;

  // Replaces an automaton that keeps too much by one with the matchers' states alone.
  void limitMemory();

  const std::shared_ptr<const GrammarProgram> program_;
  const std::shared_ptr<const GrammarVocabulary> vocabulary_;
  std::unique_ptr<GrammarAutomaton> automaton_;
  std::vector<class GrammarMatcher*> matchers_;
};

// What `fill` says of a request. lib/engine/structuredOutput.ts has the same numbers.
enum class MatchStatus : int32_t {
  kMasked = 0,      // the mask has the tokens that may follow
  kEnded = 1,       // the text has ended; the mask allows every token
  kRejected = 2,    // a token of the text is not the grammar's
  kDeadEnd = 3,     // no token may follow, and the text may not end
  kTooComplex = 4,  // the grammar exceeds the limits of work or memory
};

// One request's text.
class GrammarMatcher {
 public:
  // `stopTokens` end the text and are allowed exactly where it may end; `allowedTokens`, if not
  // empty, are the only ones that are ever allowed.
  GrammarMatcher(std::shared_ptr<Grammar> grammar, std::vector<int32_t> stopTokens,
                 std::span<const int32_t> allowedTokens);
  ~GrammarMatcher();
  GrammarMatcher(const GrammarMatcher&) = delete;
  GrammarMatcher& operator=(const GrammarMatcher&) = delete;

  // Appends tokens to the text and writes the mask of the next token, [maskWords].
  MatchStatus fill(std::span<const int32_t> tokens, std::span<int32_t> mask);
  // Whether the text may end.
  bool mayEnd() const;

 private:
  friend class Grammar;

  // Appends a token; returns whether the text goes on, else sets status_.
  bool accept(int32_t token);
  MatchStatus writeMask(std::span<int32_t> mask);

  const std::shared_ptr<Grammar> grammar_;
  const std::vector<int32_t> stopTokens_;
  std::vector<uint32_t> allowed_;
  int32_t state_;
  MatchStatus status_ = MatchStatus::kMasked;
};

}  // namespace uniproc
