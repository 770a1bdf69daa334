/** Collects the outputs of a call's prompts. */
import { codeOf, log } from '../log';
import type { OutputReceiver } from './outputCollector';
import type { RequestOutput } from './outputs';
import type { CallReceiver } from './pendingCall';

export class CallOutputs implements CallReceiver {
  readonly isStream = false;
  /** [numPrompts] */
  readonly done: Promise<RequestOutput[]>;
  private readonly outputs: RequestOutput[];
  private resolve!: (outputs: RequestOutput[]) => void;
  private reject!: (error: unknown) => void;
  private numMissing: number;

  constructor(numPrompts: number) {
    this.numMissing = numPrompts;
    this.outputs = new Array<RequestOutput>(numPrompts);
    this.done = new Promise((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
    if (numPrompts === 0) this.resolve([]);
  }

  of(index: number): OutputReceiver {
    return {
      finished: (output) => {
        this.outputs[index] = output;
        if (--this.numMissing === 0) this.resolve(this.outputs);
      },
      failed: this.reject,
    };
  }

  outputOf(index: number): RequestOutput | null {
    return this.outputs[index] ?? null;
  }

  failed(error: unknown): void {
    this.reject(error);
  }
}

/**
 * Returns `start()`, or a promise rejected with what it throws. Unlike an async function it creates
 * no promise of its own, which thousands of waiting calls would each hold.
 */
export function rejectOnThrow<T>(start: () => Promise<T>): Promise<T> {
  try {
    return start();
  } catch (error) {
    log('a call is refused: %s', codeOf(error));
    // Rejects with any thrown value, for example a signal's reason.
    const reason = error as Error;
    return Promise.reject(reason);
  }
}
