/** A call between the moment when it was made and its end, and the requests that it is made of. */
import type { RequestOptions } from '../config/requestOptions';
import type { Call } from './call';
import type { EngineInput } from './callInputs';
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
  input: EngineInput;
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
  /** Whether the scheduler has it. */
  isScheduled = false;
  /** Why it ends, where not all prompts are done. */
  endReason: EndReason = 'error';
  arrival = 0;
  queueIndex = -1;
  /** Of the next sample. */
  private promptIndex = 0;
  private index = 0;
  private numTaken = 0;

  constructor(
    /** Of all its prompts. */
    readonly numRequests: number,
    readonly receiver: CallReceiver,
    readonly options: RequestOptions,
    readonly call: Call,
    /** The place of its first prompt among all prompts that the engine was ever given. */
    readonly firstRequest: number,
    private readonly make: (pending: PendingCall, sample: Sample) => Request,
  ) {}

  get priority(): number {
    return this.options.priority ?? 0;
  }

  get numLeft(): number {
    return this.numRequests - this.numTaken;
  }

  makeNext(): Request {
    const sample = this.takeNext();
    this.requestIds.push(sample.requestId);
    return this.make(this, sample);
  }

  /** The next sample, which counts as made from now on. There is one, and the call is encoded. */
  takeNext(): Sample {
    const { firstRequest, promptIndex, index } = this;
    const input = (this.inputs as readonly EngineInput[])[promptIndex];
    const { n } = input.samplingParams;
    const prompt = String(firstRequest + promptIndex);
    this.numTaken++;
    this.index++;
    if (this.index === n) {
      this.index = 0;
      this.promptIndex++;
    }
    return { requestId: n === 1 ? prompt : `${prompt}-${index}`, input, promptIndex, index };
  }
}
