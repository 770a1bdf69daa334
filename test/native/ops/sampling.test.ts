import type { NativeSampling } from '../../../lib/native';
import { GREEDY } from '../../support/sampling';
import { openOps, backends } from './binding';
import { Random } from './reference';
import { descending, sampleReference, type SampledRequest } from './samplerReference';
import { plainSampling, request, sample, sampleAndCount } from './samples';

/** Caches the result of `make`: all kernels share the references. */
function lazily<T>(make: () => T): () => T {
  let made: T | undefined;
  return () => (made ??= make());
}

/** Rows with all kinds of parameters, and the token of the float64 reference. */
const anyParameters = lazily(() => {
  const random = new Random(2);
  const pick = <T>(...choices: T[]) => choices[random.below(choices.length)];
  const trials = [];
  let tooClose = 0;
  for (let trial = 0; trial < 400; ++trial) {
    const vocabSize = pick(1, 2, 5, 17, 33, 100, 500, 2003);
    const ids = (count: number) =>
      Int32Array.from({ length: count }, () => random.below(vocabSize));
    const logits = random.normals(vocabSize, 'float32', pick(0.1, 1, 4));
    if (pick(true, false)) logits.forEach((x, i) => (logits[i] = Math.round(x * 4) / 4)); // ties
    const biased = ids(pick(0, 0, 3)).filter((id, i, all) => all.indexOf(id) === i);
    const generated = Array.from(ids(pick(0, 1, 20)));
    const tail = generated.slice(-1);
    const badWords = pick<number[][]>(
      [],
      [[random.below(vocabSize)]],
      [[...tail, random.below(vocabSize)], Array.from(ids(3))],
    );
    const sampling: NativeSampling = {
      temperature: pick(0, 0.3, 1, 1.7),
      topK: pick(0, 0, 1, 2, 7, 50, 3000),
      topP: pick(1, 1, 0.01, 0.3, 0.9, 0.999),
      minP: pick(0, 0, 0.05, 0.5, 1),
      presencePenalty: pick(0, 0, 0.7, -1),
      frequencyPenalty: pick(0, 0, 0.3, -0.5),
      repetitionPenalty: pick(1, 1, 1.3, 0.8),
      seed: BigInt(random.word()) * BigInt(random.word()),
      minTokens: pick(0, 0, 30),
      numLogprobs: -1,
      numPromptLogprobs: -1,
      logitBiasTokenIds: biased,
      logitBiases: random.normals(biased.length, 'float32', 5),
      allowedTokenIds: ids(pick(0, 0, 0, 3, 40)),
      badWordsTokenIds: Int32Array.from(badWords.flat()),
      badWordsEnds: Int32Array.from(badWords, (_, i) => badWords.slice(0, i + 1).flat().length),
      stopTokenIds: ids(pick(0, 2)),
    };
    const bitmask = pick(
      undefined,
      undefined,
      Int32Array.from({ length: Math.ceil(vocabSize / 32) }, () => pick(-1, random.word() | 0)),
    );
    const made = {
      sampling,
      promptTokenIds: Array.from(ids(pick(1, 30))),
      generatedTokenIds: generated,
    };
    const { tokenId, margin } = sampleReference(logits, made, bitmask);
    if (margin < 2e-5) ++tooClose;
    else trials.push({ logits, made, bitmask, tokenId });
  }
  expect(trials.length).toBeGreaterThan(300);
  expect(tooClose).toBeLessThan(15);
  return trials;
});

/** Many draws from one row, to detect an extra or missing token. */
class Cut {
  readonly trials: () => { logits: Float32Array; requests: SampledRequest[]; tokenIds: number[] };

