/** Token bitmasks of a step's structured-output requests, computed during the forward pass. */
export interface GrammarOutput {
  /** Requests with a bitmask, in row order. */
  structuredOutputRequestIds: string[];
  /** [structuredOutputRequestIds.length, ceil(vocabSize / 32)]; a set bit allows a token. */
  grammarBitmask: Int32Array;
}
