/** One sequence on its way through the engine: its tokens, where it stands, the blocks it holds. */
import type { SamplingParams } from '../config/samplingParams';
import type { BlockHash } from './blockHash';
import { listBytes } from './listMemory';
import type { EndReason, FinishReason } from './outputs';

export type RequestStatus = 'waiting' | 'running' | 'preempted' | 'finished';

/** What a request is made of. */
export interface RequestInit {
  requestId: string;
  /** [numPromptTokens], not empty. */
  promptTokenIds: Int32Array;
  samplingParams: SamplingParams;
  /** Tokens that end it. */
  stopTokenIds: readonly number[];
  badWordsTokenIds: readonly (readonly number[])[];
  /** 64 bits. */
  seed: bigint;
  /** Most tokens of prompt and output together. */
  maxModelLen: number;
  /** Lower runs first, where the scheduler's policy is 'priority'; default 0. */
  priority?: number;
  /** Blocks are shared with requests of the same salt alone; default ''. */
  cacheSalt?: string;
}

/**
 * What taking requests up may cost in a step, in entries of lists, some 15 ns each: a request's lists
 * are copied for the device, and its tokens hashed and looked up in the prefix cache.
 */
export const MAX_ADMISSION_COST = 2 ** 18;
/** What a token of a prompt costs, in entries. */
const TOKEN_COST = 4;

/** Output tokens that a new request has room for, before its array first grows. */
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
  /** Of the lists of its sampling parameters on the device. */
  readonly listBytes: number;

  status: RequestStatus = 'waiting';
  /** Whether the worker was told of it, and so has to hear of its end; the scheduler's. */
  isOnWorker = false;
  /** Once finished. */
  finishReason: EndReason | null = null;
  /** Tokens that are in the KV cache once every step launched so far has run. */
  numComputedTokens = 0;
  /** Tokens that steps in flight will sample for it. */
  numOutputPlaceholders = 0;
  /** Its blocks, in the order of its tokens. */
  readonly blockIds: number[] = [];
  /** The KV cache manager's: what its first blocks can be found by, in which generation of the
   * cache, and how many were given to it. */
  readonly blockHashes: BlockHash[] = [];
  cacheGeneration = 0;
  numCachedBlocks = 0;
  /** Where its lists are in the device's list memory; null where they are not; ListMemory's. */
  listOffset: number | null = null;
  /** How many requests came before it; the scheduler's. */
  arrival = 0;
  /** Its place in the scheduler's queue; -1 while it is not there. */
  queueIndex = -1;
  /** Tokens that each launched step with a row of it will sample, the oldest first; the scheduler's. */
  readonly tokensInFlight: number[] = [];
  /** Tokens found in the cache when it first ran; null before. */
  numCachedTokens: number | null = null;

  /** Prompt and output; the first `numTokens` count. */
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
    this.listBytes = listBytes(init);
    this.tokenIds = new Int32Array(
      this.numPromptTokens + Math.min(this.maxTokens, INITIAL_OUTPUT_CAPACITY),
    );
    this.tokenIds.set(init.promptTokenIds);
    this.length = this.numPromptTokens;
  }

  /** What it costs to take it up, in the unit of MAX_ADMISSION_COST. */
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

  /** Known tokens of prompt and output. */
  get numTokens(): number {
    return this.length;
  }

  /** Tokens of prompt and output, those still in flight counted in. */
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

  /** Tokens `start` to `end` of prompt and output, a view. */
  tokensBetween(start: number, end: number): Int32Array {
    return this.tokenIds.subarray(start, end);
  }

  /** Prompt and output, [numTokens], a copy. */
  allTokenIds(): Int32Array {
    return this.tokenIds.slice(0, this.length);
  }

  /** Whether what is in flight brings it to its limit: there is nothing more to schedule. */
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
   * Whether its parameters forbid `tokenId` as the next token: the end of a bad word, or a stop token
   * before minTokens. The sampler gives such a token where nothing else is left to choose from, so this
   * looks only where that can be: with allowedTokenIds, or with bans for all of `vocabSize` tokens.
   */
  forbids(tokenId: number, vocabSize: number): boolean {
    const { badWordsTokenIds, numOutputTokens, samplingParams, stopTokenIds } = this;
    const isEarly = numOutputTokens < samplingParams.minTokens;
    if (samplingParams.allowedTokenIds === null) {
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

  /** Why the request ends with its last token; null when it goes on. */
  checkStop(): FinishReason | null {
    const { numOutputTokens, samplingParams } = this;
    const lastTokenId = this.tokenIds[this.length - 1];
    if (numOutputTokens > samplingParams.minTokens && this.stopTokenIds.includes(lastTokenId)) {
      return 'stop';
    }
    return numOutputTokens >= this.maxTokens ? 'length' : null;
  }
}

/** By list, which requests of the same parameters share. */
const badWordsEntries = new WeakMap<readonly (readonly number[])[], number>();

/** Tokens of all bad words, and an end for each. */
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
