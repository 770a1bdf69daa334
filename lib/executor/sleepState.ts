/**
 * Which of the workers' memory is asleep. The executor is the one owner of this: it refuses steps
 * meanwhile, and calls the workers, which give memory back and take it again (worker/sleep.ts).
 */
import { InvalidStateError } from '../errors';
import { codeOf, log } from '../log';
import type { SleepTag } from '../worker/workerBase';
import type { Future } from './future';

const SLEEP_TAGS: readonly SleepTag[] = ['weights', 'kv_cache'];

/** Calls a method of every worker; a future for each. */
type CallWorkers = (method: 'sleep' | 'wakeUp', args: readonly unknown[]) => Future<unknown>[];

export class SleepState {
  readonly #asleep = new Set<SleepTag>();
  #numSleeps = 0;
  /** The sleep or wakeUp under way; resolves once it has succeeded or failed. */
  #lastTransition: Promise<void> | null = null;

  constructor(private readonly callWorkers: CallWorkers) {}

  get isSleeping(): boolean {
    return this.#asleep.size > 0;
  }

  /** How often the workers fell asleep, each of which dropped what the KV cache held. */
  get numSleeps(): number {
    return this.#numSleeps;
  }

  /** Why `call` cannot be made now; null while awake. */
  refusalOf(call: string): InvalidStateError | null {
    if (!this.isSleeping) return null;
    const asleep = [...this.#asleep].join(' and ');
    return new InvalidStateError(`${call} while ${asleep} are asleep; call wakeUp first`);
  }

  async sleep(level: 1 | 2): Promise<void> {
    if (![1, 2].includes(level)) {
      throw new InvalidStateError(`sleep level must be 1 or 2, not ${String(level)}`);
    }
    return this.#transition(() => this.#fallAsleep(level));
  }

  async #fallAsleep(level: 1 | 2): Promise<void> {
    if (this.isSleeping) {
      warn('sleep: the executor is already asleep');
      return;
    }
    const workers = this.callWorkers('sleep', [level]);
    // Workers that refuse at once leave the executor awake for the steps of others.
    if (workers.some((worker) => worker.peek()?.status !== 'rejected')) {
      // Now, so that no step is launched into a worker that is falling asleep.
      for (const tag of SLEEP_TAGS) this.#asleep.add(tag);
      this.#numSleeps++;
    }
    const outcomes = await Promise.allSettled(workers.map((worker) => worker.result()));
    const failed = outcomes.find((outcome) => outcome.status === 'rejected');
    if (failed === undefined) {
      log('sleep: weights and kv_cache are asleep, level %d', level);
      return;
    }
    log('sleep: failed: %s', codeOf(failed.reason));
    // Wakes the workers that did fall asleep: all are asleep, or none.
    if (outcomes.some(({ status }) => status === 'fulfilled')) {
      await all(this.callWorkers('wakeUp', [SLEEP_TAGS]));
    }
    this.#asleep.clear();
    throw failed.reason;
  }

  async wakeUp(tags: readonly SleepTag[] | undefined): Promise<void> {
    if (tags !== undefined && !Array.isArray(tags)) {
      throw new InvalidStateError(`wakeUp takes a list of tags, not ${String(tags)}`);
    }
    return this.#transition(() => this.#wake(tags ?? [...this.#asleep]));
  }

  async #wake(tags: readonly SleepTag[]): Promise<void> {
    const awake = tags.find((tag) => !this.#asleep.has(tag));
    if (!this.isSleeping || awake !== undefined) {
      warn(`wakeUp: ${awake ?? 'the executor'} is not asleep`);
      return;
    }
    await all(this.callWorkers('wakeUp', [tags]));
    for (const tag of tags) this.#asleep.delete(tag);
    log('wakeUp: %j are awake', tags);
  }

  /** Sleep and wakeUp, one at a time in the order called; at once when none is under way. */
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

/** Resolves once every worker is done, so that none is still at it when the caller hears of an error. */
async function all(workers: readonly Future<unknown>[]): Promise<void> {
  const outcomes = await Promise.allSettled(workers.map((worker) => worker.result()));
  for (const outcome of outcomes) if (outcome.status === 'rejected') throw outcome.reason;
}

function warn(message: string): void {
  process.emitWarning(message, 'UniprocWarning');
}
