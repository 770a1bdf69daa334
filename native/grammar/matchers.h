// The grammars and matchers of an engine, by number.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/error.h"
#include "grammar/matcher.h"

namespace uniproc {

class GrammarMatchers {
 public:
  void setVocabulary(std::shared_ptr<const GrammarVocabulary> vocabulary) {
    vocabulary_ = std::move(vocabulary);
  }

  void addGrammar(int32_t id, std::span<const int32_t> program) {
    if (!vocabulary_) throw Error("INVALID_STATE", "addGrammar: there is no vocabulary");
    grammars_[id] = std::make_shared<Grammar>(program, vocabulary_);
  }
  // Matchers that use it keep it.
  void removeGrammar(int32_t id) { grammars_.erase(id); }

  void addMatcher(int32_t id, int32_t grammar, std::vector<int32_t> stopTokens,
                  std::span<const int32_t> allowedTokens) {
    matchers_[id] = std::make_unique<GrammarMatcher>(find(grammars_, grammar, "grammar"),
                                                     std::move(stopTokens), allowedTokens);
  }
  void removeMatcher(int32_t id) { matchers_.erase(id); }
  GrammarMatcher& matcher(int32_t id) { return *find(matchers_, id, "matcher"); }

  size_t maskWords() const { return vocabulary_ ? vocabulary_->maskWords() : 0; }

 private:
  template <class Map>
  static typename Map::mapped_type& find(Map& map, int32_t id, const char* what) {
    const auto found = map.find(id);
    if (found != map.end()) return found->second;
    throw Error("INVALID_STATE", std::string("there is no ") + what + ' ' + std::to_string(id));
  }

  std::shared_ptr<const GrammarVocabulary> vocabulary_;
  std::unordered_map<int32_t, std::shared_ptr<Grammar>> grammars_;
  std::unordered_map<int32_t, std::unique_ptr<GrammarMatcher>> matchers_;
};

}  // namespace uniproc
