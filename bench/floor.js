// The physical floor of a step: reading every weight and every cached key and value once, or computing,
// at the card's measured rates. A short step can pass it where it computes: it runs at higher clocks
// than the large product whose rate it is compared with. Weights count in the model's type.
'use strict';

const { weightShapes } = require('./products');

/** Pairs of a query and a key that each of `numLayers` attends to, for prompts of `length` tokens. */
function attentionPairs(slidingWindows, length) {
  let pairs = 0;
  for (const window of slidingWindows) {
    const most = window === 0 ? length : Math.min(window, length);
    // The first `most` queries see 1 to `most` keys, the others `most` each.
    pairs += (most * (most + 1)) / 2 + (length - most) * most;
  }
  return pairs;
}

/**
 * Seconds of a step on a card with `readBandwidth` bytes per second and `productRate` operations per
 * second: for each product with a weight the larger of reading the weight and computing; for attention
 * reading `cacheBytes`, or the operations of `count` prompts of `length` tokens.
 */
function floorSeconds({ transformer: { spec }, dtype }, card, step) {
  const { numTokens, numSampled, cacheBytes = 0, prompts = { count: 0, length: 0 } } = step;
  const { readBandwidth, productRate } = card;
  const elementBytes = dtype === 'float32' ? 4 : 2;
  const product = ([rows, cols], tokens) =>
    Math.max(
      (elementBytes * rows * cols) / readBandwidth,
      (2 * tokens * rows * cols) / productRate,
    );
  const { layer, head } = weightShapes(spec);
  const ofLayer = layer.reduce((sum, shape) => sum + product(shape, numTokens), 0);
  const pairs = prompts.count * attentionPairs(spec.slidingWindows, prompts.length);
  return (
    spec.numLayers * ofLayer +
    product(head, numSampled) +
    cacheBytes / readBandwidth +
    (4 * pairs * spec.numHeads * spec.headDim) / productRate
  );
}

module.exports = { floorSeconds };
