/** A call on its way into the engine, and who waits for its outputs. */
import type { RequestOptions } from '../config/requestOptions';
import type { Call } from './call';
import type { CallInputs, EngineInput } from './callInputs';
import type { EndReason } from './metrics';
import type { OutputReceiver } from './outputCollector';
import type { Request } from './request';

/** Who waits for a call's outputs. */
export interface CallReceiver {
  /** Its reader may leave before the outputs are complete. */
  readonly isStream: boolean;
  /** Who waits for those of the prompt `index`. */
  of(index: number): OutputReceiver;
  /** The call has ended without them; once. */
  failed(error: unknown, atOnce?: boolean): void;
}

/** A sample of a call that ended before the sample was a request. */
export interface UnmadeRequest {
  requestId: string;
  /** 0 where its prompt was not encoded. */
  numPromptTokens: number;
}

/** A call that was made and is not done. */
export class PendingCall {
  /** By `performance.now()`. */
  readonly time = performance.now();
  /** Once encoded. */
  inputs: readonly EngineInput[] | null = null;
  /** Resolves when it is encoded or has ended; null where it was encoded at once. */
  encoding: Promise<void> | null = null;
  /** Made so far. */
  readonly requestIds: string[] = [];
  /** Made, and not yet with the scheduler. */
  requests: Request[] = [];
  /** Whether its requests count: in the queue, and as finished when they end. */
  isAdmitted = false;
  /** Whether the scheduler has its requests. */
  isScheduled = false;
  /** Why it ends, where not all prompts are done. */
  endReason: EndReason = 'error';

  constructor(
    readonly callInputs: CallInputs,
    readonly receiver: CallReceiver,
    readonly options: RequestOptions,
    readonly call: Call,
    /** The place of its first prompt among all prompts that the engine was ever given. */
    readonly firstRequest: number,
  ) {}

  /** Samples of which there is no request yet. */
  get numUnmade(): number {
    return this.callInputs.numRequests - this.requestIds.length;
  }

  /** The sample `index` of the call's prompt `prompt`: it has the prompt's id where it is the only one. */
  requestId(prompt: number, index: number): string {
    const id = String(this.firstRequest + prompt);
    return this.callInputs.numSamples[prompt] === 1 ? id : `${id}-${index}`;
  }

  /** The samples of which there is no request yet: they are made in this order. */
  *unmade(): Iterable<UnmadeRequest> {
    let numMade = this.requestIds.length;
    for (const [prompt, numSamples] of this.callInputs.numSamples.entries()) {
      const numPromptTokens = this.inputs?.[prompt].promptTokenIds.length ?? 0;
      for (let index = Math.min(numMade, numSamples); index < numSamples; index++) {
        yield { requestId: this.requestId(prompt, index), numPromptTokens };
      }
      numMade -= Math.min(numMade, numSamples);
    }
  }
}
