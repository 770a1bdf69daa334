/** Arbitrary logits, sampling parameters and lists, for property tests. */
import * as fc from 'fast-check';
import type { NativeSampling } from '../../../lib/native';
import { Random } from './reference';
import type { SampledRequest } from './samplerReference';

export interface SamplerCase {
  logits: Float32Array;
  request: SampledRequest;
  /** The row's mask, if any. */
  bitmask: Int32Array | undefined;
}

/** Numbers at the limits of float32 arithmetic. */
const SPECIAL = [
  NaN,
  Infinity,
  -Infinity,
  0,
  -0,
  1e-45, // the smallest float32
  -1e-45,
  1e-46, // 0 in float32
  1e39, // Infinity in float32
  -1e39,
  3.4028234663852886e38,
  -3.4028234663852886e38,
  1.1754943508222875e-38,
  1e38,
  -1e38,
  1e-5,
  9e-6,
];

const float = (...usual: number[]) =>
  fc.oneof(
    { weight: 3, arbitrary: fc.constantFrom(...usual) },
    { weight: 2, arbitrary: fc.constantFrom(...SPECIAL) },
    { weight: 1, arbitrary: fc.float() },
  );

/** CUDA divides a row into parts of 4096 tokens. */
const VOCAB_SIZES = [1, 2, 5, 31, 32, 33, 100, 4096, 4101];

/** A row's logits: normally distributed with any scale, some replaced by special values. */
const logitsOf = (vocabSize: number): fc.Arbitrary<Float32Array> =>
  fc
    .record({
      seed: fc.nat(),
      scale: fc.constantFrom(1, 1, 1, 4, 0, 1e-30, 1e10, 1e38),
      isRounded: fc.boolean(), // for ties
      share: fc.constantFrom(0, 0, 0.1, 0.5, 0.99, 1),
      specials: fc.array(fc.constantFrom(...SPECIAL), { minLength: 1, maxLength: 3 }),
    })
    .map(({ seed, scale, isRounded, share, specials }) => {
      const random = new Random(seed);
      return Float32Array.from({ length: vocabSize }, () => {
        const number = random.normal();
        const special = specials[random.below(specials.length)];
        return random.uniform() < share
          ? special
          : (isRounded ? Math.round(4 * number) / 4 : number) * scale;
      });
    });

const samplingOf = (vocabSize: number): fc.Arbitrary<NativeSampling> => {
  const id = fc.nat(vocabSize - 1);
  const ids = fc.array(id, { maxLength: 6 });
  const rarely = <T>(list: fc.Arbitrary<T[]>) =>
    fc.oneof({ weight: 2, arbitrary: fc.constant<T[]>([]) }, { weight: 1, arbitrary: list });
  const int32 = fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 });
  return fc
    .record({
      numbers: fc.record({
        temperature: float(0, 0.3, 1, 1, 1.7),
        topP: float(1, 1, 0.01, 0.3, 0.9),
        topK: fc.oneof(fc.constantFrom(0, 0, 1, 2, 7, 50, 3000), int32),
        minP: float(0, 0, 0.05, 0.5, 1),
        presencePenalty: float(0, 0, 0.7, -1),
        frequencyPenalty: float(0, 0, 0.3, -0.5),
        repetitionPenalty: float(1, 1, 1.3, 0.8),
        seed: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
        minTokens: fc.oneof(fc.constantFrom(0, 0, 30), int32),
      }),
      biases: rarely(
        fc.uniqueArray(fc.tuple(id, float(2, -100, 100)), {
          selector: ([tokenId]) => tokenId,
          maxLength: 4,
        }),
      ),
      allowed: rarely(ids),
      badWords: rarely(fc.array(fc.array(id, { minLength: 1, maxLength: 3 }), { maxLength: 6 })),
      stop: rarely(ids),
    })
    .map(({ numbers, biases, allowed, badWords, stop }) => ({
      ...numbers,
      numLogprobs: -1,
      numPromptLogprobs: -1,
      logitBiasTokenIds: Int32Array.from(biases, ([tokenId]) => tokenId),
      logitBiases: Float32Array.from(biases, ([, bias]) => bias),
      allowedTokenIds: Int32Array.from(allowed),
      badWordsTokenIds: Int32Array.from(badWords.flat()),
      badWordsEnds: Int32Array.from(badWords, (_, i) => badWords.slice(0, i + 1).flat().length),
      stopTokenIds: Int32Array.from(stop),
    }));
};

const bitmaskOf = (vocabSize: number): fc.Arbitrary<Int32Array | undefined> => {
  const numWords = Math.ceil(vocabSize / 32);
  const word = fc.oneof(
    fc.constantFrom(0, -1, 1, 1 << 31),
    fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 }),
  );
  const words = fc.array(word, { minLength: 1, maxLength: 4 });
  const repeated = (pattern: number[]) =>
    Int32Array.from({ length: numWords }, (_, i) => pattern[i % pattern.length]);
  return fc.option(words.map(repeated), { nil: undefined, freq: 2 });
};

/** A row of its own. */
export const samplerCase: fc.Arbitrary<SamplerCase> = fc
  .constantFrom(...VOCAB_SIZES)
  .chain((vocabSize) => {
    const ids = fc.array(fc.nat(vocabSize - 1), { maxLength: 12 });
    const request = fc.record({
      sampling: samplingOf(vocabSize),
      promptTokenIds: fc.tuple(fc.nat(vocabSize - 1), ids).map(([first, rest]) => [first, ...rest]),
      generatedTokenIds: ids,
    });
    return fc.record({ logits: logitsOf(vocabSize), request, bitmask: bitmaskOf(vocabSize) });
  });