  constructor(
    readonly name: string,
    sampling: Partial<NativeSampling>,
    vocabSize: number,
    count: number,
    std = 1,
  ) {
    this.trials = lazily(() => {
      const logits = new Random(3).normals(vocabSize, 'float32', std);
      const all = Array.from({ length: count }, (_, i) =>
        request({ ...sampling, seed: BigInt(i) }),
      );
      const drawn = all.map((made) => sampleReference(logits, made));
      // An ambiguous cut affects all requests, an ambiguous draw only its own.
      const clear = drawn.map(({ drawMargin }) => drawMargin > 2e-5);
      expect(clear.filter(Boolean).length).toBeGreaterThan(count * 0.9);
      return {
        logits,
        requests: all.filter((_, i) => clear[i]),
        tokenIds: drawn.filter((_, i) => clear[i]).map(({ tokenId }) => tokenId),
      };
    });
  }
}

const cuts = [
  new Cut('top-p in a flat row', { topP: 0.5 }, 400, 300),
  new Cut('top-p in a steep row', { topP: 0.9 }, 400, 300, 4),
  new Cut('top-k and top-p', { topK: 200, topP: 0.6 }, 400, 300),
  new Cut('top-k', { topK: 70 }, 400, 300),
  new Cut('min-p', { minP: 0.1 }, 400, 300),
  new Cut('a large vocabulary, all', {}, 50021, 2, 3),
  new Cut('a large vocabulary, top-k', { topK: 1000 }, 50021, 20, 3),
  new Cut('a large vocabulary, top-p, flat', { topP: 0.7, temperature: 50 }, 50021, 2, 3),
  new Cut('a large vocabulary, top-p, steep', { topP: 0.95, temperature: 0.5 }, 50021, 20, 3),
];

