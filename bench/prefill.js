// Prompts that an engine computes in one step.
'use strict';

const { greedy, makePrompts } = require('./prompts');

/** Minimum prefills and minimum seconds per measurement; the result is the median. */
const MIN_PREFILLS = 3;
const MIN_SECONDS = 0.5;

/** Seconds of a call that generates one token for each of `count` prompts of `length` tokens. */
async function measurePrefill(llm, count, length) {
  const { vocabSize } = llm.engine.config.model.transformer.spec;
  const prompts = makePrompts(count, length, vocabSize);
  await llm.generate(prompts, greedy(1));
  const seconds = [];
  const begin = performance.now();
  do {
    const start = performance.now();
    await llm.generate(prompts, greedy(1));
    seconds.push((performance.now() - start) / 1000);
  } while (seconds.length < MIN_PREFILLS || performance.now() - begin < 1000 * MIN_SECONDS);
  seconds.sort((a, b) => a - b);
  return seconds[seconds.length >> 1];
}

module.exports = { measurePrefill };
