#include "grammar/automaton.h"

#include <algorithm>
#include <array>
#include <bit>
#include <deque>

#include "base/error.h"

namespace uniproc {
namespace {

// Limits of work and memory in units that do not depend on time, so that ranks agree.
constexpr int64_t kMaxWork = 4'000'000;
constexpr int64_t kWarmUpWork = 400'000;
constexpr size_t kMaxThreads = 1 << 14;
constexpr size_t kMaxMaskBytes = 8 << 20;
constexpr size_t kMaxStates = 1 << 17;
constexpr int kWarmUpMasks = 128;
// Fewest characters, by their first bytes, that leave a state of text as it is.
constexpr size_t kMinRepeated = 24;
// A frame and its entry in the index.
constexpr size_t kFrameBytes = 72;

size_t mix(size_t hash, uint64_t value) {
  hash ^= value + 0x9e3779b97f4a7c15 + (hash << 6) + (hash >> 2);
  return hash * 0xff51afd7ed558ccd;
}

[[noreturn]] void tooAmbiguous() {
  throw Error("REQUEST_INVALID",
              "structuredOutputs: the grammar is too ambiguous; too many ways to read the text so "
              "far are possible");
}

void setBit(uint32_t* mask, int32_t id) { mask[id / 32] |= 1u << (id % 32); }

// Characters beyond ASCII whose bytes have the same ranges.
struct Lead {
  uint8_t first, last, low, high;  // first bytes, and their second byte
  int numMore;                     // continuation bytes after the second
};
constexpr std::array<Lead, 8> kLeads = {{{0xc2, 0xdf, 0x80, 0xbf, 0},
                                         {0xe0, 0xe0, 0xa0, 0xbf, 1},
                                         {0xe1, 0xec, 0x80, 0xbf, 1},
                                         {0xed, 0xed, 0x80, 0x9f, 1},
                                         {0xee, 0xef, 0x80, 0xbf, 1},
                                         {0xf0, 0xf0, 0x90, 0xbf, 2},
                                         {0xf1, 0xf3, 0x80, 0xbf, 2},
                                         {0xf4, 0xf4, 0x80, 0x8f, 2}}};

}  // namespace

size_t GrammarAutomaton::FrameHash::operator()(const Frame& frame) const {
  return mix(mix(static_cast<size_t>(frame.pc), static_cast<uint64_t>(frame.count)),
             static_cast<uint64_t>(frame.parent));
}

GrammarAutomaton::GrammarAutomaton(std::shared_ptr<const GrammarProgram> program,
                                   std::shared_ptr<const GrammarVocabulary> vocabulary)
    : program_(std::move(program)), vocabulary_(std::move(vocabulary)) {
  frames_.push_back({0, 0, 0});  // the empty stack
  path_.resize(static_cast<size_t>(vocabulary_->all().maxDepth()) + 1);
  work_ = 0;
  beginClosure();
  addToClosure({0, 0});
  start_ = internClosure();
}

void GrammarAutomaton::spend(int64_t work) {
  work_ += work;
  if (work_ > kMaxWork) tooAmbiguous();
}

int32_t GrammarAutomaton::internFrame(const Frame& frame) {
  const auto [found, isNew] = frameIndex_.try_emplace(frame, static_cast<int32_t>(frames_.size()));
  if (isNew) frames_.push_back(frame);
  return found->second;
}

void GrammarAutomaton::beginClosure() {
  pending_.clear();
  threads_.clear();
  numSeen_ = 0;
  accepts_ = false;
  if (++round_ == 0) {  // after 2^32 closures old entries would count
    seen_.assign(seen_.size(), {0, 0});
    round_ = 1;
  }
}

void GrammarAutomaton::growSeen() {
  std::vector<Seen> old(std::max<size_t>(64, seen_.size() * 2), {0, 0});
  old.swap(seen_);
  numSeen_ = 0;
  for (const auto& [key, round] : old) {
    if (round == round_) {
      see({static_cast<int32_t>(key >> 32), static_cast<int32_t>(key & 0xffffffff)});
    }
  }
}

bool GrammarAutomaton::see(Thread thread) {
  if (2 * numSeen_ >= seen_.size()) growSeen();
  const uint64_t key = static_cast<uint64_t>(thread.pc) << 32 | static_cast<uint32_t>(thread.stack);
  const size_t last = seen_.size() - 1;
  for (size_t at = mix(0, key) >> 20 & last;; at = (at + 1) & last) {
    Seen& entry = seen_[at];
    if (entry.round != round_) {
      entry = {key, round_};
      ++numSeen_;
      return true;
    }
    if (entry.key == key) return false;
  }
}

void GrammarAutomaton::push(Thread thread) {
  if (see(thread)) pending_.push_back(thread);
}

void GrammarAutomaton::addToClosure(Thread thread) {
  push(thread);
  while (!pending_.empty()) {
    const auto [pc, stack] = pending_.back();
    pending_.pop_back();
    spend(1);
    const GrammarInstruction& at = program_->at(pc);
    const Frame top = frames_[static_cast<size_t>(stack)];
    switch (at.op) {
      case GrammarOp::kBytes:
        threads_.push_back({pc, stack});
        if (threads_.size() > kMaxThreads) tooAmbiguous();
        break;
      case GrammarOp::kSplit:
        for (const int32_t target : program_->targets(at)) push({target, stack});
        break;
      case GrammarOp::kCall:
        // A call whose return returns at once needs no frame, so right recursion needs no stack.
        if (program_->at(at.b).op == GrammarOp::kReturn) {
          push({at.a, stack});
        } else {
          push({at.a, internFrame({at.b, 0, stack})});
        }
        break;
      case GrammarOp::kReturn:
        if (stack == 0) {
          accepts_ = true;
        } else {
          push({top.pc, top.parent});
        }
        break;
      case GrammarOp::kLoop:
        if (at.b == 0) push({at.d, stack});
        push({at.a, internFrame({pc, 0, stack})});
        break;
      case GrammarOp::kLoopEnd: {
        // The counts of an unlimited loop end at its minimum.
        const GrammarInstruction& loop = program_->at(at.a);
        const int32_t count = loop.c < 0 ? std::min(top.count + 1, loop.b) : top.count + 1;
        if (count >= loop.b) push({loop.d, top.parent});
        if (loop.c < 0 || count < loop.c) push({loop.a, internFrame({at.a, count, top.parent})});
        break;
      }
    }
  }
}

int32_t GrammarAutomaton::internClosure() {
  if (threads_.empty() && !accepts_) return kDead;
  std::sort(threads_.begin(), threads_.end());
  size_t hash = accepts_ ? 1 : 0;
  for (const auto& [pc, stack] : threads_) {
    hash = mix(mix(hash, static_cast<uint64_t>(pc)), static_cast<uint64_t>(stack));
  }
  const auto [first, last] = stateIndex_.equal_range(hash);
  for (auto it = first; it != last; ++it) {
    const State& state = states_[static_cast<size_t>(it->second)];
    if (state.accepts == accepts_ && state.numThreads == threads_.size() &&
        std::equal(threads_.begin(), threads_.end(), stateThreads_.begin() + state.firstThread)) {
      return it->second;
    }
  }
  if (states_.size() >= kMaxStates) tooAmbiguous();
  const auto id = static_cast<int32_t>(states_.size());
  states_.push_back({static_cast<uint32_t>(stateThreads_.size()),
                     static_cast<uint32_t>(threads_.size()), accepts_, kUnknown, -1});
  stateThreads_.insert(stateThreads_.end(), threads_.begin(), threads_.end());
  stateIndex_.emplace(hash, id);
  if (static_cast<size_t>(id) % kRowsOfChunk == 0) {
    rows_.push_back(std::make_unique<int32_t[]>(kRowsOfChunk * 256));
    std::fill_n(rows_.back().get(), kRowsOfChunk * 256, kUnknown);
  }
  return id;
}

// Computes the transitions of `byte` and of all bytes that the same threads take.
int32_t GrammarAutomaton::expand(int32_t state, uint8_t byte) {
  const size_t first = states_[static_cast<size_t>(state)].firstThread;
  const size_t numThreads = states_[static_cast<size_t>(state)].numThreads;
  ByteSet alike;
  alike.fill(~0u);
  beginClosure();
  spend(static_cast<int64_t>(numThreads));
  for (size_t i = first; i < first + numThreads; ++i) {
    const auto [pc, stack] = stateThreads_[i];
    const GrammarInstruction& at = program_->at(pc);
    const ByteSet& set = program_->set(at.a);
    const bool takes = set[byte / 32] >> (byte % 32) & 1;
    for (size_t word = 0; word < alike.size(); ++word) {
      alike[word] &= takes ? set[word] : ~set[word];
    }
    if (takes) addToClosure({at.b, stack});
  }
  const int32_t next = internClosure();
  int32_t* const from = row(state);
  for (size_t word = 0; word < alike.size(); ++word) {
    for (uint32_t bits = alike[word]; bits != 0; bits &= bits - 1) {
      from[word * 32 + static_cast<size_t>(std::countr_zero(bits))] = next;
    }
  }
  return next;
}

int32_t GrammarAutomaton::advance(int32_t state, std::string_view bytes) {
  work_ = 0;
  for (const char byte : bytes) {
    if (state == kDead) return kDead;
    state = step(state, static_cast<uint8_t>(byte));
  }
  return state;
}

void GrammarAutomaton::walk(const TokenTrie& trie, int32_t state, uint32_t* mask) {
  path_[0] = state;
  for (uint32_t i = 0; i < trie.numNodes();) {
    const TokenTrie::Node& node = trie.node(i);
    const int32_t next = step(path_[node.depth - 1u], node.byte);
    if (next == kDead) {
      i = node.end;
      continue;
    }
    path_[node.depth] = next;
    for (const int32_t id : trie.tokensAt(i)) setBit(mask, id);
    ++i;
  }
}

int32_t GrammarAutomaton::afterContinuation(int32_t state, uint8_t low, uint8_t high) {
  if (state == kDead) return kDead;
  const int32_t next = step(state, low);
  for (int byte = low + 1; byte <= high; ++byte) {
    if (step(state, static_cast<uint8_t>(byte)) != next) return kDead;
  }
  return next;
}

int32_t GrammarAutomaton::findAfterPlain(int32_t state) {
  const int32_t next = step(state, ' ');
  if (next == kDead) return kDead;
  for (int byte = ' '; byte < 0x80; ++byte) {
    if (byte == '"' || byte == '\\') continue;
    if (step(state, static_cast<uint8_t>(byte)) != next) return kDead;
  }
  for (const auto& [first, last, low, high, numMore] : kLeads) {
    int32_t at = afterContinuation(state, first, last);
    at = afterContinuation(at, low, high);
    for (int i = 0; i < numMore; ++i) at = afterContinuation(at, 0x80, 0xbf);
    if (at != next) return kDead;
  }
  return next;
}

int32_t GrammarAutomaton::afterPlain(int32_t state) {
  if (states_[static_cast<size_t>(state)].afterPlain == kUnknown) {
    const int32_t next = findAfterPlain(state);
    states_[static_cast<size_t>(state)].afterPlain = next;
  }
  return states_[static_cast<size_t>(state)].afterPlain;
}

// Whether any plain character or part of one may follow.
bool GrammarAutomaton::acceptsPlain(int32_t state) {
  for (int byte = ' '; byte < 256; ++byte) {
    if (byte == '"' || byte == '\\') continue;
    if (step(state, static_cast<uint8_t>(byte)) != kDead) return true;
  }
  return false;
}

ByteMask GrammarAutomaton::repeatedCharacters(int32_t state) {
  ByteMask repeated;
  for (size_t byte = 0; byte < 0x80; ++byte) {
    repeated[byte] = step(state, static_cast<uint8_t>(byte)) == state;
  }
  for (const auto& [first, last, low, high, numMore] : kLeads) {
    int32_t previous = kUnknown;
    bool returns = false;
    for (size_t lead = first; lead <= last; ++lead) {
      const int32_t within = step(state, static_cast<uint8_t>(lead));
      if (within != previous) {
        int32_t at = afterContinuation(within, low, high);
        for (int i = 0; i < numMore; ++i) at = afterContinuation(at, 0x80, 0xbf);
        returns = at == state;
        previous = within;
      }
      repeated[lead] = returns;
    }
  }
  return repeated;
}

bool GrammarAutomaton::isText(int32_t state) {
  if (states_[static_cast<size_t>(state)].isText < 0) {
    size_t numRepeated = 0;
    for (int byte = 0; byte < 0x80; ++byte) {
      numRepeated += step(state, static_cast<uint8_t>(byte)) == state ? 1 : 0;
    }
    const bool isText = numRepeated >= kMinRepeated;
    states_[static_cast<size_t>(state)].isText = isText ? 1 : 0;
  }
  return states_[static_cast<size_t>(state)].isText == 1;
}

int32_t GrammarAutomaton::commonText(int32_t state) {
  std::unordered_map<int32_t, int> votes;
  int32_t common = kDead;
  for (int byte = ' '; byte < 0x7f; ++byte) {
    if (byte == '"' || byte == '\\') continue;
    const int32_t next = step(state, static_cast<uint8_t>(byte));
    if (next != kDead && ++votes[next] * 2 > 0x7f - ' ') common = next;
  }
  return common != kDead && isText(common) ? common : kDead;
}

void GrammarAutomaton::clearSubtree(uint32_t node, uint32_t* mask) {
  const TokenTrie& trie = vocabulary_->all();
  for (const int32_t id : trie.tokensBetween(node, trie.node(node).end)) {
    mask[id / 32] &= ~(1u << (id % 32));
  }
}

void GrammarAutomaton::correct(int32_t state, int32_t other, uint32_t* mask) {
  const TokenTrie& trie = vocabulary_->all();
  std::vector<int32_t> others(path_.size());
  path_[0] = state;
  others[0] = other;
  for (uint32_t i = 0; i < trie.numNodes();) {
    const TokenTrie::Node& node = trie.node(i);
    const int32_t from = path_[node.depth - 1u];
    const int32_t otherFrom = others[node.depth - 1u];
    const int32_t next = from == kDead ? kDead : step(from, node.byte);
    const int32_t otherNext = otherFrom == kDead ? kDead : step(otherFrom, node.byte);
    if (next == otherNext) {
      i = node.end;
    } else if (next == kDead) {
      clearSubtree(i, mask);
      i = node.end;
    } else {
      path_[node.depth] = next;
      others[node.depth] = otherNext;
      if (otherNext == kDead) {
        for (const int32_t id : trie.tokensAt(i)) setBit(mask, id);
      }
      ++i;
    }
  }
}

void GrammarAutomaton::computeMask(int32_t state, uint32_t* mask) {
  if (isText(state)) {
    ByteMask next;
    for (size_t byte = 0; byte < next.size(); ++byte) {
      next[byte] = step(state, static_cast<uint8_t>(byte)) != kDead;
    }
    const auto division = vocabulary_->divide(repeatedCharacters(state), next);
    std::copy(division->whole.begin(), division->whole.end(), mask);
    walk(division->rests, state, mask);
    return;
  }
  // The states after 0, 1, ... plain characters.
  std::array<int32_t, GrammarVocabulary::kMaxPlain + 1> after;
  int count = 0;
  after[0] = state;
  while (count < GrammarVocabulary::kMaxPlain) {
    const int32_t next = afterPlain(after[static_cast<size_t>(count)]);
    if (next == kDead) break;
    after[static_cast<size_t>(++count)] = next;
  }
  const bool isComplete =
      count == GrammarVocabulary::kMaxPlain || !acceptsPlain(after[static_cast<size_t>(count)]);
  if (count == 0 || !isComplete) {
    const int32_t common = commonText(state);
    if (common != kDead) {
      const std::span<const uint32_t> similar = this->mask(common);
      std::copy(similar.begin(), similar.end(), mask);
      correct(state, common, mask);
      return;
    }
    walk(vocabulary_->all(), state, mask);
    return;
  }
  const std::span<const uint32_t> plain = vocabulary_->plainUpTo(count);
  std::copy(plain.begin(), plain.end(), mask);
  for (int i = 0; i <= count; ++i) {
    walk(vocabulary_->rests(i), after[static_cast<size_t>(i)], mask);
  }
}

std::span<const uint32_t> GrammarAutomaton::mask(int32_t state) {
  const auto found = masks_.find(state);
  if (found != masks_.end()) return found->second;
  work_ = 0;
  const size_t words = vocabulary_->maskWords();
  if ((masks_.size() + 1) * words * sizeof(uint32_t) > kMaxMaskBytes) masks_.clear();
  std::vector<uint32_t> mask(words);
  computeMask(state, mask.data());
  return masks_.emplace(state, std::move(mask)).first->second;
}

std::vector<uint32_t> GrammarAutomaton::plainMask(int32_t state) {
  std::vector<uint32_t> mask(vocabulary_->maskWords());
  for (int32_t id = 0; id < vocabulary_->vocabSize(); ++id) {
    const std::string_view token = vocabulary_->token(id);
    if (!token.empty() && advance(state, token) != kDead) setBit(mask.data(), id);
  }
  return mask;
}

void GrammarAutomaton::warmUp() {
  // States in the order of their distance from the start; each byte class is followed once.
  std::deque<int32_t> queue = {start_};
  std::vector<bool> seen(1);
  int64_t total = 0;
  int numMasks = 0;
  const size_t maxMasks =
      std::min(static_cast<size_t>(kWarmUpMasks),
               kMaxMaskBytes / 2 / std::max<size_t>(1, vocabulary_->maskWords() * 4));
  while (!queue.empty() && total < kWarmUpWork) {
    const int32_t state = queue.front();
    queue.pop_front();
    if (state == kDead) continue;
    if (seen.size() < states_.size()) seen.resize(states_.size());
    if (seen[static_cast<size_t>(state)]) continue;
    seen[static_cast<size_t>(state)] = true;
    try {
      work_ = 0;
      for (int byte = 0; byte < 256; ++byte) {
        const int32_t next = step(state, static_cast<uint8_t>(byte));
        if (next == kDead || next == state) continue;
        if (byte == 0 || next != step(state, static_cast<uint8_t>(byte - 1))) {
          queue.push_back(next);
        }
      }
      // Those of strings and free text take the longest.
      if (static_cast<size_t>(numMasks) < maxMasks &&
          (isText(state) || afterPlain(state) != kDead)) {
        total += work_;
        mask(state);
        ++numMasks;
      }
    } catch (const Error&) {
      return;  // the request that reaches the state reports it
    }
    total += work_ + 256;
  }
}

size_t GrammarAutomaton::numBytes() const {
  return rows_.size() * kRowsOfChunk * 256 * sizeof(int32_t) +
         stateThreads_.size() * sizeof(Thread) + frames_.size() * kFrameBytes +
         seen_.size() * sizeof(Seen) + masks_.size() * vocabulary_->maskWords() * sizeof(uint32_t);
}

int32_t GrammarAutomaton::copyOf(const GrammarAutomaton& other, int32_t state) {
  const State& copied = other.states_[static_cast<size_t>(state)];
  std::unordered_map<int32_t, int32_t> stacks = {{0, 0}};
  std::vector<int32_t> path;
  beginClosure();
  for (uint32_t i = 0; i < copied.numThreads; ++i) {
    const auto [pc, stack] = other.stateThreads_[copied.firstThread + i];
    int32_t at = stack;
    path.clear();
    for (; !stacks.contains(at); at = other.frames_[static_cast<size_t>(at)].parent) {
      path.push_back(at);
    }
    int32_t copy = stacks.at(at);
    for (auto frame = path.rbegin(); frame != path.rend(); ++frame) {
      const Frame& original = other.frames_[static_cast<size_t>(*frame)];
      copy = internFrame({original.pc, original.count, copy});
      stacks.emplace(*frame, copy);
    }
    threads_.push_back({pc, copy});
  }
  accepts_ = copied.accepts;
  return internClosure();
}

}  // namespace uniproc
