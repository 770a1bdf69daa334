/**
 * Allocates the device memory shared by long sampling lists (RequestLimits.maxListMemoryBytes). It
 * is reserved with the model, and a request is admitted only with its allocation, so the device
 * never allocates for lists and cannot run out.
 */
import { HARD_LIMITS, limitedBy, type RequestLimits } from '../config/limits';
import { InvalidRequestError } from '../errors';
import type { Request, RequestInit } from './request';

/** Alignment of every allocation (RequestLimits::kListAlignment). */
export const ALIGNMENT = 256;

type Lists = Pick<RequestInit, 'samplingParams' | 'badWordsTokenIds' | 'stopTokenIds'>;

/** By frozen bad words, which samples and requests with the same parameters share. */
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

/** Throws InvalidRequestError for lists that exceed the whole memory. */
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
  /** Requests with an allocation, by offset. */
  private readonly holders: Request[] = [];

  constructor(readonly maxListMemoryBytes: number) {}

  /**
   * Whether the request's lists fit once those of `victims` are freed. Throws InvalidRequestError
   * if they can never fit.
   */
  hasRoom(request: Request, victims: readonly Request[] = []): boolean {
    if (request.listBytes <= HARD_LIMITS.slotListBytes) return true;
    checkListBytes(request.listBytes, this);
    return this.gapFor(request, victims) !== null;
  }

  /** Allocates memory for the request; `hasRoom` must be true. */
  allocate(request: Request): void {
    if (request.listBytes <= HARD_LIMITS.slotListBytes) return;
    const gap = this.gapFor(request, []);
    if (gap === null) throw new Error(`no list memory for request ${request.requestId}`);
    request.listOffset = gap.offset;
    this.holders.splice(gap.index, 0, request);
  }

  /**
   * Frees the allocation at once, even if a step in flight reads it: the device executes steps in
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

  /** First fit: the gap's offset, and the request's index in `holders`. */
  private gapFor(
    { listBytes: bytes }: Request,
    victims: readonly Request[],
  ): { offset: number; index: number } | null {
    const gone = new Set(victims);
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
