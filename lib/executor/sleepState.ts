/**
 * Tracks which worker memory is asleep. The executor alone owns this state: it refuses steps while
 * asleep and calls the workers, which free and restore memory (worker/sleep.ts).
 */
import { show } from '../config/schema';
import { InvalidStateError } from '../errors';
import { codeOf, log } from '../log';
import type { SleepTag } from '../worker/workerBase';
import type { Future } from './future';

const SLEEP_TAGS: readonly SleepTag[] = ['weights', 'kv_cache'];

/** Calls a method on every worker; one future each. */
type CallWorkers = (method: 'sleep' | 'wakeUp', args: readonly unknown[]) => Future<unknown>[];

export class SleepState {
  readonly #asleep = new Set<SleepTag>();
  #numSleeps = 0;
  /** A wakeUp has restored memory, or some of it before it failed; another sleep frees that. */
  #isPartlyAwake = false;
  /** The sleep or wakeUp in progress; resolves once settled. */
  #lastTransition: Promise<void> | null = null;

  constructor(private readonly callWorkers: CallWorkers) {}

  get isSleeping(): boolean {
    return this.#asleep.size > 0;
  }

  /** Number of sleeps; each drops the KV cache's content. */
  get numSleeps(): number {
    return this.#numSleeps;
  }

  /** The error for `call` while asleep; null while awake. */
  refusalOf(call: string): InvalidStateError | null {
    if (!this.isSleeping) return null;
    const asleep = [...this.#asleep].join(' and ');
    return new InvalidStateError(
      `${call} was called while ${asleep} are asleep; call wakeUp first`,
    );
  }

  async sleep(level: 1 | 2): Promise<void> {
    if (![1, 2].includes(level)) {
      throw new InvalidStateError(`sleep level must be 1 or 2, not ${show(level)}`);
    }
    return this.#transition(() => this.#fallAsleep(level));
  }

  async #fallAsleep(level: 1 | 2): Promise<void> {
    const wasAsleep = this.isSleeping;
    if (wasAsleep && !this.#isPartlyAwake) {
      warn('sleep: the executor is already asleep');
      return;
    }
    const workers = this.callWorkers('sleep', [level]);
    // If all workers refuse synchronously, the executor stays awake.
    if (workers.some((worker) => worker.peek()?.status !== 'rejected')) {
      // Set before awaiting, so no step is launched to a worker that is falling asleep.
      for (const tag of SLEEP_TAGS) this.#asleep.add(tag);
      this.#numSleeps++;
    }
    const outcomes = await Promise.allSettled(workers.map((worker) => worker.result()));
    const failed = outcomes.find((outcome) => outcome.status === 'rejected');
    if (failed === undefined) {
      this.#isPartlyAwake = false;
      log('sleep: weights and kv_cache are asleep, level %d', level);
      return;
    }
    log('sleep: failed: %s', codeOf(failed.reason));
    if (wasAsleep) throw failed.reason;
    // All workers sleep or none: wake those that succeeded.
    if (outcomes.some(({ status }) => status === 'fulfilled')) {
      await all(this.callWorkers('wakeUp', [SLEEP_TAGS]));
    }
    this.#asleep.clear();
    throw failed.reason;
  }

  async wakeUp(tags: readonly SleepTag[] | undefined): Promise<void> {
    if (tags !== undefined && !Array.isArray(tags)) {
      throw new InvalidStateError(`wakeUp takes a list of tags, not ${show(tags)}`);
    }
    return this.#transition(() => this.#wake(tags ?? [...this.#asleep]));
  }

  async #wake(tags: readonly SleepTag[]): Promise<void> {
    const awake = tags.find((tag) => !this.#asleep.has(tag));
    if (!this.isSleeping || awake !== undefined) {
      warn(`wakeUp: ${awake ?? 'the executor'} is not asleep`);
      return;
    }
    this.#isPartlyAwake = true;
    await all(this.callWorkers('wakeUp', [tags]));
    for (const tag of tags) this.#asleep.delete(tag);
    log('wakeUp: %j are awake', tags);
  }

  /** Runs sleep and wakeUp one at a time, in call order; immediately if none is in progress. */
  #transition(begin: () => Promise<void>): Promise<void> {
    const done = this.#lastTransition === null ? begin() : this.#lastTransition.then(begin);
    const settled = done
      .catch(() => undefined)
      .then(() => {
        if (this.#lastTransition === settled) this.#lastTransition = null;
      });
    this.#lastTransition = settled;
    return done;
  }
}

/**
 * Rejects only once every worker is done, so none is still working when the caller sees the error.
 */
async function all(workers: readonly Future<unknown>[]): Promise<void> {
  const outcomes = await Promise.allSettled(workers.map((worker) => worker.result()));
  for (const outcome of outcomes) if (outcome.status === 'rejected') throw outcome.reason;
}

function warn(message: string): void {
  process.emitWarning(message, 'UniprocWarning');
}
