/** One sequence in the engine: its tokens, status and KV cache blocks. */
import type { SamplingParams } from '../config/samplingParams';
import type { PoolingParams } from '../contract/schedulerOutput';
import type { BlockHash } from './blockHash';
import { listBytes } from './listMemory';
import type { EndReason, FinishReason } from './outputs';

export type RequestStatus = 'waiting' | 'running' | 'preempted' | 'finished';

/** Constructor arguments of Request. */
export interface RequestInit {
  requestId: string;
  /** [numPromptTokens], not empty. */
  promptTokenIds: Int32Array;
  samplingParams: SamplingParams;
  /** Tokens that end the request. */
  stopTokenIds: readonly number[];
  badWordsTokenIds: readonly (readonly number[])[];
  /** 64 bits. */
  seed: bigint;
  /** Most tokens of prompt and output together. */
  maxModelLen: number;
  /** Lower runs first, where the scheduler's policy is 'priority'; default 0. */
  priority?: number;
  /** Only requests with the same salt share blocks; default ''. */
  cacheSalt?: string;
  /** How its embedding is made; omitted: it generates. */
  pooling?: PoolingParams;
}

/**
 * Admission cost limit of a step, in list entries of some 15 ns each: a request's lists are copied
 * for the device, and its tokens are hashed and looked up in the prefix cache.
 */
export const MAX_ADMISSION_COST = 2 ** 18;
/** Admission cost of a token, in entries. */
const TOKEN_COST = 4;

/** Initial capacity for output tokens. */
const INITIAL_OUTPUT_CAPACITY = 64;

export class Request {
  readonly requestId: string;
  readonly samplingParams: SamplingParams;
  readonly stopTokenIds: readonly number[];
  readonly badWordsTokenIds: readonly (readonly number[])[];
  readonly seed: bigint;
  readonly numPromptTokens: number;
  /** Most tokens it may generate: its own limit or the model's. */
  readonly maxTokens: number;
  readonly priority: number;
  readonly cacheSalt: string;
  readonly pooling: PoolingParams | undefined;
  /** Device bytes of its sampling lists. */
  readonly listBytes: number;

  status: RequestStatus = 'waiting';
  /** Whether the worker holds its state, which must be freed; set by the scheduler. */
  isOnWorker = false;
  /** Null until finished. */
  finishReason: EndReason | null = null;
  /** Tokens in the KV cache once all launched steps have run. */
  numComputedTokens = 0;
  /** Tokens that steps in flight will sample. */
  numOutputPlaceholders = 0;
  /**
   * KV cache blocks [numBlocks, numGroups], in token order: a block of each group of layers, or
   * NO_BLOCK before the group's window.
   */
  readonly blockIds: number[] = [];
  /**
   * Set by the KV cache manager: for each attention window, the index of the first block held;
   * hashes of its first full blocks, their cache generation, and the number of blocks cached.
   */
  readonly firstBlocks: number[] = [];
  readonly blockHashes: BlockHash[] = [];
  cacheGeneration = 0;
  numCachedBlocks = 0;
  /** Offset of its lists in the device's list memory, else null; set by ListMemory. */
  listOffset: number | null = null;
  /** Arrival number; set by the scheduler. */
  arrival = 0;
  /** Index in the waiting queue; -1 when not queued. */
  queueIndex = -1;
  /** Tokens that each step in flight will sample, oldest step first; set by the scheduler. */
  readonly tokensInFlight: number[] = [];
  /** Prefix cache hits when first scheduled; null before. */
  numCachedTokens: number | null = null;

  /** Prompt and output; the first `numTokens` are valid. */
  private tokenIds: Int32Array;
  private length: number;

  constructor(init: RequestInit) {
    this.requestId = init.requestId;
    this.samplingParams = init.samplingParams;
    this.stopTokenIds = init.stopTokenIds;
    this.badWordsTokenIds = init.badWordsTokenIds;
    this.seed = init.seed;
    this.numPromptTokens = init.promptTokenIds.length;
    const room = init.maxModelLen - this.numPromptTokens;
    this.maxTokens = Math.min(init.samplingParams.maxTokens ?? room, room);
    this.priority = init.priority ?? 0;
    this.cacheSalt = init.cacheSalt ?? '';
    this.pooling = init.pooling;
    this.listBytes = listBytes(init);
    this.tokenIds = new Int32Array(
      this.numPromptTokens + Math.min(this.maxTokens, INITIAL_OUTPUT_CAPACITY),
    );
    this.tokenIds.set(init.promptTokenIds);
    this.length = this.numPromptTokens;
  }

