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

/** Holds the loop by less than is generous, whatever other programs do. */
async function expectToWait(work: () => Promise<unknown>): Promise<void> {
  // What holds the loop holds it each time; other programs do not hold it back every time.
  let best = Infinity;
  for (let i = 0; i < 5 && best >= GENEROUS_MS; i++) {
    const idle = await longestWait(() => pause(1000));
    best = Math.min(best, (await longestWait(work)) - 10 * idle);
  }
  expect(best).toBeLessThan(GENEROUS_MS);
}

let llm: LLM;

beforeAll(async () => {
  llm = await LLM.create({ device: 'cpu', maxModelLen: 256 });
});

afterAll(() => llm.shutdown());

test('a prompt of 1 MB, and 50,000 bad words', async () => {
  const long = 'Once upon a time. '.repeat(58_000);
  const badWords = Array.from({ length: 50_000 }, (_, i) => `word${i}`);
  const params = new SamplingParams({ badWords, maxTokens: 1 });
  await expectToWait(async () => {
    await expect(llm.generate(long)).rejects.toMatchObject({ code: 'REQUEST_INVALID' });
    await llm.generate('Once', params);
  });
});

test('conversations with a template that takes all that it may', async () => {
  const chatTemplate =
    '{% for i in range(100000) %}{% for j in range(100000) %}{% set x = i %}{% endfor %}{% endfor %}';
  const messages = [{ role: 'user', content: 'Once' }];
  await expectToWait(async () => {
    const call = llm.chat(new Array(20).fill(messages), undefined, { chatTemplate });
    await expect(call).rejects.toMatchObject({ code: 'REQUEST_INVALID' });
  });
});

test('a template that takes long, while others are answered', async () => {
  const chatTemplate =
    '{% for i in range(100000) %}{% for j in range(5) %}{% set x = i %}{% endfor %}{% endfor %}';
  const messages = [{ role: 'user', content: 'Once' }];
  const controller = new AbortController();
  const ended: string[] = [];
  // Some minutes' worth.
  const slow = llm
    .chat(new Array(500).fill(messages), undefined, { chatTemplate, signal: controller.signal })
    .finally(() => ended.push('slow'));
  const rejected = expect(slow).rejects.toThrow('gone');
  const params = new SamplingParams({ maxTokens: 4 });
  await llm.generate('Once upon a time', params).then(() => ended.push('prompt'));
  await llm.chat(messages, params).then(() => ended.push('chat'));
  controller.abort(new Error('gone'));
  await rejected;
  expect(ended).toEqual(['prompt', 'chat', 'slow']);
  // Its conversations that were not rendered are dropped: they would take minutes.
  await llm.chat(messages, params);
});
