/**
 * The device memory that long lists of sampling parameters share (RequestLimits.maxListMemoryBytes).
 * It is allocated with the model and given out here like blocks of the KV cache: a request enters
 * only with its place, so the device never has to allocate for it and cannot run out.
 */
import { HARD_LIMITS, limitedBy, type RequestLimits } from '../config/limits';
import { InvalidRequestError } from '../errors';
import type { Request, RequestInit } from './request';

/** Every place begins at a multiple of it (RequestLimits::kListAlignment). */
export const ALIGNMENT = 256;

type Lists = Pick<RequestInit, 'samplingParams' | 'badWordsTokenIds' | 'stopTokenIds'>;

/** By bad words that cannot change: all samples and requests of the same parameters share them. */
const numBadWordsTokens = new WeakMap<readonly (readonly number[])[], number>();

/** Bytes of a request's lists on the device: 4 for each token id, bias and end of a bad word. */
export function listBytes({ samplingParams, badWordsTokenIds, stopTokenIds }: Lists): number {
  let numTokens = numBadWordsTokens.get(badWordsTokenIds);
  if (numTokens === undefined) {
    numTokens = badWordsTokenIds.reduce((sum, { length }) => sum + length, 0);
    if (Object.isFrozen(badWordsTokenIds)) numBadWordsTokens.set(badWordsTokenIds, numTokens);
  }
  const numEntries =
    2 * samplingParams.logitBias.size +
    (samplingParams.allowedTokenIds?.length ?? 0) +
    badWordsTokenIds.length +
    numTokens +
    stopTokenIds.length;
  return 4 * numEntries;
}

/** Throws InvalidRequestError for lists that do not fit even alone. */
export function checkListBytes(
  bytes: number,
  limits: Readonly<Pick<RequestLimits, 'maxListMemoryBytes'>>,
): void {
  if (bytes <= Math.max(HARD_LIMITS.slotListBytes, limits.maxListMemoryBytes)) return;
  throw new InvalidRequestError(
    `its allowedTokenIds, logitBias, badWords and stopTokenIds take ${bytes} bytes on the device; ` +
      limitedBy(limits, 'maxListMemoryBytes'),
  );
}

export class ListMemory {
  /** Requests with a place, by its offset. */
  private readonly holders: Request[] = [];

  constructor(readonly maxListMemoryBytes: number) {}

  /**
   * Whether the request's lists have a place, once those of `leaving` are gone. Throws
   * InvalidRequestError where they never will.
   */
  hasRoom(request: Request, leaving: readonly Request[] = []): boolean {
    if (request.listBytes <= HARD_LIMITS.slotListBytes) return true;
    checkListBytes(request.listBytes, this);
    return this.gapFor(request, leaving) !== null;
  }

  /** Gives the request its place; `hasRoom` is true of it. */
  take(request: Request): void {
    if (request.listBytes <= HARD_LIMITS.slotListBytes) return;
    const gap = this.gapFor(request, []);
    if (gap === null) throw new Error(`no list memory for request ${request.requestId}`);
    request.listOffset = gap.offset;
    this.holders.splice(gap.index, 0, request);
  }

  /**
   * The place can be had at once, even if a step in flight reads it: the device carries steps out in
   * order, so the next owner writes later.
   */
  free(request: Request): void {
    if (request.listOffset === null) return;
    request.listOffset = null;
    this.holders.splice(this.holders.indexOf(request), 1);
  }

  clear(): void {
    for (const request of this.holders) request.listOffset = null;
    this.holders.length = 0;
  }

  /** The first gap that is large enough, and where in `holders` its owner belongs. */
  private gapFor(
    { listBytes: bytes }: Request,
    leaving: readonly Request[],
  ): { offset: number; index: number } | null {
    const gone = new Set(leaving);
    let offset = 0;
    for (const [index, { listOffset, listBytes: length }] of this.holders.entries()) {
      if (gone.has(this.holders[index])) continue;
      if ((listOffset as number) - offset >= bytes) return { offset, index };
      offset = aligned((listOffset as number) + length);
    }
    if (this.maxListMemoryBytes - offset < bytes) return null;
    return { offset, index: this.holders.length };
  }
}

function aligned(offset: number): number {
  return Math.ceil(offset / ALIGNMENT) * ALIGNMENT;
}