  /** Cost of admitting it, in the unit of MAX_ADMISSION_COST. */
  get admissionCost(): number {
    const { badWordsTokenIds, samplingParams, stopTokenIds } = this;
    const { allowedTokenIds, logitBias } = samplingParams;
    const numEntries =
      numEntriesOf(badWordsTokenIds) +
      stopTokenIds.length +
      logitBias.size +
      (allowedTokenIds?.length ?? 0);
    return TOKEN_COST * this.length + numEntries;
  }

  /** Whether masks limit its tokens. */
  get hasGrammar(): boolean {
    return this.samplingParams.structuredOutputs !== null;
  }

  /** The worker has lost its state: all its tokens are to be computed again. */
  restart(): void {
    this.status = 'waiting';
    this.isOnWorker = false;
    this.numComputedTokens = 0;
    this.numCachedBlocks = 0;
    this.tokensInFlight.length = 0;
    this.blockIds.length = 0;
  }

  /** Known tokens of prompt and output. */
  get numTokens(): number {
    return this.length;
  }

  /** Tokens of prompt and output, including placeholders for tokens in flight. */
  get numTokensWithPlaceholders(): number {
    return this.length + this.numOutputPlaceholders;
  }

  get numOutputTokens(): number {
    return this.length - this.numPromptTokens;
  }

  /** [numPromptTokens], a view. */
  get promptTokenIds(): Int32Array {
    return this.tokenIds.subarray(0, this.numPromptTokens);
  }

  /** Tokens `start` to `end` (exclusive) of prompt and output, a view. */
  tokensBetween(start: number, end: number): Int32Array {
    return this.tokenIds.subarray(start, end);
  }

  /** Prompt and output, [numTokens], a copy. */
  allTokenIds(): Int32Array {
    return this.tokenIds.slice(0, this.length);
  }

  /** Whether the tokens in flight reach its limit, so there is nothing left to schedule. */
  get reachesLimitInFlight(): boolean {
    return this.numOutputTokens + this.numOutputPlaceholders >= this.maxTokens;
  }

  appendOutputToken(tokenId: number): void {
    if (this.length === this.tokenIds.length) {
      const grown = new Int32Array(
        Math.min(2 * this.length, this.numPromptTokens + this.maxTokens),
      );
      grown.set(this.tokenIds);
      this.tokenIds = grown;
    }
    this.tokenIds[this.length++] = tokenId;
  }

  /**
   * Whether its parameters forbid `tokenId` next: it completes a bad word, or is a stop token
   * before minTokens. The sampler returns such a token only if no other is allowed, so this checks
   * only where that is possible: with allowedTokenIds or structuredOutputs, or with bans for all of
   * `vocabSize` tokens.
   */
  forbids(tokenId: number, vocabSize: number): boolean {
    const { badWordsTokenIds, numOutputTokens, samplingParams, stopTokenIds } = this;
    const isEarly = numOutputTokens < samplingParams.minTokens;
    if (samplingParams.allowedTokenIds === null && samplingParams.structuredOutputs === null) {
      const numBans = badWordsTokenIds.length + (isEarly ? stopTokenIds.length : 0);
      if (numBans < vocabSize) return false;
    }
    if (isEarly && stopTokenIds.includes(tokenId)) return true;
    return badWordsTokenIds.some((word) => this.wouldComplete(word, tokenId));
  }

  private wouldComplete(word: readonly number[], tokenId: number): boolean {
    const numBefore = word.length - 1;
    if (word[numBefore] !== tokenId || numBefore > this.numOutputTokens) return false;
    const start = this.length - numBefore;
    for (let i = 0; i < numBefore; i++) if (this.tokenIds[start + i] !== word[i]) return false;
    return true;
  }

  /** The finish reason after the last token; null while unfinished. */
  checkStop(): FinishReason | null {
    const { numOutputTokens, samplingParams } = this;
    if (this.pooling !== undefined) return 'stop';
    const lastTokenId = this.tokenIds[this.length - 1];
    if (numOutputTokens > samplingParams.minTokens && this.stopTokenIds.includes(lastTokenId)) {
      return 'stop';
    }
    return numOutputTokens >= this.maxTokens ? 'length' : null;
  }
}

/** Cached by list, which requests with the same parameters share. */
const badWordsEntries = new WeakMap<readonly (readonly number[])[], number>();

/** Tokens of all bad words plus one end per word. */
function numEntriesOf(badWords: readonly (readonly number[])[]): number {
  if (badWords.length === 0) return 0;
  let numEntries = badWordsEntries.get(badWords);
  if (numEntries === undefined) {
    numEntries = badWords.reduce((sum, word) => sum + word.length, badWords.length);
    badWordsEntries.set(badWords, numEntries);
  }
  return numEntries;
}

export function isUnfinished(request: Request): boolean {
  return request.status !== 'finished';
}
