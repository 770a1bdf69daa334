/** A call from creation to end, and the source of its requests. */
import type { Call } from './call';
import type { CallInputs, EngineInput } from './callInputs';
import type { CallOptions } from './callOptions';
import { listBytes } from './listMemory';
import type { EndReason } from './metrics';
import type { OutputReceiver } from './outputCollector';
import type { Request } from './request';
import type { RequestOutput } from './outputs';
import type { ParentRequest } from './requestState';
import type { RequestSource } from './waitingRequests';

/** Receives a call's outputs. */
export interface CallReceiver {
  /** Its reader may leave before the outputs are complete. */
  readonly isStream: boolean;
  /** The receiver of prompt `index`. */
  of(index: number): OutputReceiver;
  /** The complete output of prompt `index`; null if it is not complete. */
  outputOf?(index: number): RequestOutput | null;
  /** The call failed; called once. */
  failed(error: unknown, atOnce?: boolean): void;
}

/** One of the `n` samples of one of a call's prompts. */
export interface Sample {
  requestId: string;
  /** Index of the prompt in the call. */
  promptIndex: number;
  /** Index of the sample among the prompt's `n`. */
  index: number;
}

/** Makes a call's requests from its samples, one at a time, in order. */
export class PendingCall implements RequestSource {
  /** Creation time, by `performance.now()`. */
  readonly time = performance.now();
  /** Null until encoded. */
  inputs: readonly EngineInput[] | null = null;
  /** Resolves once encoded or ended; null if it was encoded synchronously. */
  encoding: Promise<void> | null = null;
  /** Ids of requests made so far. */
  readonly requestIds: string[] = [];
  /** Parent of the latest sample; set by Admission. */
  parent: ParentRequest | null = null;
  /** Whether its requests count: in the queue, and as finished when they end. */
  isAdmitted = false;
  /** Whether the scheduler has it. */
  isScheduled = false;
  /** Why it ended, if not all prompts are done. */
  endReason: EndReason = 'error';
  arrival = 0;
  queueIndex = -1;
  /** Requests of all its prompts. */
  readonly numRequests: number;
  private readonly numSamples: readonly number[];
  private readonly texts: readonly (string | null)[];
  /** Position of the next sample. */
  private promptIndex = 0;
  private index = 0;
  private numTaken = 0;

  constructor(
    { numRequests, numSamples, texts }: Pick<CallInputs, 'numRequests' | 'numSamples' | 'texts'>,
    readonly receiver: CallReceiver,
    readonly options: CallOptions,
    readonly call: Call,
    /** Index of its first prompt among all prompts of the engine. */
    readonly firstRequest: number,
    private readonly make: (pending: PendingCall, input: EngineInput, sample: Sample) => Request,
  ) {
    this.numRequests = numRequests;
    this.numSamples = numSamples;
    this.texts = texts;
  }

  get priority(): number {
    return this.options.priority ?? 0;
  }

  get numPrompts(): number {
    return this.call.numPrompts;
  }

  get numLeft(): number {
    return this.numRequests - this.numTaken;
  }

  /** Prompt tokens of the next sample; 0 if not encoded. */
  get numPromptTokens(): number {
    return this.inputs?.[this.promptIndex].promptTokenIds.length ?? 0;
  }

  /** Bytes of the next sample's lists; the call must be encoded. */
  get listBytes(): number {
    return listBytes((this.inputs as readonly EngineInput[])[this.promptIndex]);
  }

  /**
   * Makes the next sample's request; the call must be encoded. On a throw the sample stays next.
   */
  makeNext(): Request {
    const { next } = this;
    const inputs = this.inputs as readonly EngineInput[];
    const request = this.make(this, inputs[next.promptIndex], next);
    this.skipNext();
    this.requestIds.push(next.requestId);
    return request;
  }

  /** Skips the next sample; there must be one. */
  skipNext(): void {
    this.numTaken++;
    this.index++;
    if (this.index === this.numSamples[this.promptIndex]) {
      this.index = 0;
      this.promptIndex++;
    }
  }

  /** The next sample; there must be one. It has the prompt's id if it is the only sample. */
  get next(): Sample {
    const { firstRequest, promptIndex, index } = this;
    const prompt = String(firstRequest + promptIndex);
    const isOnly = this.numSamples[promptIndex] === 1;
    return { requestId: isOnly ? prompt : `${prompt}-${index}`, promptIndex, index };
  }

  /** What the prompts have generated, in order, complete or not. */
  partialOutputs(): RequestOutput[] {
    return this.numSamples.map((_, index) => {
      const requestId = String(this.firstRequest + index);
      return (
        this.receiver.outputOf?.(index) ??
        this.call.partialOutput(requestId) ??
        this.emptyOutput(requestId, index)
      );
    });
  }

  /** Of a prompt whose requests have not begun; it has no token ids if it was not encoded yet. */
  private emptyOutput(requestId: string, index: number): RequestOutput {
    return {
      requestId,
      prompt: this.texts[index],
      promptTokenIds: Array.from(this.inputs?.[index].promptTokenIds ?? []),
      promptLogprobs: null,
      outputs: [],
      numCachedTokens: 0,
      metrics: {
        arrivalTimeMs: performance.timeOrigin + this.time,
        queueTimeMs: null,
        timeToFirstTokenMs: null,
        timeToLastTokenMs: null,
      },
    };
  }
}
