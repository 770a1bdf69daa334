/** Runs the sampling operation on requests and rows of logits. */
import type { NativeSampling } from '../../../lib/native';
import { GREEDY } from '../../support/sampling';
import type { Ops } from './binding';
import type { SampledRequest } from './samplerReference';

export const plainSampling: NativeSampling = { ...GREEDY, temperature: 1 };

export const request = (
  sampling: Partial<NativeSampling>,
  promptTokenIds = [0],
  generatedTokenIds: number[] = [],
): SampledRequest => ({
  sampling: { ...plainSampling, ...sampling },
  promptTokenIds,
  generatedTokenIds,
});

/** Samples a token per row of logits; the rows' slots are in reverse order. */
export function sample(
  ops: Ops,
  rows: ArrayLike<number>[],
  requests: SampledRequest[],
  bitmask?: Int32Array,
): number[] {
  return sampleAndCount(ops, rows, requests, bitmask).tokenIds;
}

/**
 * Like `sample`, with the NaN count of each row. `truncation`: whether a row may have min-p, top-k
 * or top-p.
 */
export function sampleAndCount(
  ops: Ops,
  rows: ArrayLike<number>[],
  requests: SampledRequest[],
  bitmask?: Int32Array,
  truncation = true,
): { tokenIds: number[]; numNans: number[] } {
  const vocabSize = rows[0].length;
  const table = ops.makeRequests({
    vocabSize,
    maxNumSeqs: rows.length,
    maxModelLen: 1 + Math.max(...requests.map(lengthOf)),
    blockSize: 16,
    maxLogprobs: 0,
  });
  const slots = rows.map((_, i) => rows.length - 1 - i);
  requests.forEach(({ sampling, promptTokenIds, generatedTokenIds }, i) => {
    const tokenIds = Int32Array.from([...promptTokenIds, ...generatedTokenIds]);
    const numPromptTokens = promptTokenIds.length;
    const blockIds = new Int32Array();
    ops.addRequest(table, slots[i], { tokenIds, numPromptTokens, blockIds, sampling }, 0);
  });
  const logits = new Float32Array(rows.length * vocabSize);
  rows.forEach((row, i) => logits.set(Float32Array.from(row), i * vocabSize));
  const sampled = ops.zeros(rows.length, 'int32');
  const tensor = ops.floats(logits);
  const mask = bitmask ? ops.ints(bitmask) : null;
  const count = rows.length;
  const numNans = ops.ints(new Int32Array(count).fill(-1));
  ops.sample(
    tensor,
    count,
    vocabSize,
    ops.ints(slots),
    table,
    mask,
    sampled,
    null,
    numNans,
    truncation,
  );
  return {
    tokenIds: Array.from(ops.readInts(sampled, count)),
    numNans: Array.from(ops.readInts(numNans, count)),
  };
}

const lengthOf = (r: SampledRequest) => r.promptTokenIds.length + r.generatedTokenIds.length;
