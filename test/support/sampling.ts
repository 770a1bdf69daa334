import type { NativeSampling } from '../../lib/native';

/** Greedy sampling without penalties, lists or logprobs. */
export const GREEDY: NativeSampling = {
  temperature: 0,
  topP: 1,
  topK: 0,
  minP: 0,
  presencePenalty: 0,
  frequencyPenalty: 0,
  repetitionPenalty: 1,
  seed: 0n,
  minTokens: 0,
  numLogprobs: -1,
  numPromptLogprobs: -1,
  logitBiasTokenIds: new Int32Array(),
  logitBiases: new Float32Array(),
  allowedTokenIds: new Int32Array(),
  badWordsTokenIds: new Int32Array(),
  badWordsEnds: new Int32Array(),
  stopTokenIds: new Int32Array(),
};
