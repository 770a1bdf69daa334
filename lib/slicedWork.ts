/**
 * Cuts large work on the JavaScript thread into slices. All jobs share one budget per turn of the
 * event loop, so many large calls hold it no longer than one.
 */

import { setImmediate as nextTurnOfEventLoop } from 'node:timers/promises';

/**
 * Budget of all jobs per turn of the event loop, in milliseconds; an engine's steps may take as
 * long again. A turn costs microseconds, so throughput does not suffer.
 */
const BUDGET_MS = 2;

/** Pieces of work between clock reads. */
const PIECES_PER_LOOK = 8;

/** Yields after each piece of work, which takes some microseconds. */
export type Pieces = Iterator<void, void>;

interface Job {
  pieces: Pieces;
  done: () => void;
  failed: (error: unknown) => void;
}

export class SlicedWork {
  private readonly jobs: Job[] = [];
  /** End of this turn's budget; null before any work in this turn. */
  private deadline: number | null = null;

  constructor(
    private readonly now: () => number = () => performance.now(),
    private readonly nextTurn: (callback: () => void) => void = setImmediate,
  ) {}

  /**
   * Runs a job: immediately within the budget if no other job waits, else in later turns of the
   * event loop, in slices that alternate with other jobs. Calls `done`, or `failed` with the error
   * thrown, possibly before this returns. Neither may throw.
   */
  run(pieces: Pieces, done: () => void, failed: (error: unknown) => void): void {
    this.jobs.push({ pieces, done, failed });
    if (this.jobs.length === 1) this.work();
  }

  /** `run` as a promise. */
  finish(pieces: Pieces): Promise<void> {
    return new Promise((resolve, reject) => this.run(pieces, resolve, reject));
  }

  private work(): void {
    if (this.deadline === null) {
      this.deadline = this.now() + BUDGET_MS;
      this.nextTurn(() => {
        this.deadline = null;
        if (this.jobs.length > 0) this.work();
      });
    }
    while (this.jobs.length > 0 && this.now() < this.deadline) {
      const job = this.jobs[0];
      const outcome = doSlice(job.pieces, this.now, this.deadline);
      this.jobs.shift();
      if (outcome === 'more') this.jobs.push(job);
      else if (outcome === 'done') job.done();
      else job.failed(outcome.error);
    }
  }
}

/** Tells a promise-driven loop when to yield to the event loop. */
export class EventLoopTurn {
  private began: number;

  constructor(
    private readonly now: () => number = () => performance.now(),
    private readonly nextTurn: () => Promise<unknown> = () => nextTurnOfEventLoop(),
  ) {
    this.began = now();
  }

  /** Includes time spent waiting: an extra turn costs next to nothing. */
  get isUsedUp(): boolean {
    return this.now() - this.began >= BUDGET_MS;
  }

  /** Yields, so timers and sockets are served. */
  async next(): Promise<void> {
    await this.nextTurn();
    this.began = this.now();
  }
}

function doSlice(
  pieces: Pieces,
  now: () => number,
  deadline: number,
): 'more' | 'done' | { error: unknown } {
  try {
    do {
      for (let i = 0; i < PIECES_PER_LOOK; i++) if (pieces.next().done === true) return 'done';
    } while (now() < deadline);
    return 'more';
  } catch (error) {
    return { error };
  }
}

/** Shared by all engines of the process, which share its event loop. */
export const slicedWork = new SlicedWork();
