#include "grammar/program.h"

#include <string>

#include "base/error.h"

namespace uniproc {
namespace {

constexpr size_t kHeaderWords = 3;
constexpr size_t kInstructionWords = 5;

[[noreturn]] void invalid(const std::string& what) {
  throw Error("INVALID_STATE", "grammar program: " + what);
}

}  // namespace

GrammarProgram::GrammarProgram(std::span<const int32_t> words) {
  if (words.size() < kHeaderWords) invalid("it has no header");
  for (size_t i = 0; i < kHeaderWords; ++i) {
    if (words[i] < 0) invalid("a count is negative");
  }
  const auto numInstructions = static_cast<size_t>(words[0]);
  const auto numSets = static_cast<size_t>(words[1]);
  const auto numTargets = static_cast<size_t>(words[2]);
  const size_t expected =
      kHeaderWords + kInstructionWords * numInstructions + ByteSet{}.size() * numSets + numTargets;
  if (words.size() != expected) {
    invalid("it has " + std::to_string(words.size()) + " words instead of " +
            std::to_string(expected));
  }
  const int32_t* word = words.data() + kHeaderWords;
  for (size_t i = 0; i < numInstructions; ++i, word += kInstructionWords) {
    instructions_.push_back({static_cast<GrammarOp>(word[0]), word[1], word[2], word[3], word[4]});
  }
  sets_.resize(numSets);
  for (ByteSet& set : sets_) {
    for (uint32_t& bits : set) bits = static_cast<uint32_t>(*word++);
  }
  targets_.assign(word, word + numTargets);
  check();
}

void GrammarProgram::check() const {
  const auto require = [](bool valid, size_t pc) {
    if (!valid) invalid("instruction " + std::to_string(pc) + " has an operand out of range");
  };
  const auto isPc = [&](int32_t pc) { return pc >= 0 && pc < size(); };
  if (instructions_.empty()) invalid("it has no instructions");
  for (const int32_t target : targets_) require(isPc(target), 0);
  for (size_t pc = 0; pc < instructions_.size(); ++pc) {
    const auto& [op, a, b, c, d] = instructions_[pc];
    switch (op) {
      case GrammarOp::kBytes:
        require(a >= 0 && static_cast<size_t>(a) < sets_.size() && isPc(b), pc);
        break;
      case GrammarOp::kSplit:
        require(
            a >= 0 && b >= 0 && static_cast<size_t>(a) + static_cast<size_t>(b) <= targets_.size(),
            pc);
        break;
      case GrammarOp::kCall:
        require(isPc(a) && isPc(b), pc);
        break;
      case GrammarOp::kReturn:
        break;
      case GrammarOp::kLoop:
        require(isPc(a) && b >= 0 && (c == -1 || (c > 0 && c >= b)) && isPc(d), pc);
        break;
      case GrammarOp::kLoopEnd:
        require(isPc(a) && at(a).op == GrammarOp::kLoop, pc);
        break;
      default:
        require(false, pc);
    }
  }
}

}  // namespace uniproc
