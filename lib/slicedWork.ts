/**
 * Work on the JavaScript thread that grows with what callers ask for, cut into slices. All of it
 * shares one budget of each turn of the event loop, so that many large calls at once hold the loop no
 * longer than one.
 */

import { setImmediate as nextTurnOfEventLoop } from 'node:timers/promises';

/**
 * Most milliseconds that slices may take in a turn of the event loop, all jobs together; an engine's
 * steps may take as many more. Turns are cheap (some microseconds), so this costs no throughput.
 */
const BUDGET_MS = 2;

/** Pieces of work between two looks at the clock. */
const PIECES_PER_LOOK = 8;

/** Yields between two pieces of work, each of some microseconds. */
export type Pieces = Iterator<void, void>;

interface Job {
  pieces: Pieces;
  done: () => void;
  failed: (error: unknown) => void;
}

export class SlicedWork {
  private readonly jobs: Job[] = [];
  /** When this turn's budget is used up; null before anything has run in this turn. */
  private deadline: number | null = null;

  constructor(
    private readonly now: () => number = () => performance.now(),
    private readonly nextTurn: (callback: () => void) => void = setImmediate,
  ) {}

  /**
   * Does a job's pieces: at once, as far as the budget goes and where no other job waits; else in
   * later turns of the event loop, in slices that take turns with those of other jobs. Calls `done`
   * after the last piece or `failed` with what a piece throws, perhaps before this returns. Neither
   * may throw.
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

/** Tells a loop that goes on from promise to promise when it has to let the event loop turn. */
export class EventLoopTurn {
  private began: number;

  constructor(
    private readonly now: () => number = () => performance.now(),
    private readonly nextTurn: () => Promise<unknown> = () => nextTurnOfEventLoop(),
  ) {
    this.began = now();
  }

  /** Time in which the loop waited counts, too: to turn once too often costs next to nothing. */
  get isUsedUp(): boolean {
    return this.now() - this.began >= BUDGET_MS;
  }

  /** Lets timers and sockets be served. */
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

/** The one of this process, whose event loop all engines share. */
export const slicedWork = new SlicedWork();
