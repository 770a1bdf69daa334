/**
 * Converts sampling lists for the device. Requests with the same parameters share the result: a
 * list of 50,000 bad words is flattened once.
 */
import { SamplingParams } from '../config/samplingParams';
import { InvalidRequestError } from '../errors';
import type { NativeSampling } from '../native';
import type { NewRequestData } from '../contract/schedulerOutput';

type BiasLists = Pick<NativeSampling, 'logitBiasTokenIds' | 'logitBiases'>;
type BadWordsLists = Pick<NativeSampling, 'badWordsTokenIds' | 'badWordsEnds'>;
type Lists = BiasLists & BadWordsLists & Pick<NativeSampling, 'allowedTokenIds' | 'stopTokenIds'>;

/** Caches by immutable parameters and frozen lists. */
const biases = new WeakMap<object, BiasLists>();
const badWords = new WeakMap<object, BadWordsLists>();
const tokenLists = new WeakMap<object, Int32Array>();

/**
 * Throws InvalidRequestError for list entries that are not token ids and biases that are not
 * numbers.
 */
export function samplingLists({
  samplingParams,
  badWordsTokenIds,
  stopTokenIds,
}: Pick<NewRequestData, 'samplingParams' | 'badWordsTokenIds' | 'stopTokenIds'>): Lists {
  const allowed = samplingParams.allowedTokenIds ?? NONE;
  return {
    ...made(biases, samplingParams, SamplingParams.isMade(samplingParams), toBiases),
    ...made(badWords, badWordsTokenIds, Object.isFrozen(badWordsTokenIds), flatten),
    allowedTokenIds: made(tokenLists, allowed, Object.isFrozen(allowed), (tokenIds) =>
      toInt32s('allowedTokenIds', tokenIds),
    ),
    stopTokenIds: made(tokenLists, stopTokenIds, Object.isFrozen(stopTokenIds), (tokenIds) =>
      toInt32s('stopTokenIds', tokenIds),
    ),
  };
}

const NONE: readonly number[] = Object.freeze([]);

/** Returns `make(source)`, cached if `source` is immutable. */
function made<Source extends object, Made>(
  cache: WeakMap<object, Made>,
  source: Source,
  isImmutable: boolean,
  make: (source: Source) => Made,
): Made {
  if (!isImmutable) return make(source);
  let result = cache.get(source);
  if (result === undefined) cache.set(source, (result = make(source)));
  return result;
}

function toBiases({ logitBias }: Pick<SamplingParams, 'logitBias'>): BiasLists {
  const logitBiases = new Float32Array(logitBias.size);
  let i = 0;
  for (const [tokenId, bias] of logitBias) {
    if (typeof bias !== 'number') {
      throw new InvalidRequestError(
        `logitBias of token ${tokenId} is ${String(bias)}; it must be a number`,
      );
    }
    logitBiases[i++] = bias;
  }
  return { logitBiasTokenIds: toInt32s('logitBias', [...logitBias.keys()]), logitBiases };
}

function flatten(words: readonly (readonly number[])[]): BadWordsLists {
  let length = 0;
  const badWordsEnds = new Int32Array(words.length);
  for (let i = 0; i < words.length; i++) badWordsEnds[i] = length += words[i].length;
  const badWordsTokenIds = new Int32Array(length);
  for (let i = 0, at = 0; i < words.length; i++) {
    copyTokenIds('badWords', words[i], badWordsTokenIds, at);
    at = badWordsEnds[i];
  }
  return { badWordsTokenIds, badWordsEnds };
}

function toInt32s(name: string, values: readonly number[]): Int32Array {
  const array = new Int32Array(values.length);
  copyTokenIds(name, values, array, 0);
  return array;
}

/** Checked, because a typed array converts invalid values to other tokens: 2 ** 32 and NaN to 0. */
function copyTokenIds(
  name: string,
  values: readonly number[],
  target: Int32Array,
  start: number,
): void {
  for (let i = 0; i < values.length; i++) {
    target[start + i] = values[i];
    if (target[start + i] !== values[i]) {
      throw new InvalidRequestError(
        `${name} names token ${String(values[i])}, which is not a token id`,
      );
    }
  }
}
