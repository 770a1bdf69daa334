/** The token masks of a step's structured-output requests, computed while the forward pass runs. */
export interface GrammarOutput {
  /** Requests that have a mask, in the order of the mask's rows. */
  structuredOutputRequestIds: string[];
  /** [structuredOutputRequestIds.length, ceil(vocabSize / 32)]: a set bit allows a token. */
  grammarBitmask: Int32Array;
}
