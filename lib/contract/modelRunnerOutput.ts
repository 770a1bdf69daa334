/** A step's output (vLLM V1's ModelRunnerOutput). */

/** Token id lists, concatenated. */
export class RaggedTokenIds {
  constructor(
    /** All lists' token ids. */
    readonly tokenIds: Int32Array,
    /** [length + 1]: list i is tokenIds[offsets[i] .. offsets[i + 1]). */
    readonly offsets: Int32Array,
  ) {}

  static from(lists: readonly (readonly number[])[]): RaggedTokenIds {
    const offsets = new Int32Array(lists.length + 1);
    lists.forEach((list, i) => (offsets[i + 1] = offsets[i] + list.length));
    return new RaggedTokenIds(Int32Array.from(lists.flat()), offsets);
  }

  /** Number of lists. */
  get length(): number {
    return this.offsets.length - 1;
  }

  /** List i, as a view. */
  at(i: number): Int32Array {
    return this.tokenIds.subarray(this.offsets[i], this.offsets[i + 1]);
  }
}

/**
 * Raw logprobs of positions, before temperature and penalties: the position's own token first, then
 * the likeliest in descending order; ranks count from 1.
 */
export interface LogprobsLists {
  /** Entries per row: 1 + the most alternatives requested in this step. */
  width: number;
  /** [numPositions, width] */
  tokenIds: Int32Array;
  /** [numPositions, width] */
  logprobs: Float32Array;
  /** [numPositions], of each position's own token. */
  ranks: Int32Array;
}

export interface ModelRunnerOutput {
  /** Request ids in row order. */
  reqIds: readonly string[];
  reqIdToIndex: ReadonlyMap<string, number>;
  /** One list per request; empty while its prompt is unfinished. */
  sampledTokenIds: RaggedTokenIds;
  /** One row per token of sampledTokenIds; null if no request asked. */
  logprobs: LogprobsLists | null;
  /**
   * By request: prompt positions computed in this step, in order (row p is about token p + 1). Only
   * requests that asked, and only during their prefill.
   */
  promptLogprobs: ReadonlyMap<string, LogprobsLists>;
  /**
   * Of an embedding model: the embedding for each token of sampledTokenIds, which is a placeholder that
   * ends its request. Absent: the model samples.
   */
  pooled?: readonly Float32Array[];
  /**
   * By request with any: the number of NaN logits behind its sampled token or prompt logprobs of
   * this step. Only these requests' outputs are invalid.
   */
  numNansInLogits?: ReadonlyMap<string, number>;
  /**
   * By request: why the worker refused it. It has no row in this step or in those launched since;
   * other requests are unaffected. Absent: none.
   */
  failedReqs?: ReadonlyMap<string, Error>;
}

/**
 * A native event that completes once when the step is done; JavaScript workers signal it
 * themselves.
 */
export interface ReadyEvent {
  readonly done: boolean;
  signal(): void;
  /** Calls back once after the event, on the JavaScript thread, never from within this call. */
  onReady(callback: (error: Error | null) => void): void;
}

/** The output of a step in flight; `getOutput` may be called once `ready` is done. */
export abstract class AsyncModelRunnerOutput {
  abstract readonly ready: ReadyEvent;
  /**
   * Does not block. Throws INVALID_STATE if called twice or before `ready`, or the step's own
   * error.
   */
  abstract getOutput(): ModelRunnerOutput;
}

/** Shared `numNansInLogits` of all steps without NaN. */
export const NO_NANS_IN_LOGITS: ReadonlyMap<string, number> = Object.freeze(new Map());

/** Output of a step without tokens. */
export const EMPTY_MODEL_RUNNER_OUTPUT: ModelRunnerOutput = Object.freeze({
  reqIds: [],
  reqIdToIndex: new Map<string, number>(),
  sampledTokenIds: new RaggedTokenIds(new Int32Array(0), new Int32Array(1)),
  logprobs: null,
  promptLogprobs: new Map<string, LogprobsLists>(),
  numNansInLogits: NO_NANS_IN_LOGITS,
});
