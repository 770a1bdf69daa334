import { EventLoopTurn } from '../../lib/slicedWork';
import { outputOf } from '../../lib/engine/stepInFlight';
import { Future } from '../../lib/executor/future';
import {
  EMPTY_MODEL_RUNNER_OUTPUT,
  type ModelRunnerOutput,
} from '../../lib/contract/modelRunnerOutput';

/** An event loop turn that the test ends. */
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

/** An output that completes once awaited. */
function delivered(): Future<ModelRunnerOutput | null> {
  const future = new Future<ModelRunnerOutput | null>();
  queueMicrotask(() => future.setResult(EMPTY));
  return future;
}

test('an output early in a turn is processed in that turn', async () => {
  const turn = new Turn({ time: 0 });
  expect(await outputOf(delivered(), turn)).toBe(EMPTY);
  expect(turn.numTurns).toBe(0);
});

test('an output that is already done waits for the next turn', async () => {
  const turn = new Turn({ time: 0 });
  expect(await outputOf(Future.resolved<ModelRunnerOutput | null>(EMPTY), turn)).toBe(EMPTY);
  expect(turn.numTurns).toBe(1);
});

test("once a turn's budget is used up the next output waits for another turn", async () => {
  const clock = { time: 0 };
  const turn = new Turn(clock);
  for (let step = 0; step < 100; step++) {
    clock.time++;
    await outputOf(delivered(), turn);
  }
  expect(turn.numTurns).toBe(50);
});
