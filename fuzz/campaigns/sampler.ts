/**
 * Sampling parameters and logits of any kind: refused by validation, or a token that the request's
 * masks allow; where rounding cannot decide, the float64 reference's token.
 */
import fc from 'fast-check';
import { SamplingParams, type SamplingParamsOptions } from '../../lib/config/samplingParams';
import { InvalidRequestError } from '../../lib/errors';
import type { NativeSampling } from '../../lib/native';
import { toNativeSampling } from '../../lib/worker/inputBatch';
import { isas, openOps, type Backend, type Ops } from '../../test/native/ops/binding';
import { sampleReference, type SampledRequest } from '../../test/native/ops/samplerReference';
import { type Campaign, type CampaignOptions, expect, type StructuredTarget } from '../campaign';
import { Random } from '../random';

interface SamplerCase {
  vocabSize: number;
  /** Normal logits with this seed and spread; then overrides by token id modulo the vocabulary size. */
  logits: {
    seed: number;
    std: number;
    special: readonly (readonly [tokenId: number, logit: number])[];
  };
  options: SamplingParamsOptions;
  eosTokenIds: number[];
  badWords: number[][];
  bitmask: number[] | null;
  promptTokenIds: number[];
  generatedTokenIds: number[];
}

const DENORMAL = 1e-45;
const MAX_FLOAT = 3.4028234663852886e38;
const SPECIAL = [
  NaN, Infinity, -Infinity, 0, -0, DENORMAL, -DENORMAL, 1.17e-38, MAX_FLOAT, -MAX_FLOAT, 1e30, -1e30,
  88, -88, 104, 1e4, -1e4,
]; // prettier-ignore

const numberOf = (usual: fc.Arbitrary<number>, ...extreme: number[]) =>
  fc.oneof(
    { weight: 6, arbitrary: usual },
    { weight: 2, arbitrary: fc.constantFrom(...extreme) },
    { weight: 1, arbitrary: fc.double() },
  );
const between = (min: number, max: number) => fc.double({ min, max, noNaN: true });
const tokenId = fc.nat(400);
const tokenIds = (maxLength: number) => fc.array(tokenId, { maxLength });

const options = fc.record(
  {
    temperature: numberOf(
      fc.oneof(fc.constant(0), between(0.05, 5)),
      1e-5, 9e-6, 1.1e-5, 1e-45, 1e-300, 1e38, 3.5e38, 1e39, 1e300, Infinity, NaN, -1,
    ), // prettier-ignore
    topP: numberOf(between(0.01, 1), 1, 1e-10, 1e-45, 1e-46, 1e-300, 1 - 1e-9, 0, 2, NaN),
    topK: numberOf(fc.nat(50), -1, 0, 1, 2 ** 31 - 1, 2 ** 31, 0.5),
    minP: numberOf(between(0, 1), 0, 1, 1e-45, 1e-46, 1e-300, 1 - 1e-9, -1, NaN),
    presencePenalty: numberOf(between(-2, 2), 0, -2, 2, 1e-45, NaN),
    frequencyPenalty: numberOf(between(-2, 2), 0, -2, 2, 1e-45, NaN),
    repetitionPenalty: numberOf(
      between(0.5, 2),
      1, 1e-38, 1e-45, 1e-46, 1e-300, 1e38, 3.5e38, 1e39, 1e300, Infinity, 0, NaN,
    ), // prettier-ignore
    logitBias: fc.dictionary(
      tokenId.map(String),
      numberOf(between(-100, 100), 100, -100, 101, Infinity, NaN, 0),
      { maxKeys: 4 },
    ),
    allowedTokenIds: fc.oneof(fc.constant(null), tokenIds(5)),
    seed: fc.option(numberOf(fc.nat(), -1, 2 ** 53 - 1, -(2 ** 53) + 1, 2 ** 31, 2 ** 53, 0.5)),
    stopTokenIds: tokenIds(3),
    minTokens: numberOf(fc.nat(5), 0, 2 ** 31 - 1, 2 ** 31, 2 ** 53 - 1, -1),
    maxTokens: fc.constantFrom(null, 16, 2 ** 31 - 1, 2 ** 31, 2 ** 53 - 1),
  },
  { requiredKeys: [] },
) as fc.Arbitrary<SamplingParamsOptions>;

