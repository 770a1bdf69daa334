import { EventLoopTurn } from '../../lib/slicedWork';
import { outputOf } from '../../lib/engine/stepInFlight';
import { Future } from '../../lib/executor/future';
import {
  EMPTY_MODEL_RUNNER_OUTPUT,
  type ModelRunnerOutput,
} from '../../lib/contract/modelRunnerOutput';

/** A turn of the event loop that ends when the test says so. */
class Turn extends EventLoopTurn {
  numTurns = 0;

  constructor(clock: { time: number }) {
    super(
      () => clock.time,
      () => Promise.resolve(this.numTurns++),
    );
  }
}

const EMPTY = EMPTY_MODEL_RUNNER_OUTPUT;

/** An output that is delivered once it is waited for. */
function delivered(): Future<ModelRunnerOutput | null> {
  const future = new Future<ModelRunnerOutput | null>();
  queueMicrotask(() => future.setResult(EMPTY));
  return future;
}

test('an output that comes early in a turn is taken in that turn', async () => {
  const turn = new Turn({ time: 0 });
  expect(await outputOf(delivered(), turn)).toBe(EMPTY);
  expect(turn.numTurns).toBe(0);
});

test('an output that was there already waits for the next turn', async () => {
  const turn = new Turn({ time: 0 });
  expect(await outputOf(Future.resolved<ModelRunnerOutput | null>(EMPTY), turn)).toBe(EMPTY);
  expect(turn.numTurns).toBe(1);
});

test('once a turn has lasted for some milliseconds the next output waits for another turn', async () => {
  const clock = { time: 0 };
  const turn = new Turn(clock);
  for (let step = 0; step < 100; step++) {
    clock.time++;
    await outputOf(delivered(), turn);
  }
  expect(turn.numTurns).toBe(50);
});
