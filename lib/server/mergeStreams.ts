/** Several streams of the engine as one. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { OutputDelta, OutputStream } from '../engine/outputs';

/** A delta with the index of its stream. */
export interface IndexedDelta {
  index: number;
  delta: OutputDelta;
}

type Outcome = { index: number; result: IteratorResult<OutputDelta, void> } | { error: unknown };

/** Streams started in one turn of the event loop. */
const STARTED_AT_ONCE = 64;

/**
 * The deltas of `count` streams, which `start` makes, as they come, with one pending read for each, so that
 * the engine merges what is not read. Adds the streams to `streams`. Rejects with the first error. Leaving
 * it ends all streams.
 */
export async function* mergeStreams(
  count: number,
  start: (index: number) => OutputStream,
  streams: OutputStream[],
): AsyncGenerator<IndexedDelta, void> {
  let outcomes: Outcome[] = [];
  let wake = () => {};
  const settle = (outcome: Outcome) => {
    outcomes.push(outcome);
    wake();
  };
  const read = (index: number) => {
    streams[index].next().then(
      (result) => settle({ index, result }),
      (error: unknown) => settle({ error }),
    );
  };
  try {
    for (let i = 0; i < count; i++) {
      streams.push(start(i));
      read(i);
      if (i % STARTED_AT_ONCE === STARTED_AT_ONCE - 1) await nextTurn();
    }
    for (let numOpen = count; numOpen > 0;) {
      if (outcomes.length === 0) await new Promise<void>((resolve) => (wake = resolve));
      const taken = outcomes;
      outcomes = [];
      for (const outcome of taken) {
        if ('error' in outcome) throw outcome.error;
        const { index, result } = outcome;
        if (result.done === true) {
          numOpen--;
          continue;
        }
        yield { index, delta: result.value };
        read(index);
      }
    }
  } finally {
    for (const stream of streams) void stream.return();
  }
}
