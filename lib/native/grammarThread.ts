/** The native grammar thread's types (native/runtime/grammar_thread.h). */

/**
 * One native thread that compiles grammars and fills masks. Grammars and matchers have numbers, which
 * the caller chooses. Calls run in order.
 */
export interface NativeGrammarThread {
  /**
   * Token `id` has bytes [offsets[id], offsets[id + 1]); none: it is no text and is never allowed.
   * `vocabSize`: the model's.
   */
  setVocabulary(bytes: Uint8Array, offsets: Uint32Array, vocabSize: number): Promise<void>;
  /** `program`: see native/grammar/program.h. Rejects with REQUEST_INVALID, as `fill` would. */
  addGrammar(id: number, program: Int32Array): Promise<void>;
  /** Matchers that use it keep it. */
  removeGrammar(id: number): void;
  /** Follows one text. `allowedTokenIds`: the only ones to allow; empty: all. */
  addMatcher(
    id: number,
    grammar: number,
    stopTokenIds: Int32Array,
    allowedTokenIds: Int32Array,
  ): void;
  removeMatcher(id: number): void;
  /**
   * Appends tokens [offsets[i], offsets[i + 1]) to the text of matcher i and writes its next mask to
   * mask[i] and its MatchStatus to statuses[i]. The caller keeps `mask` [n, ceil(vocabSize / 32)] and
   * `statuses` [n], and reads neither, until the promise settles.
   */
  fill(
    matcherIds: Int32Array,
    offsets: Int32Array,
    tokenIds: Int32Array,
    mask: Int32Array,
    statuses: Int32Array,
  ): Promise<void>;
  /** Runs the enqueued work and joins the thread. Idempotent; later calls reject with SHUT_DOWN. */
  shutdown(): Promise<void>;
}
