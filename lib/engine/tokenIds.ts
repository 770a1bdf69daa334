/** Token ids from callers: lists of numbers and integer typed arrays. */
import { types } from 'node:util';
import { show } from '../config/schema';
import { InvalidRequestError } from '../errors';

/** Elements are the ids, also of a BigInt array. */
export type TokenIds =
  | readonly number[]
  | Int8Array
  | Uint8Array
  | Uint8ClampedArray
  | Int16Array
  | Uint16Array
  | Int32Array
  | Uint32Array
  | BigInt64Array
  | BigUint64Array;

/**
 * Copies token ids [numTokens], reading each entry once; null if `given` is no list. Throws
 * InvalidRequestError for an empty list, for `maxModelLen` tokens or more, and for an entry that is
 * no token of the model.
 */
export function copyTokenIds(
  given: unknown,
  maxModelLen: number,
  vocabSize: number,
): Int32Array | null {
  if (!Array.isArray(given) && !types.isTypedArray(given)) return null;
  const isBigInts = types.isBigInt64Array(given) || types.isBigUint64Array(given);
  if (types.isTypedArray(given) && !isBigInts && !isIntegers(given)) {
    throw new InvalidRequestError(
      `its promptTokenIds are a ${given[Symbol.toStringTag]}; token ids are integers, in a list or ` +
        'in a typed array of integers',
    );
  }
  const list = given as ArrayLike<unknown>;
  const { length } = list;
  checkNumTokens(length, maxModelLen);
  const copy = new Int32Array(length);
  for (let i = 0; i < length; i++) {
    const value = list[i];
    const tokenId = isBigInts ? Number(value) : value;
    if (!isTokenId(tokenId, vocabSize)) throw notAToken(i, value, vocabSize);
    copy[i] = tokenId;
  }
  return copy;
}

function isIntegers(array: NodeJS.TypedArray): boolean {
  return array[Symbol.toStringTag].includes('nt');
}

function checkNumTokens(numTokens: number, maxModelLen: number): void {
  if (!(numTokens >= 1)) throw new InvalidRequestError('it is empty');
  if (numTokens < maxModelLen) return;
  throw new InvalidRequestError(
    `it has ${numTokens} tokens; with maxModelLen ${maxModelLen} a prompt may have ` +
      `${maxModelLen - 1}, which leaves room to generate one`,
  );
}

function isTokenId(value: unknown, vocabSize: number): value is number {
  return typeof value === 'number' && (value | 0) === value && value >= 0 && value < vocabSize;
}

function notAToken(index: number, value: unknown, vocabSize: number): InvalidRequestError {
  const hints: Partial<Record<string, string>> = {
    bigint: '; pass numbers, or BigInts in a BigInt64Array',
    string: "; a list is one prompt's token ids",
  };
  const hint = hints[typeof value] ?? '';
  return new InvalidRequestError(
    `its token ${index} is ${show(value)}; the model's tokens are integers from 0 to ` +
      `${vocabSize - 1}${hint}`,
  );
}
