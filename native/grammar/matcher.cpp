#include "grammar/matcher.h"

#include <algorithm>

#include "base/error.h"

namespace uniproc {
namespace {

constexpr size_t kMaxAutomatonBytes = 32 << 20;

}  // namespace

Grammar::Grammar(std::span<const int32_t> program,
                 std::shared_ptr<const GrammarVocabulary> vocabulary)
    : program_(std::make_shared<const GrammarProgram>(program)),
      vocabulary_(std::move(vocabulary)),
      automaton_(std::make_unique<GrammarAutomaton>(program_, vocabulary_)) {
  if (automaton_->start() == GrammarAutomaton::kDead) {
    throw Error("REQUEST_INVALID", "structuredOutputs: no text satisfies the grammar");
  }
  automaton_->warmUp();
  limitMemory();
}

void Grammar::limitMemory() {
  if (automaton_->numBytes() <= kMaxAutomatonBytes) return;
  auto fresh = std::make_unique<GrammarAutomaton>(program_, vocabulary_);
  for (GrammarMatcher* matcher : matchers_) {
    if (matcher->state_ != GrammarAutomaton::kDead) {
      matcher->state_ = fresh->copyOf(*automaton_, matcher->state_);
    }
  }
  automaton_ = std::move(fresh);
}

GrammarMatcher::GrammarMatcher(std::shared_ptr<Grammar> grammar, std::vector<int32_t> stopTokens,
                               std::span<const int32_t> allowedTokens)
    : grammar_(std::move(grammar)),
      stopTokens_(std::move(stopTokens)),
      state_(grammar_->automaton().start()) {
  const GrammarVocabulary& vocabulary = grammar_->vocabulary();
  if (!allowedTokens.empty()) {
    allowed_.resize(vocabulary.maskWords());
    for (const int32_t id : allowedTokens) {
      if (id >= 0 && id < vocabulary.vocabSize()) {
        allowed_[static_cast<size_t>(id) / 32] |= 1u << (id % 32);
      }
    }
  }
  grammar_->matchers_.push_back(this);
}

GrammarMatcher::~GrammarMatcher() { std::erase(grammar_->matchers_, this); }

bool GrammarMatcher::mayEnd() const {
  return state_ != GrammarAutomaton::kDead && grammar_->automaton().accepts(state_);
}

bool GrammarMatcher::accept(int32_t token) {
  if (std::find(stopTokens_.begin(), stopTokens_.end(), token) != stopTokens_.end()) {
    status_ = mayEnd() ? MatchStatus::kEnded : MatchStatus::kRejected;
    return false;
  }
  const std::string_view bytes = grammar_->vocabulary().token(token);
  if (!bytes.empty()) state_ = grammar_->automaton().advance(state_, bytes);
  if (!bytes.empty() && state_ != GrammarAutomaton::kDead) return true;
  status_ = MatchStatus::kRejected;
  return false;
}

MatchStatus GrammarMatcher::fill(std::span<const int32_t> tokens, std::span<int32_t> mask) {
  try {
    for (const int32_t token : tokens) {
      if (status_ != MatchStatus::kMasked || !accept(token)) break;
    }
    if (status_ == MatchStatus::kMasked) status_ = writeMask(mask);
  } catch (const Error&) {
    status_ = MatchStatus::kTooComplex;
  }
  // Behind the mask, since its computation may take the most, and the grammar may rest from now on.
  grammar_->limitMemory();
  if (status_ != MatchStatus::kMasked) std::fill(mask.begin(), mask.end(), -1);
  return status_;
}

MatchStatus GrammarMatcher::writeMask(std::span<int32_t> mask) {
  const std::span<const uint32_t> permitted = grammar_->automaton().mask(state_);
  std::copy(permitted.begin(), permitted.end(), mask.begin());
  const int32_t vocabSize = grammar_->vocabulary().vocabSize();
  for (const int32_t id : stopTokens_) {
    if (id < 0 || id >= vocabSize) continue;
    const auto bit = static_cast<int32_t>(1u << (id % 32));
    int32_t& word = mask[static_cast<size_t>(id) / 32];
    word = mayEnd() ? word | bit : word & ~bit;
  }
  if (!allowed_.empty()) {
    for (size_t i = 0; i < mask.size(); ++i) mask[i] &= static_cast<int32_t>(allowed_[i]);
  }
  const bool isEmpty =
      std::all_of(mask.begin(), mask.end(), [](int32_t word) { return word == 0; });
  return isEmpty ? MatchStatus::kDeadEnd : MatchStatus::kMasked;
}

}  // namespace uniproc