describe.each(backends)('sample, %s', (backend) => {
  const ops = openOps(backend);
  const one = (logits: ArrayLike<number>, r: SampledRequest, bitmask?: Int32Array) =>
    sample(ops, [logits], [r], bitmask)[0];

  describe('greedy', () => {
    it('returns the largest logit, ties by the lowest id', () => {
      const random = new Random(1);
      for (const vocabSize of [1, 2, 15, 16, 17, 33, 1000]) {
        const logits = random.normals(vocabSize);
        expect(one(logits, request({ temperature: 0 }))).toBe(logits.indexOf(Math.max(...logits)));
        expect(one(logits.fill(-3), request({ temperature: 0 }))).toBe(0);
        logits[vocabSize - 1] = logits[Math.floor(vocabSize / 2)] = 4;
        expect(one(logits, request({ temperature: 9e-6 }))).toBe(Math.floor(vocabSize / 2));
      }
    });

    it('appends the token to its slot', () => {
      const table = ops.makeRequests({
        vocabSize: 4,
        maxNumSeqs: 3,
        maxModelLen: 8,
        blockSize: 16,
        maxLogprobs: 0,
      });
      for (const slot of [0, 1, 2]) {
        const tokenIds = new Int32Array(2 + slot).fill(slot);
        const blockIds = new Int32Array();
        const made = { tokenIds, numPromptTokens: 1, blockIds, sampling: GREEDY };
        ops.addRequest(table, slot, made, 0);
      }
      const logits = ops.floats([0, 0, 0, 9, 0, 9, 0, 0]);
      const sampled = ops.zeros(2, 'int32');
      ops.sample(logits, 2, 4, ops.ints([2, 0]), table, null, sampled, null);
      expect(Array.from(ops.readInts(sampled, 2))).toEqual([3, 1]);
      const tokens = [0, 1, 2].map((slot) => [...ops.readRequest(table, slot).tokenIds]);
      expect(tokens).toEqual([
        [0, 0, 1],
        [1, 1, 1],
        [2, 2, 2, 2, 3],
      ]);
    });
  });

  it('matches the float64 reference for any parameters', () => {
    for (const { logits, made, bitmask, tokenId } of anyParameters()) {
      expect(one(logits, made, bitmask)).toBe(tokenId);
    }
  });

  it.each(cuts)('draws the same token as float64: $name', ({ trials }) => {
    const { logits, requests, tokenIds } = trials();
    expect(sample(ops, Array(requests.length).fill(logits) as Float32Array[], requests)).toEqual(
      tokenIds,
    );
  });

  describe('the distribution', () => {
    const logits = Float32Array.from([0, 1, -1, 2, 0.5, -3, 1.5, 0, -0.5, 1]);
    /** Pearson's chi-square statistic of the draws against softmax(logits of `kept`). */
    const chiSquare = (draws: number[], kept: number[], temperature = 1) => {
      const weights = kept.map((id) => Math.exp(logits[id] / temperature));
      const total = weights.reduce((a, b) => a + b, 0);
      expect(draws.every((id) => kept.includes(id))).toBe(true);
      return kept.reduce((sum, id, i) => {
        const expected = (draws.length * weights[i]) / total;
        return sum + (draws.filter((draw) => draw === id).length - expected) ** 2 / expected;
      }, 0);
    };
    const all = [...logits.keys()];
    // 0.999 quantiles of chi-square with (number of tokens - 1) degrees of freedom.
    const limit: Record<number, number> = { 4: 16.27, 7: 22.46, 10: 27.88 };

    it('over seeds is softmax(logits / temperature)', () => {
      for (const temperature of [1, 0.6, 2]) {
        const requests = Array.from({ length: 5000 }, (_, i) =>
          request({ temperature, seed: (BigInt(i) * 0x9e3779b97f4a7c15n) & 0xffffffffffffffffn }),
        );
        const draws = sample(ops, Array(5000).fill(logits) as Float32Array[], requests);
        expect(chiSquare(draws, all, temperature)).toBeLessThan(limit[10]);
      }
    });

    it('over consecutive seeds, and over the positions of one request, is the same', () => {
      const rows = Array(5000).fill(logits) as Float32Array[];
      const bySeed = sample(
        ops,
        rows,
        rows.map((_, i) => request({ seed: BigInt(i) })),
      );
      expect(chiSquare(bySeed, all)).toBeLessThan(limit[10]);
      const table = ops.makeRequests({
        vocabSize: 10,
        maxNumSeqs: 1,
        maxModelLen: 5001,
        blockSize: 16,
        maxLogprobs: 0,
      });
      const made = {
        tokenIds: Int32Array.of(0),
        numPromptTokens: 1,
        blockIds: new Int32Array(),
        sampling: { ...plainSampling, seed: 11n },
      };
      ops.addRequest(table, 0, made, 0);
      const [slots, sampled] = [ops.ints([0]), ops.zeros(1, 'int32')];
      for (let i = 0; i < 5000; ++i) {
        ops.sample(ops.floats(logits), 1, 10, slots, table, null, sampled, null);
      }
      const byPosition = Array.from(ops.readRequest(table, 0).tokenIds.slice(1));
      expect(chiSquare(byPosition, all)).toBeLessThan(limit[10]);
      expect(byPosition).not.toEqual(bySeed);
    });

    it('is renormalised after top-k, top-p and min-p', () => {
      const order = descending(Float64Array.from(logits));
      // The four likeliest have 0.79 of the probability, the three likeliest 0.66.
      for (const sampling of [{ topK: 4 }, { topP: 0.7 }]) {
        const requests = Array.from({ length: 5000 }, (_, i) =>
          request({ ...sampling, seed: BigInt(i) }),
        );
        const draws = sample(ops, Array(5000).fill(logits) as Float32Array[], requests);
        expect(chiSquare(draws, order.slice(0, 4))).toBeLessThan(limit[4]);
      }
      // Logits at most 2.1 below the largest.
      const minP = Array.from({ length: 5000 }, (_, i) =>
        request({ minP: Math.exp(-2.1), seed: BigInt(i) }),
      );
      const kept = order.filter((id) => logits[id] >= -0.1);
      expect(kept.length).toBe(7);
      const draws = sample(ops, Array(5000).fill(logits) as Float32Array[], minP);
      expect(chiSquare(draws, kept)).toBeLessThan(limit[7]);
    });
  });

  it('returns the same token for a row in any batch, slot and number of threads', () => {
    const random = new Random(5);
    const rows = Array.from({ length: 40 }, () => random.normals(3001, 'float32', 2));
    const requests = rows.map((_, i) =>
      request({
        seed: BigInt(i),
        topK: [0, 20, 0][i % 3],
        topP: [1, 0.9, 0.8, 1][i % 4],
        repetitionPenalty: [1, 1.2][i % 2],
      }),
    );
    const together = sample(openOps(backend, 3), rows, requests);
    expect(sample(openOps(backend, 1), rows, requests)).toEqual(together);
    rows.forEach((row, i) => expect(one(row, requests[i])).toBe(together[i]));
    expect(new Set(together).size).toBeGreaterThan(10);
  });

  it('returns the same token whether or not another row may be truncated', () => {
    const random = new Random(6);
    const rows = Array.from({ length: 12 }, () => random.normals(9001, 'float32', 2));
    const requests = rows.map((_, i) =>
      request({ seed: BigInt(i), temperature: [0, 0.7, 1][i % 3], minTokens: i % 2 }),
    );
    const alone = sampleAndCount(ops, rows, requests, undefined, false);
    expect(sampleAndCount(ops, rows, requests, undefined, true)).toEqual(alone);
    const truncated = [...requests, request({ topP: 0.5 })];
    const tokens = sample(ops, [...rows, rows[0]], truncated);
    expect(tokens.slice(0, rows.length)).toEqual(alone.tokenIds);
  });

  it('returns the same token for a truncated row in batches of any size', () => {
    const random = new Random(7);
    const rows = Array.from({ length: 6 }, () => random.normals(20011, 'float32', 3));
    const requests = rows.map((_, i) =>
      request({
        seed: BigInt(i),
        topK: [0, 50, 2000][i % 3],
        topP: [0.9, 0.6, 1][i % 3],
        minP: [0, 0.01][i % 2],
      }),
    );
    const alone = rows.map((row, i) => one(row, requests[i]));
    for (const copies of [2, 10, 40, 100]) {
      const all = Array.from({ length: copies }).flatMap(() => rows);
      const tokens = sample(
        ops,
        all,
        all.map((_, i) => requests[i % rows.length]),
      );
      expect(tokens).toEqual(all.map((_, i) => alone[i % rows.length]));
    }
  });

  it('cuts among more equal logits than fit a list', () => {
    const logits = new Float32Array(30011).fill(1);
    const rows = Array(8).fill(logits) as Float32Array[];
    const draw = (sampling: Partial<NativeSampling>) =>
      sample(
        ops,
        rows,
        rows.map((_, i) => request({ ...sampling, seed: BigInt(i) })),
      );
    // The lower ids are kept: the Gumbel noise chooses among them.
    const drawnFrom = (count: number) =>
      sample(
        ops,
        Array(8).fill(logits.slice(0, count)) as Float32Array[],
        rows.map((_, i) => request({ seed: BigInt(i) })),
      );
    expect(draw({ topK: 3000 })).toEqual(drawnFrom(3000));
    expect(draw({ topP: 0.5 })).toEqual(drawnFrom(15006));
    expect(draw({ topK: 3000, topP: 0.5 })).toEqual(drawnFrom(1500));
  });

  describe('a forbidden token', () => {
    const ascending = Float32Array.from({ length: 40 }, (_, i) => i); // the arg max is 39
    const greedily = (
      sampling: Partial<NativeSampling>,
      prompt: number[] = [0],
      generated: number[] = [],
      bitmask?: Int32Array,
    ) => one(ascending, request({ temperature: 0, ...sampling }, prompt, generated), bitmask);

    it('is not sampled: bitmask, allowed tokens', () => {
      expect(greedily({}, [0], [], Int32Array.of(-1, 0x7f))).toBe(38);
      expect(greedily({}, [0], [], Int32Array.of(1 << 31, 0))).toBe(31);
      expect(greedily({ allowedTokenIds: Int32Array.of(7, 3, 7) })).toBe(7);
      const allowedTokenIds = Int32Array.of(38, 5);
      expect(greedily({ allowedTokenIds }, [0], [], Int32Array.of(-1, 0))).toBe(5);
    });

    it('is not sampled: the last token of a bad word after its other tokens', () => {
      const badWordsTokenIds = Int32Array.of(39, 4, 5, 38);
      const badWordsEnds = Int32Array.of(1, 4);
      const bad = { badWordsTokenIds, badWordsEnds };
      expect(greedily(bad)).toBe(38);
      expect(greedily(bad, [0], [4, 5])).toBe(37);
      expect(greedily(bad, [0], [1, 4, 5])).toBe(37);
      expect(greedily(bad, [0], [5, 4])).toBe(38);
      expect(greedily(bad, [4], [5])).toBe(38); // bad words do not start in the prompt
    });

    it('is not sampled: a stop token before minTokens', () => {
      const stop = { stopTokenIds: Int32Array.of(39, 37), minTokens: 2 };
      expect(greedily(stop)).toBe(38);
      expect(greedily(stop, [0], [1])).toBe(38);
      expect(greedily(stop, [0], [1, 1])).toBe(39);
      expect(greedily(stop, [0, 1, 2])).toBe(38);
    });

    it('is sampled if only bitmask and allowed tokens can be respected', () => {
      const badWordsTokenIds = Int32Array.of(7);
      const bad = { badWordsTokenIds, badWordsEnds: Int32Array.of(1) };
      const stop = { stopTokenIds: Int32Array.of(3, 7), minTokens: 1 };
      const allowedTokenIds = Int32Array.of(3, 7);
      expect(greedily({ ...bad, allowedTokenIds })).toBe(3);
      expect(greedily({ ...bad, ...stop, allowedTokenIds })).toBe(7);
      expect(one(ascending, request({ ...bad, ...stop, allowedTokenIds }))).toBe(7);
      // The permitted tokens are impossible, or none is permitted.
      const impossible = new Float32Array(40).fill(-Infinity);
      expect(one(impossible, request({ allowedTokenIds: Int32Array.of(9, 6) }))).toBe(6);
      expect(one(impossible, request({}), Int32Array.of(1 << 20, 0))).toBe(20);
      expect(one(ascending, request({}), Int32Array.of(0, 0))).toBe(0);
    });
  });

  it('treats NaN as impossible and infinity as very likely', () => {
    const logits = Float32Array.from({ length: 50 }, (_, i) => (i === 20 ? 1 : NaN));
    for (const sampling of [{}, { temperature: 0 }, { topK: 3 }, { topP: 0.5 }, { minP: 0.5 }]) {
      expect(one(logits, request(sampling))).toBe(20);
      const infinite = Float32Array.from(logits, (x, i) => (i === 41 ? Infinity : x));
      expect(one(infinite, request(sampling))).toBe(41);
      expect(one(new Float32Array(50).fill(NaN), request(sampling))).toBe(0);
      expect(one(new Float32Array(50).fill(-Infinity), request(sampling))).toBe(0);
    }
  });

  it('keeps the lower ids of equal logits at the top-k cut', () => {
    const rows = Array(200).fill(new Float32Array(300).fill(1)) as Float32Array[];
    const requests = rows.map((_, i) => request({ topK: 3, seed: BigInt(i) }));
    expect(new Set(sample(ops, rows, requests))).toEqual(new Set([0, 1, 2]));
  });

  it('keeps the token that reaches top-p, and at least one', () => {
    // Probabilities 0.5, 0.25, 0.125, 0.125.
    const logits = [0, -1, -2, -2].map((x) => x * Math.LN2);
    const seen = (topP: number) => {
      const requests = Array.from({ length: 300 }, (_, i) => request({ topP, seed: BigInt(i) }));
      return new Set(sample(ops, Array(300).fill(logits) as number[][], requests));
    };
    expect(seen(1e-9)).toEqual(new Set([0]));
    expect(seen(0.49)).toEqual(new Set([0]));
    expect(seen(0.51)).toEqual(new Set([0, 1]));
    expect(seen(0.74)).toEqual(new Set([0, 1]));
    expect(seen(0.8)).toEqual(new Set([0, 1, 2]));
    expect(seen(0.999)).toEqual(new Set([0, 1, 2, 3]));
  });
});
