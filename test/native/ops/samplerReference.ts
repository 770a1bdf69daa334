/** Sampling in float64, step by step as native/ops/ops.h says, with full sorts and no shortcuts. */
import type { NativeSampling } from '../../../lib/native';

export interface SampledRow {
  /** null where nothing is left to choose from. */
  tokenId: number | null;
  /**
   * How far the nearest decision was from going the other way, in logits or probability: below the
   * accuracy of float32 the operation may rightly choose another token.
   */
  margin: number;
  /** The same for the draw alone, whatever was cut. */
  drawMargin: number;
}

export interface SampledRequest {
  sampling: NativeSampling;
  promptTokenIds: number[];
  generatedTokenIds: number[];
}

export function sampleReference(
  logits: ArrayLike<number>,
  { sampling, promptTokenIds, generatedTokenIds }: SampledRequest,
  bitmask?: Int32Array,
): SampledRow {
  const scores = Float64Array.from(logits);
  const ban = (id: number) => (scores[id] = -Infinity);

  if (bitmask) scores.forEach((_, id) => ((bitmask[id >> 5] >> (id & 31)) & 1) === 0 && ban(id));
  const allowed = new Set(sampling.allowedTokenIds);
  if (allowed.size > 0) scores.forEach((_, id) => !allowed.has(id) && ban(id));
  for (const word of badWords(sampling)) {
    const before = word.slice(0, -1);
    const tail = before.length > 0 ? generatedTokenIds.slice(-before.length) : [];
    if (before.length === tail.length && before.every((id, i) => id === tail[i])) {
      ban(word[word.length - 1]);
    }
  }
  if (generatedTokenIds.length < sampling.minTokens) sampling.stopTokenIds.forEach(ban);
  sampling.logitBiasTokenIds.forEach((id, i) => (scores[id] += sampling.logitBiases[i]));
  for (const id of new Set([...promptTokenIds, ...generatedTokenIds])) {
    const penalty = sampling.repetitionPenalty;
    scores[id] = scores[id] > 0 ? scores[id] / penalty : scores[id] * penalty;
  }
  for (const id of generatedTokenIds) scores[id] -= sampling.frequencyPenalty;
  for (const id of new Set(generatedTokenIds)) scores[id] -= sampling.presencePenalty;

  let order = descending(scores);
  if (sampling.temperature < 1e-5) return best(scores, order);
  order.forEach((id) => (scores[id] /= sampling.temperature));

  let margin = Infinity;
  if (sampling.minP > 0) {
    const threshold = scores[order[0]] + Math.log(sampling.minP);
    for (const id of order) {
      const distance = Math.abs(scores[id] - threshold);
      if (distance > 0) margin = Math.min(margin, distance);
    }
    order = order.filter((id) => scores[id] >= threshold);
  }
  if (sampling.topK > 0 && sampling.topK < order.length) {
    const gap = scores[order[sampling.topK - 1]] - scores[order[sampling.topK]];
    if (gap > 0) margin = Math.min(margin, gap); // equals are ordered by their ids
    order = order.slice(0, sampling.topK);
  }
  if (sampling.topP < 1) {
    const weights = order.map((id) => Math.exp(scores[id] - scores[order[0]]));
    const total = weights.reduce((a, b) => a + b, 0);
    let before = 0; // the probability of those likelier
    order = order.filter((_, i) => {
      margin = Math.min(margin, i === 0 ? Infinity : Math.abs(before - sampling.topP));
      const kept = i === 0 || before < sampling.topP;
      before += weights[i] / total;
      return kept;
    });
  }
  const position = promptTokenIds.length + generatedTokenIds.length;
  for (const id of order) scores[id] += gumbel(sampling.seed, position, id);
  const drawn = best(
    scores,
    order.sort((a, b) => scores[b] - scores[a] || a - b),
  );
  return { ...drawn, margin: Math.min(margin, drawn.margin) };
}

/** The ids of the tokens not banned, likeliest first, of equals the lower id first. */
export function descending(scores: Float64Array): number[] {
  return Array.from(scores.keys())
    .filter((id) => scores[id] > -Infinity)
    .sort((a, b) => scores[b] - scores[a] || a - b);
}

function best(scores: Float64Array, order: number[]): SampledRow {
  if (order.length === 0) return { tokenId: null, margin: Infinity, drawMargin: Infinity };
  // Equals are ordered by their ids.
  const gap = order.length > 1 ? scores[order[0]] - scores[order[1]] : 0;
  const margin = gap > 0 ? gap : Infinity;
  return { tokenId: order[0], margin, drawMargin: margin };
}

function badWords({ badWordsTokenIds, badWordsEnds }: NativeSampling): number[][] {
  return Array.from(badWordsEnds, (end, i) => [
    ...badWordsTokenIds.subarray(i === 0 ? 0 : badWordsEnds[i - 1], end),
  ]);
}

/** -log(-log(u)), u of the word for this token: its upper 23 bits and a half, over 2^23. */
export function gumbel(seed: bigint, position: number, tokenId: number): number {
  const words = philoxReference([position, tokenId >> 2, 0, 0], seed);
  const u = ((words[tokenId & 3] >>> 9) + 0.5) / 2 ** 23;
  return -Math.log(-Math.log(u));
}

/** Philox4x32-10, written out in arbitrary precision. */
export function philoxReference(counter: number[], key: bigint): number[] {
  const mask = 0xffffffffn;
  let [a, b, c, d] = counter.map((word) => BigInt(word >>> 0));
  let [low, high] = [key & mask, (key >> 32n) & mask];
  for (let round = 0; round < 10; ++round) {
    const [p, q] = [0xd2511f53n * a, 0xcd9e8d57n * c];
    [a, b, c, d] = [(q >> 32n) ^ b ^ low, q & mask, (p >> 32n) ^ d ^ high, p & mask];
    low = (low + 0x9e3779b9n) & mask;
    high = (high + 0xbb67ae85n) & mask;
  }
  return [a, b, c, d].map(Number);
}
