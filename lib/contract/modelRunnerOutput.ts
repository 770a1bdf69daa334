/** What a step gives back (vLLM V1's ModelRunnerOutput). */

/** A list of token ids for each request, laid end to end. */
export class RaggedTokenIds {
  constructor(
    /** All lists' tokens. */
    readonly tokenIds: Int32Array,
    /** [length + 1]: list i is tokenIds[offsets[i] .. offsets[i + 1]). */
    readonly offsets: Int32Array,
  ) {}

  static from(lists: readonly (readonly number[])[]): RaggedTokenIds {
    const offsets = new Int32Array(lists.length + 1);
    lists.forEach((list, i) => (offsets[i + 1] = offsets[i] + list.length));
    return new RaggedTokenIds(Int32Array.from(lists.flat()), offsets);
  }

  /** How many lists there are. */
  get length(): number {
    return this.offsets.length - 1;
  }

  /** List i, as a view. */
  at(i: number): Int32Array {
    return this.tokenIds.subarray(this.offsets[i], this.offsets[i + 1]);
  }
}

/**
 * Logprobs of positions: raw (before temperature and penalties), the position's own token first,
 * then the most likely in falling order; ranks count from 1.
 */
export interface LogprobsLists {
  /** Entries in each position's row: 1 + the most alternatives asked for in this step. */
  width: number;
  /** [numPositions, width] */
  tokenIds: Int32Array;
  /** [numPositions, width] */
  logprobs: Float32Array;
  /** [numPositions] of the position's own token. */
  ranks: Int32Array;
}

export interface ModelRunnerOutput {
  /** Requests in the order of the step's rows. */
  reqIds: readonly string[];
  reqIdToIndex: ReadonlyMap<string, number>;
  /** A list for each request: empty while its prompt is unfinished. */
  sampledTokenIds: RaggedTokenIds;
  /** A row for each token of sampledTokenIds; null when no request asked. */
  logprobs: LogprobsLists | null;
  /**
   * By request: the prompt positions this step computed, in order (position p's row is about token
   * p + 1). Only requests that asked, and only while their prompt is computed.
   */
  promptLogprobs: ReadonlyMap<string, LogprobsLists>;
  /**
   * By request: NaN among the logits that its token, or its prompt's logprobs, of this step come
   * from. Only requests that have any: their outputs mean nothing, the others' are as ever.
   */
  numNansInLogits?: ReadonlyMap<string, number>;
  /**
   * By request: why the worker could not take it. It has no row, here and in the steps that were
   * launched since; the others' are as ever. Absent: none.
   */
  failedReqs?: ReadonlyMap<string, Error>;
}

/**
 * What completes once, when a step is done: a native event, which a worker written in JavaScript
 * signals itself.
 */
export interface ReadyEvent {
  readonly done: boolean;
  signal(): void;
  /** Calls back once after the event is done, on the JavaScript thread and never from inside this call. */
  onReady(callback: (error: Error | null) => void): void;
}

/** A step's output that is still being computed: `getOutput` may be called once `ready` is done. */
export abstract class AsyncModelRunnerOutput {
  abstract readonly ready: ReadyEvent;
  /** Never waits. Throws INVALID_STATE a second time or before `ready`, or the step's own error. */
  abstract getOutput(): ModelRunnerOutput;
}

/** `numNansInLogits` of a step without NaN: the same Map for every such step. */
export const NO_NANS_IN_LOGITS: ReadonlyMap<string, number> = Object.freeze(new Map());

/** The output of a step without tokens. */
export const EMPTY_MODEL_RUNNER_OUTPUT: ModelRunnerOutput = Object.freeze({
  reqIds: [],
  reqIdToIndex: new Map<string, number>(),
  sampledTokenIds: new RaggedTokenIds(new Int32Array(0), new Int32Array(1)),
  logprobs: null,
  promptLogprobs: new Map<string, LogprobsLists>(),
  numNansInLogits: NO_NANS_IN_LOGITS,
});
