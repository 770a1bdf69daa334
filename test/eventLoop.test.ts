/** Calls that grow with what callers ask for do not hold the event loop (bench/eventLoop.js measures). */
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { setTimeout as pause } from 'node:timers/promises';
import { LLM, SamplingParams } from '../lib';

/** Seconds were usual before; a machine that others load holds a timer back by a fraction of one. */
const GENEROUS_MS = 1000;

async function longestWait(work: () => Promise<unknown>): Promise<number> {
  const delay = monitorEventLoopDelay({ resolution: 1 });
  delay.enable();
  await work();
  await pause(5);
  delay.disable();
  return delay.max / 1e6;
}

test('a prompt of 1 MB, and 50,000 bad words', async () => {
  const llm = await LLM.create({ device: 'cpu', maxModelLen: 256 });
  try {
    const long = 'Once upon a time. '.repeat(58_000);
    const badWords = Array.from({ length: 50_000 }, (_, i) => `word${i}`);
    const params = new SamplingParams({ badWords, maxTokens: 1 });
    // What holds the loop holds it each time; other programs do not hold it back every time.
    let best = Infinity;
    for (let i = 0; i < 5 && best >= GENEROUS_MS; i++) {
      const idle = await longestWait(() => pause(1000));
      const wait = await longestWait(async () => {
        await expect(llm.generate(long)).rejects.toMatchObject({ code: 'REQUEST_INVALID' });
        await llm.generate('Once', params);
      });
      best = Math.min(best, wait - 10 * idle);
    }
    expect(best).toBeLessThan(GENEROUS_MS);
  } finally {
    await llm.shutdown();
  }
});
