/** An engine over the small model in float32 on the CPU that records its worker's schedules. */
import { type EngineArgs, LLM, type SchedulerOutput, type StepOutput, Worker } from '../../lib';

/** Records each step's schedule. */
export class WatchedWorker extends Worker {
  readonly steps: SchedulerOutput[] = [];
  /** Called when a step is launched. */
  onStep: (() => void) | null = null;

  override executeModel(step: SchedulerOutput): StepOutput | Promise<StepOutput> {
    this.steps.push(step);
    this.onStep?.();
    return super.executeModel(step);
  }
}

/** Bytes of the KV cache for one token: keys and values of 5 layers, 4 heads of 32 float32 each. */
export const BYTES_PER_TOKEN = 2 * 5 * 4 * 32 * 4;

export interface WatchedEngine {
  llm: LLM;
  worker: WatchedWorker;
}

/** Runs `use` on a new engine. */
export async function withEngine<T>(
  args: EngineArgs,
  use: (engine: WatchedEngine) => Promise<T>,
): Promise<T> {
  const llm = await LLM.create({
    device: 'cpu',
    dtype: 'float32',
    maxModelLen: 256,
    ...args,
    workerCls: WatchedWorker,
  });
  try {
    const { driverWorker } = llm.engine.executor as unknown as {
      driverWorker: { worker: WatchedWorker };
    };
    return await use({ llm, worker: driverWorker.worker });
  } finally {
    await llm.shutdown();
  }
}

/**
 * Resolves when the engine is idle, without any request or held block. Rejects after a minute.
 */
export async function expectEmpty({ llm, worker }: WatchedEngine): Promise<void> {
  const standing = () => {
    const { numRunningReqs, numWaitingReqs, kvCacheUsage } = llm.stats();
    const numInWorker = worker.modelRunner.inputBatch.size;
    return { numRunningReqs, numWaitingReqs, kvCacheUsage, numInWorker };
  };
  const isBusy = () => Object.values(standing()).some((count) => count !== 0);
  const deadline = performance.now() + 60_000;
  while (isBusy() && performance.now() < deadline) {
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  expect(standing()).toEqual({
    numRunningReqs: 0,
    numWaitingReqs: 0,
    kvCacheUsage: 0,
    numInWorker: 0,
  });
}