const cases: fc.Arbitrary<SamplerCase> = fc.record({
  vocabSize: fc.oneof(
    fc.integer({ min: 1, max: 40 }),
    fc.constantFrom(16, 17, 32, 33, 64, 100, 255, 400),
  ),
  logits: fc.record({
    seed: fc.nat(),
    std: fc.constantFrom(0, 0.1, 1, 4, 30),
    special: fc.oneof(
      { weight: 1, arbitrary: fc.constant<[number, number][]>([]) },
      {
        weight: 2,
        arbitrary: fc.array(fc.tuple(tokenId, numberOf(between(-10, 10), ...SPECIAL)), {
          maxLength: 8,
        }),
      },
    ),
  }),
  options,
  eosTokenIds: tokenIds(2),
  badWords: fc.array(fc.array(tokenId, { minLength: 1, maxLength: 3 }), { maxLength: 3 }),
  bitmask: fc.option(fc.array(fc.integer(), { minLength: 13, maxLength: 13 })),
  promptTokenIds: fc.array(tokenId, { minLength: 1, maxLength: 8 }),
  generatedTokenIds: tokenIds(8),
});

/** Relative float32 rounding error of scores; closer decisions are ambiguous. */
const RELATIVE_MARGIN = 4e-6;
const LEAST_MARGIN = 1e-4;

function logitsOf({ vocabSize, logits: { seed, std, special } }: SamplerCase): Float32Array {
  const random = new Random(seed);
  const normal = () => {
    const [u, v] = [(random.word() + 1) / 2 ** 32, random.word() / 2 ** 32];
    return Math.sqrt(-2 * Math.log(u)) * Math.cos(2 * Math.PI * v);
  };
  const logits = Float32Array.from({ length: vocabSize }, () => std * normal());
  for (const [id, logit] of special) logits[id % vocabSize] = logit;
  return logits;
}

/** The validated request; null if validation refuses it with the right error. */
function admitted(given: SamplerCase): SampledRequest | null {
  const { vocabSize } = given;
  const inVocabulary = (ids: readonly number[]) => ids.map((id) => id % vocabSize);
  // The input processor checks that ids are in the vocabulary.
  const { logitBias, allowedTokenIds, stopTokenIds, ...rest } = given.options;
  const biases = Object.entries(logitBias ?? {}).map(
    ([id, bias]) => [Number(id) % vocabSize, bias as number] as const,
  );
  let params: SamplingParams;
  try {
    params = new SamplingParams({
      ...rest,
      ...(logitBias && { logitBias: new Map(biases) }),
      ...(allowedTokenIds && { allowedTokenIds: inVocabulary(allowedTokenIds) }),
      ...(stopTokenIds && { stopTokenIds: inVocabulary(stopTokenIds) }),
    });
  } catch (error) {
    if (error instanceof InvalidRequestError) return null;
    throw error;
  }
  const sampling = toNativeSampling({
    samplingParams: params,
    badWordsTokenIds: given.badWords.map(inVocabulary),
    stopTokenIds: [...params.stopTokenIds, ...inVocabulary(given.eosTokenIds)],
    seed: BigInt.asUintN(64, BigInt(params.seed ?? 7)),
  });
  return {
    sampling,
    promptTokenIds: inVocabulary(given.promptTokenIds),
    generatedTokenIds: inVocabulary(given.generatedTokenIds),
  };
}

/** Samples the same row `count` times in one batch. */
function sample(
  ops: Ops,
  logits: Float32Array,
  { sampling, promptTokenIds, generatedTokenIds }: SampledRequest,
  bitmask: Int32Array | null,
  count: number,
): number[] {
  const vocabSize = logits.length;
  const tokenIds = Int32Array.from([...promptTokenIds, ...generatedTokenIds]);
  const table = ops.makeRequests({
    vocabSize,
    maxNumSeqs: count,
    maxModelLen: tokenIds.length + 1,
    blockSize: 16,
    maxLogprobs: 0,
  });
  const all = new Float32Array(count * vocabSize);
  for (let row = 0; row < count; row++) {
    const blockIds = new Int32Array();
    const numPromptTokens = promptTokenIds.length;
    ops.addRequest(table, row, { tokenIds, numPromptTokens, blockIds, sampling }, 0);
    all.set(logits, row * vocabSize);
  }
  const masks =
    bitmask &&
    Int32Array.from({ length: count * bitmask.length }, (_, i) => bitmask[i % bitmask.length]);
  const tensors = [
    ops.floats(all),
    ops.ints(Array.from({ length: count }, (_, row) => row)),
    ops.zeros(count, 'int32'),
    ...(masks ? [ops.ints(masks)] : []),
  ];
  const [scores, slots, sampled, mask = null] = tensors;
  ops.sample(scores, count, vocabSize, slots, table, mask, sampled, null);
  const drawn = Array.from(ops.readInts(sampled, count));
  for (const tensor of tensors) ops.release(tensor);
  return drawn;
}

/**
 * Tokens that the request's masks allow for any logits; if bad words and early stop tokens exclude all,
 * those that the bitmask and the allowed tokens allow.
 */
