// The physical floor of a step: reading every weight and every cached key and value once, or computing,
// at the card's measured rates. A short step can pass it where it computes: it runs at higher clocks
// than the large product whose rate it is compared with. Weights count in the model's type.
'use strict';

const { mlpShapes, weightShapes } = require('./products');

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
 * Seconds of the products of the experts that the routers of all layers select for `numTokens` tokens:
 * reading each selected expert once or computing, whichever is longer. The number of experts that a
 * layer reads is that of random routing. Models whose layers differ are not known here.
 */
function expertSeconds({ transformer: { spec }, dtype }, card, numTokens) {
  const { experts, hiddenSize } = spec;
  if (!experts) return 0;
  const { numExperts, numExpertsPerToken, intermediateSize } = experts;
  const selected = numExperts * (1 - (1 - numExpertsPerToken / numExperts) ** numTokens);
  const elementBytes = dtype === 'float32' ? 4 : 2;
  const ofLayer = mlpShapes(hiddenSize, intermediateSize).reduce(
    (sum, [rows, cols]) =>
      sum +
      Math.max(
        (elementBytes * selected * rows * cols) / card.readBandwidth,
        (2 * numTokens * numExpertsPerToken * rows * cols) / card.productRate,
      ),
    0,
  );
  return spec.numLayers * ofLayer;
}

/**
 * Seconds of a step's products: those of all tokens as the ceilings measured them, and the floor of the
 * experts', which the ceilings do not measure.
 */
function productSeconds(config, ceilings, numTokens, numSampled) {
  return ceilings.seconds(numTokens, numSampled) + expertSeconds(config, ceilings, numTokens);
}

/**
 * Seconds of a step on a card with `readBandwidth` bytes per second and `productRate` operations per
 * second: for each product with a weight the larger of reading the weight and computing; for attention
 * reading `cacheBytes`, or the operations of `count` prompts of `length` tokens.
 */
function floorSeconds(config, card, step) {
  const { transformer, dtype } = config;
  const { spec } = transformer;
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
    expertSeconds(config, card, numTokens) +
    product(head, numSampled) +
    cacheBytes / readBandwidth +
    (4 * pairs * spec.numHeads * spec.headDim) / productRate
  );
}

module.exports = { floorSeconds, productSeconds };
