import { GREEDY } from '../../support/sampling';
import { openOps, backends, type Ops } from './binding';
import { expectClose, Random } from './reference';
import { descending } from './samplerReference';

function logSoftmax(logits: ArrayLike<number>): Float64Array {
  const max = Math.max(...Array.from(logits));
  const total = Array.from(logits).reduce((sum, x) => sum + Math.exp(x - max), 0);
  return Float64Array.from(logits, (x) => x - max - Math.log(total));
}

const rankOf = (logits: Float32Array, tokenId: number) =>
  1 + logits.filter((x) => x > logits[tokenId]).length;

/** The operation's output arrays, with 99 and 9.5 in unwritten elements. */
function makeLogprobs(ops: Ops, count: number, maxLogprobs: number) {
  const width = 1 + maxLogprobs;
  const out = {
    tokenIds: ops.ints(new Int32Array(count * width).fill(99)),
    logprobs: ops.floats(new Float32Array(count * width).fill(9.5)),
    ranks: ops.ints(new Int32Array(count).fill(99)),
    maxLogprobs,
  };
  const read = (row: number) => ({
    tokenIds: Array.from(ops.readInts(out.tokenIds, count * width)).slice(
      row * width,
      (row + 1) * width,
    ),
    logprobs: ops.readFloats(out.logprobs, count * width).subarray(row * width, (row + 1) * width),
    rank: ops.readInts(out.ranks, count)[row],
  });
  return { out, read };
}

