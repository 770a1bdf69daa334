/** One sequence on its way through the engine: its tokens, where it stands, the blocks it holds. */
import type { SamplingParams } from '../config/samplingParams';
import type { FinishReason } from './outputs';

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
}

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

  status: RequestStatus = 'waiting';
  /** Once finished. */
  finishReason: FinishReason | null = null;
  /** Tokens that are in the KV cache once every step launched so far has run. */
  numComputedTokens = 0;
  /** Tokens that steps in flight will sample for it. */
  numOutputPlaceholders = 0;
  /** Its blocks, in the order of its tokens. */
  readonly blockIds: number[] = [];

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
    this.tokenIds = new Int32Array(
      this.numPromptTokens + Math.min(this.maxTokens, INITIAL_OUTPUT_CAPACITY),
    );
    this.tokenIds.set(init.promptTokenIds);
    this.length = this.numPromptTokens;
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