function permitted(
  vocabSize: number,
  { sampling, generatedTokenIds }: SampledRequest,
  bitmask: Int32Array | null,
): number[] {
  const allowed = new Set(sampling.allowedTokenIds);
  const inMasks = Array.from({ length: vocabSize }, (_, id) => id).filter(
    (id) =>
      (allowed.size === 0 || allowed.has(id)) &&
      (bitmask === null || ((bitmask[id >> 5] >> (id & 31)) & 1) === 1),
  );
  const banned = new Set(
    generatedTokenIds.length < sampling.minTokens ? sampling.stopTokenIds : [],
  );
  let start = 0;
  for (const end of sampling.badWordsEnds) {
    const word = Array.from(sampling.badWordsTokenIds.subarray(start, end));
    const before = word.slice(0, -1);
    const isBegun =
      before.length <= generatedTokenIds.length &&
      before.every((id, i) => id === generatedTokenIds.at(i - before.length));
    if (isBegun) banned.add(word[word.length - 1]);
    start = end;
  }
  const left = inMasks.filter((id) => !banned.has(id));
  return left.length > 0 ? left : inMasks;
}

/** The device stores parameters in float32, where close values may be equal. */
function inFloat32(sampling: NativeSampling): NativeSampling {
  const floats = Object.entries(sampling).map(([name, value]: [string, unknown]) => [
    name,
    typeof value === 'number' && !Number.isInteger(value) ? Math.fround(value) : value,
  ]);
  return Object.fromEntries(floats) as NativeSampling;
}

class SamplerTarget implements StructuredTarget<SamplerCase> {
  readonly kind = 'structured';
  readonly arbitrary = cases;
  readonly counts = { sampled: 0, 'compared with float64': 0 };
  readonly #backends: { name: Backend; ops: Ops }[];

  constructor({ device }: CampaignOptions) {
    const names: Backend[] = device === 'cuda' ? ['cuda', isas[isas.length - 1]] : isas;
    this.#backends = names.map((name) => ({ name, ops: openOps(name, 1) }));
  }

  check(given: SamplerCase): void {
    const request = admitted(given);
    if (request === null) return;
    const { vocabSize } = given;
    const logits = logitsOf(given);
    const bitmask =
      given.bitmask && Int32Array.from(given.bitmask.slice(0, Math.ceil(vocabSize / 32)));
    const allowed = permitted(vocabSize, request, bitmask);
    // NaN counts as -Infinity: such a token is sampled only if there is no other.
    const possible = allowed.filter((id) => logits[id] > -Infinity);
    const left = possible.length > 0 ? possible : allowed;
    const sure = this.#sureToken(logits, request, bitmask);
    for (const { name, ops } of this.#backends) {
      const [token, again] = sample(ops, logits, request, bitmask, 2);
      const [alone] = sample(ops, logits, request, bitmask, 1);
      this.counts.sampled++;
      expect(
        token === again && token === alone,
        () => `${name}: the same row gives ${token}, ${again} and, alone, ${alone}`,
      );
      expect(
        left.length === 0 || left.includes(token),
        () => `${name}: token ${token}; the masks leave ${left.join(', ')}`,
      );
      expect(token >= 0 && token < vocabSize, () => `${name}: token ${token} of ${vocabSize}`);
      if (sure === null) continue;
      expect(token === sure, () => `${name}: token ${token}; float64 gives ${sure}`);
    }
    if (sure !== null) this.counts['compared with float64']++;
  }

  /** The token of the same steps in float64; null if rounding or a special value may decide. */
  #sureToken(
    logits: Float32Array,
    request: SampledRequest,
    bitmask: Int32Array | null,
  ): number | null {
    const { temperature, repetitionPenalty } = request.sampling;
    const finite = logits.filter((logit) => logit !== -Infinity);
    const largest = finite.reduce((most, logit) => Math.max(most, Math.abs(logit)), 1);
    if (!(largest <= 1e5)) return null;
    if (temperature > 0 && !(temperature >= 0.05 && temperature <= 5)) return null;
    if (!(repetitionPenalty >= 0.5 && repetitionPenalty <= 2)) return null;
    const narrow = { ...request, sampling: inFloat32(request.sampling) };
    const { tokenId: token, margin } = sampleReference(logits, narrow, bitmask ?? undefined);
    const scale = (2 * largest + 110) / (temperature > 0 ? temperature : 1);
    return margin > Math.max(LEAST_MARGIN, RELATIVE_MARGIN * scale) ? token : null;
  }
}

export const sampler: Campaign = {
  name: 'sampler',
  about:
    'sampling parameters and logits: refused, or a permitted token, that of float64 where it is sure',
  open: (options) =>
    Promise.resolve(new SamplerTarget(options) as unknown as StructuredTarget<unknown>),
};
