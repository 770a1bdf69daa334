// A grammar as a program for a pushdown automaton over bytes. lib/grammar/program.ts writes it.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace uniproc {

enum class GrammarOp : int32_t {
  kBytes,    // reads a byte of set `a`, then goes to `b`
  kSplit,    // goes to each of the `b` targets from `a` on
  kCall,     // goes to `a`, whose return continues at `b`
  kReturn,   // ends the innermost call, or the text
  kLoop,     // runs the body at `a` from `b` to `c` times (-1: unlimited), then goes to `d`
  kLoopEnd,  // ends a body of the loop at `a`
};

struct GrammarInstruction {
  GrammarOp op;
  int32_t a;
  int32_t b;
  int32_t c;
  int32_t d;
};

// Bit b % 32 of word b / 32 stands for byte b.
using ByteSet = std::array<uint32_t, 8>;

// Execution starts at instruction 0 with an empty stack.
class GrammarProgram {
 public:
  // `words`: [numInstructions, numSets, numTargets], then 5 words for each instruction, 8 for each
  // set, 1 for each target. Throws INVALID_STATE if an operand is out of range.
  explicit GrammarProgram(std::span<const int32_t> words);

  int32_t size() const { return static_cast<int32_t>(instructions_.size()); }
  const GrammarInstruction& at(int32_t pc) const { return instructions_[static_cast<size_t>(pc)]; }
  const ByteSet& set(int32_t index) const { return sets_[static_cast<size_t>(index)]; }
  // The targets of a kSplit.
  std::span<const int32_t> targets(const GrammarInstruction& split) const {
    return std::span(targets_).subspan(static_cast<size_t>(split.a), static_cast<size_t>(split.b));
  }

 private:
  void check() const;

  std::vector<GrammarInstruction> instructions_;
  std::vector<ByteSet> sets_;
  std::vector<int32_t> targets_;
};

}  // namespace uniproc
