/** Sampling in float64 with the steps of native/ops/ops.h and full sorts. */
import type { NativeSampling } from '../../../lib/native';

/** The largest float32. */
export const FLOAT32_MAX = 2 ** 128 - 2 ** 104;

export interface SampledRow {
  tokenId: number;
  /**
   * Margin of the closest decision, in logits (relative to their magnitude if that is above 1) or
   * probability: below the accuracy of float32, the operation may correctly choose another
   * token.
   */
  margin: number;
  /** Margin of the draw alone, without the truncation steps. */
  drawMargin: number;
}

export interface SampledRequest {
  sampling: NativeSampling;
  promptTokenIds: number[];
  generatedTokenIds: number[];
}

export function sampleReference(
  logits: ArrayLike<number>,
  request: SampledRequest,
  bitmask?: Int32Array,
): SampledRow {
  const { promptTokenIds, generatedTokenIds } = request;
  const sampling = narrowed(request.sampling);
  // NaN and -Infinity are impossible.
  const scores = Float64Array.from(logits, (logit) =>
    logit > -Infinity ? Math.min(logit, FLOAT32_MAX) : -Infinity,
  );

  const { permitted, lifted } = permittedTokens(scores.length, request, bitmask);
  const forbidden = new Set(scores.keys());
  permitted.forEach((id) => forbidden.delete(id));
  for (const id of forbidden) scores[id] = -Infinity;
  let order = descending(scores);
  if (order.length === 0) return { tokenId: permitted[0], margin: Infinity, drawMargin: Infinity };
  if (lifted) return best(scores, order);

  // Each step is rounded to float32 and clamped to its finite numbers.
  const change = (ids: Iterable<number>, to: (score: number, id: number) => number) => {
    for (const id of ids) if (scores[id] > -Infinity) scores[id] = limit(to(scores[id], id));
  };
  sampling.logitBiasTokenIds.forEach((id, i) => {
    change([id], (score) => score + sampling.logitBiases[i]);
  });
  const penalty = sampling.repetitionPenalty;
  change(new Set([...promptTokenIds, ...generatedTokenIds]), (score) =>
    score > 0 ? score / penalty : score * penalty,
  );
  const generated = new Set(generatedTokenIds);
  change(generated, (score, id) => {
    const times = generatedTokenIds.filter((other) => other === id).length;
    return score - Math.fround(sampling.frequencyPenalty * times);
  });
  change(generated, (score) => score - sampling.presencePenalty);

  order = descending(scores);
  if (!(sampling.temperature >= Math.fround(1e-5))) return best(scores, order);
  change(order, (score) => score / sampling.temperature);
  order = descending(scores);

  const most = scores[order[0]];
  const size = Math.max(1, Math.abs(most));
  let margin = Infinity;
  if (sampling.minP > 0) {
    const threshold = most + Math.log(Math.min(sampling.minP, 1));
    for (const id of order) {
      const distance = Math.abs(scores[id] - threshold);
      if (distance > 0) margin = Math.min(margin, distance / size);
    }
    order = order.filter((id) => scores[id] >= threshold);
  }
  if (sampling.topK > 0 && sampling.topK < order.length) {
    const gap = scores[order[sampling.topK - 1]] - scores[order[sampling.topK]];
    if (gap > 0) margin = Math.min(margin, gap / size); // ties are ordered by id
    order = order.slice(0, sampling.topK);
  }
  if (sampling.topP < 1) {
    const topP = Math.max(sampling.topP, 0);
    const weights = order.map((id) => Math.exp(scores[id] - most));
    const total = weights.reduce((a, b) => a + b, 0);
    let before = 0; // total probability of likelier tokens
    order = order.filter((_, i) => {
      margin = Math.min(margin, i === 0 ? Infinity : Math.abs(before - topP));
      const kept = i === 0 || before < topP;
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

/**
 * The ids, ascending, that a row may return: permitted by bitmask and allowed tokens, and not banned;
 * without the bans (`lifted`) if they leave none; 0 if none is permitted.
 */
export function permittedTokens(
  vocabSize: number,
  { sampling, generatedTokenIds }: SampledRequest,
  bitmask?: Int32Array,
): { permitted: number[]; lifted: boolean } {
  const allowed = new Set(sampling.allowedTokenIds);
  const masked = Array.from({ length: vocabSize }, (_, id) => id).filter(
    (id) =>
      (!bitmask || ((bitmask[id >> 5] >> (id & 31)) & 1) === 1) &&
      (allowed.size === 0 || allowed.has(id)),
  );
  const banned = new Set<number>();
  for (const word of badWords(sampling)) {
    const before = word.slice(0, -1);
    const tail = before.length > 0 ? generatedTokenIds.slice(-before.length) : [];
    if (before.length === tail.length && before.every((id, i) => id === tail[i])) {
      banned.add(word[word.length - 1]);
    }
  }
  if (generatedTokenIds.length < sampling.minTokens) {
    sampling.stopTokenIds.forEach((id) => banned.add(id));
  }
  const permitted = masked.filter((id) => !banned.has(id));
  if (permitted.length > 0) return { permitted, lifted: false };
  return { permitted: masked.length > 0 ? masked : [0], lifted: true };
}

/** The parameters rounded to float32, as passed to the operation. */
function narrowed(sampling: NativeSampling): NativeSampling {
  const floats = [
    'temperature',
    'topP',
    'minP',
    'presencePenalty',
    'frequencyPenalty',
    'repetitionPenalty',
  ] as const;
  return {
    ...sampling,
    ...Object.fromEntries(floats.map((name) => [name, Math.fround(sampling[name])])),
  };
}

/** Rounds to float32, clamped to its finite numbers; NaN becomes the lowest. */
function limit(score: number): number {
  return score > -FLOAT32_MAX ? Math.min(Math.fround(score), FLOAT32_MAX) : -FLOAT32_MAX;
}

/** Ids of tokens that are not banned, by descending logit, ties by id. */
export function descending(scores: Float64Array): number[] {
  return Array.from(scores.keys())
    .filter((id) => scores[id] > -Infinity)
    .sort((a, b) => scores[b] - scores[a] || a - b);
}

function best(scores: Float64Array, order: number[]): SampledRow {
  // Ties are ordered by id.
  const gap = order.length > 1 ? scores[order[0]] - scores[order[1]] : 0;
  const size = Math.max(1, Math.abs(scores[order[0]]));
  const margin = gap > 0 ? gap / size : Infinity;
  return { tokenId: order[0], margin, drawMargin: margin };
}

function badWords({ badWordsTokenIds, badWordsEnds }: NativeSampling): number[][] {
  return Array.from(badWordsEnds, (end, i) => [
    ...badWordsTokenIds.subarray(i === 0 ? 0 : badWordsEnds[i - 1], end),
  ]);
}

/** -log(-log(u)) with u = (the upper 23 bits of this token's random word + 0.5) / 2^23. */
export function gumbel(seed: bigint, position: number, tokenId: number): number {
  const words = philoxReference([position, tokenId >> 2, 0, 0], seed);
  const u = ((words[tokenId & 3] >>> 9) + 0.5) / 2 ** 23;
  return -Math.log(-Math.log(u));
}

/** Philox4x32-10 in bigint arithmetic. */
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