describe.each(backends)('logprobs, %s', (backend) => {
  const ops = openOps(backend);

  it.each([1, 3, 16, 33, 100, 3001])(
    "of a position's token and of the likeliest, in a vocabulary of %i",
    (vocabSize) => {
      const random = new Random(vocabSize);
      const count = 9;
      const logits = Array.from({ length: count }, () => random.normals(vocabSize, 'float32', 5));
      const tokenIds = logits.map(() => random.below(vocabSize));
      for (const numTop of [0, 1, Math.min(5, vocabSize), Math.min(700, vocabSize)]) {
        const { out, read } = makeLogprobs(ops, count, 700);
        const all = ops.floats(logits.flatMap((row) => [...row]));
        ops.gatherLogprobs(all, count, vocabSize, ops.ints(tokenIds), numTop, out);
        logits.forEach((row, i) => {
          const expected = logSoftmax(row);
          const ids = [tokenIds[i], ...descending(Float64Array.from(row)).slice(0, numTop)];
          const actual = read(i);
          expect(actual.tokenIds.slice(0, 1 + numTop)).toEqual(ids);
          expectClose(
            actual.logprobs.subarray(0, 1 + numTop),
            ids.map((id) => expected[id]),
            1e-5,
          );
          expect(actual.rank).toBe(rankOf(row, tokenIds[i]));
          expect(actual.tokenIds.slice(1 + numTop).every((id) => id === 99)).toBe(true);
        });
        // The logits are unchanged.
        expect(ops.readFloats(all, count * vocabSize).subarray(0, vocabSize)).toEqual(logits[0]);
      }
    },
  );

  it('find the largest logits anywhere in the row', () => {
    const vocabSize = 5000;
    const orders = [
      Float32Array.from({ length: vocabSize }, (_, i) => i / 1000), // the best are the last
      Float32Array.from({ length: vocabSize }, (_, i) => -i / 1000),
      Float32Array.from({ length: vocabSize }, (_, i) => Math.floor(i / 1000)),
      new Float32Array(vocabSize).fill(2),
      new Random(1).normals(vocabSize, 'float32', 0.001),
    ];
    const { out, read } = makeLogprobs(ops, orders.length, 50);
    const rows = ops.floats(orders.flatMap((row) => [...row]));
    ops.gatherLogprobs(rows, orders.length, vocabSize, ops.ints(orders.map(() => 0)), 50, out);
    orders.forEach((row, i) => {
      const expected = descending(Float64Array.from(row)).slice(0, 50);
      expect(read(i).tokenIds.slice(1)).toEqual(expected);
    });
  });

  it('order equal logits by id, and rank by the number of strictly greater ones', () => {
    const logits = Float32Array.from([1, 3, 2, 3, 1, 2, 3, -Infinity]);
    const { out, read } = makeLogprobs(ops, 3, 10);
    const rows = ops.floats([...logits, ...logits, ...logits]);
    ops.gatherLogprobs(rows, 3, 8, ops.ints([6, 2, 7]), 10, out);
    expect(read(0)).toMatchObject({ tokenIds: [6, 1, 3, 6, 2, 5, 0, 4, 7, -1, -1], rank: 1 });
    expect(read(1)).toMatchObject({ rank: 4 });
    expect(read(2)).toMatchObject({ rank: 8 });
    expect(read(2).logprobs[0]).toBe(-Infinity);
  });

  it('treat NaN as -Infinity, and count it', () => {
    const { out, read } = makeLogprobs(ops, 2, 2);
    const logits = ops.floats([NaN, 1, 1, NaN, NaN, NaN]);
    const numNans = ops.ints([-1, -1]);
    ops.gatherLogprobs(logits, 2, 3, ops.ints([0, 1]), 2, out, numNans);
    expect([...ops.readInts(numNans, 2)]).toEqual([1, 3]);
    expect(read(0)).toMatchObject({ tokenIds: [0, 1, 2], rank: 3 });
    expectClose(read(0).logprobs.subarray(1), [-Math.LN2, -Math.LN2], 1e-6);
    expect(read(0).logprobs[0]).toBe(-Infinity);
    expect(read(1)).toMatchObject({ tokenIds: [1, 0, 1], rank: 1 });
    expect([...read(1).logprobs]).toEqual([-Infinity, -Infinity, -Infinity]);
  });

  it('of a sample are raw (before masks, penalties, temperature), and only on request', () => {
    const vocabSize = 1000;
    const random = new Random(8);
    const logits = Array.from({ length: 4 }, () => random.normals(vocabSize, 'float32', 3));
    const wanted = [5, -1, 0, 20];
    const table = ops.makeRequests({
      vocabSize,
      maxNumSeqs: 4,
      maxModelLen: 8,
      blockSize: 16,
      maxLogprobs: 20,
    });
    logits.forEach((row, slot) => {
      const sampling = {
        ...GREEDY,
        temperature: 0.7,
        seed: 3n,
        topK: 10,
        repetitionPenalty: 2,
        // The arg max is masked.
        badWordsTokenIds: Int32Array.of(row.indexOf(Math.max(...row))),
        badWordsEnds: Int32Array.of(1),
        numLogprobs: wanted[slot],
      };
      const made = {
        tokenIds: Int32Array.of(1, 2),
        numPromptTokens: 1,
        blockIds: new Int32Array(),
        sampling,
      };
      ops.addRequest(table, slot, made, 0);
    });
    const { out, read } = makeLogprobs(ops, 4, 20);
    const sampled = ops.zeros(4, 'int32');
    const tensor = ops.floats(logits.flatMap((row) => [...row]));
    ops.sample(tensor, 4, vocabSize, ops.ints([0, 1, 2, 3]), table, null, sampled, out);
    const tokenIds = ops.readInts(sampled, 4);
    logits.forEach((row, i) => {
      const actual = read(i);
      if (wanted[i] < 0) {
        expect(actual.tokenIds.every((id) => id === 99)).toBe(true);
        expect(actual.rank).toBe(99);
        return;
      }
      const ids = [tokenIds[i], ...descending(Float64Array.from(row)).slice(0, wanted[i])];
      expect(actual.tokenIds.slice(0, 1 + wanted[i])).toEqual(ids);
      const expected = logSoftmax(row);
      expectClose(
        actual.logprobs.subarray(0, ids.length),
        ids.map((id) => expected[id]),
        1e-5,
      );
      expect(actual.rank).toBe(rankOf(row, tokenIds[i]));
      expect(actual.rank).toBeGreaterThan(1);
      expect(actual.tokenIds.slice(1 + wanted[i]).every((id) => id === 99)).toBe(true);
    });
  });
});
