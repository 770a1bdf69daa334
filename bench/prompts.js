'use strict';

const { SamplingParams } = require('..');

/** `count` prompts of `length` tokens that share no prefix. */
function makePrompts(count, length, vocabSize) {
  return Array.from({ length: count }, (_, row) => ({
    promptTokenIds: Array.from({ length }, (_, i) => (row * 7919 + i * 104729 + 11) % vocabSize),
  }));
}

/** Greedy sampling of exactly this many tokens, as token ids. */
function greedy(maxTokens) {
  return new SamplingParams({ temperature: 0, maxTokens, ignoreEos: true, detokenize: false });
}

/** The same with temperature 0.6 and top-p 0.9. */
function sampled(maxTokens) {
  const params = { temperature: 0.6, topP: 0.9, maxTokens, ignoreEos: true, detokenize: false };
  return new SamplingParams(params);
}

module.exports = { greedy, makePrompts, sampled };
