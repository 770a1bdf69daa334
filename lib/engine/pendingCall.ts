/** A call between the moment when it was made and its end, and the requests that it is made of. */
import type { RequestOptions } from '../config/requestOptions';
import type { Call } from './call';
import type { CallInputs, EngineInput } from './callInputs';
import { listBytes } from './listMemory';
import type { EndReason } from './metrics';
import type { OutputReceiver } from './outputCollector';
import type { Request } from './request';
import type { ParentRequest } from './requestState';
import type { RequestSource } from './waitingRequests';

/** Who waits for a call's outputs. */
export interface CallReceiver {
  /** Its reader may leave before the outputs are complete. */
  readonly isStream: boolean;
  /** Who waits for those of the prompt `index`. */
  of(index: number): OutputReceiver;
  /** The call has ended without them; once. */
  failed(error: unknown, atOnce?: boolean): void;
}

/** One of the `n` samples of one of a call's prompts. */
export interface Sample {
  requestId: string;
  /** The prompt's place in the call. */
  promptIndex: number;
  /** The sample's place among those of its prompt. */
  index: number;
}

/** Makes a call's requests out of its samples, one at a time, in order. */
export class PendingCall implements RequestSource {
  /** By `performance.now()`. */
  readonly time = performance.now();
  /** Once encoded. */
  inputs: readonly EngineInput[] | null = null;
  /** Resolves when it is encoded or has ended; null where it was encoded at once. */
  encoding: Promise<void> | null = null;
  /** Made so far. */
  readonly requestIds: string[] = [];
  /** Of the latest sample's prompt; admission's. */
  parent: ParentRequest | null = null;
  /** Whether its requests count: in the queue, and as finished when they end. */
  isAdmitted = false;
  /** Whether the scheduler has it. */
  isScheduled = false;
  /** Why it ends, where not all prompts are done. */
  endReason: EndReason = 'error';
  arrival = 0;
  queueIndex = -1;
  /** Of all its prompts. */
  readonly numRequests: number;
  private readonly numSamples: readonly number[];
  /** Of the next sample. */
  private promptIndex = 0;
  private index = 0;
  private numPassed = 0;

  constructor(
    { numRequests, numSamples }: Pick<CallInputs, 'numRequests' | 'numSamples'>,
    readonly receiver: CallReceiver,
    readonly options: RequestOptions,
    readonly call: Call,
    /** The place of its first prompt among all prompts that the engine was ever given. */
    readonly firstRequest: number,
    private readonly make: (pending: PendingCall, input: EngineInput, sample: Sample) => Request,
  ) {
    this.numRequests = numRequests;
    this.numSamples = numSamples;
  }

  get priority(): number {
    return this.options.priority ?? 0;
  }

  get numLeft(): number {
    return this.numRequests - this.numPassed;
  }

  /** Of the next sample's prompt; 0 where it is not encoded. */
  get numPromptTokens(): number {
    return this.inputs?.[this.promptIndex].promptTokenIds.length ?? 0;
  }

  /** Of the next sample's lists; the call must be encoded. */
  get listBytes(): number {
    return listBytes((this.inputs as readonly EngineInput[])[this.promptIndex]);
  }

  /** The call must be encoded. When this throws, the sample stays the next one, not made. */
  makeNext(): Request {
    const { next } = this;
    const inputs = this.inputs as readonly EngineInput[];
    const request = this.make(this, inputs[next.promptIndex], next);
    this.passNext();
    this.requestIds.push(next.requestId);
    return request;
  }

  /** The next sample, which there is, counts as made. */
  passNext(): void {
    this.numPassed++;
    this.index++;
    if (this.index === this.numSamples[this.promptIndex]) {
      this.index = 0;
      this.promptIndex++;
    }
  }

  /** The next sample, where there is one. It has its prompt's id where it is the only one. */
  get next(): Sample {
    const { firstRequest, promptIndex, index } = this;
    const prompt = String(firstRequest + promptIndex);
    const isOnly = this.numSamples[promptIndex] === 1;
    return { requestId: isOnly ? prompt : `${prompt}-${index}`, promptIndex, index };
  }
}
