/** The channels of node:diagnostics_channel, as docs/engine.md has them. */
import { channel, subscribe, unsubscribe } from 'node:diagnostics_channel';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import type { DiagnosticsMessages, FinishedRequest, StepMessage } from '../../lib';
import { ROOT, runNode } from '../executor/support';
import { PagedWorker, shutdownEngines, TestEngine } from './pagedWorker';
import { promptOf } from './schedulerDriver';

type Name = keyof DiagnosticsMessages;

const page = readFileSync(path.join(ROOT, 'docs', 'engine.md'), 'utf8');
/** The fields of each channel's message in the page's table. */
const documented = new Map(
  Array.from(
    page.matchAll(/^\| `(uniproc:[\w:]+)` \| [^|]+ \| ([^|]+) \|$/gm),
    ([, name, fields]) => [name, Array.from(fields.matchAll(/`(\w+)`/g), ([, field]) => field)],
  ),
);
const CHANNELS = ['uniproc:request:start', 'uniproc:request:finish', 'uniproc:step'] as const;

const listeners: [Name, (message: unknown) => void][] = [];

/** Collects a channel's messages until the test ends. */
function listen<N extends Name>(name: N): DiagnosticsMessages[N][] {
  const messages: DiagnosticsMessages[N][] = [];
  const listener = (message: unknown) => messages.push(message as DiagnosticsMessages[N]);
  subscribe(name, listener);
  listeners.push([name, listener]);
  return messages;
}

afterEach(async () => {
  for (const [name, listener] of listeners.splice(0)) unsubscribe(name, listener);
  await shutdownEngines();
});

test('the page has all channels', () => {
  expect([...documented.keys()]).toEqual([...CHANNELS]);
});

test.each(CHANNELS)('%s has the fields of the page', async (name) => {
  const engine = await TestEngine.create(PagedWorker);
  const messages = listen(name);
  await engine.generate(promptOf(8), { maxTokens: 3 });
  expect(messages.length).toBeGreaterThan(0);
  for (const message of messages) {
    expect(Object.keys(message).sort()).toEqual([...(documented.get(name) ?? [])].sort());
  }
});

test('a request starts once and finishes once, each of n samples, with the ids of its events', async () => {
  const engine = await TestEngine.create(PagedWorker);
  const starts = listen('uniproc:request:start');
  const finishes = listen('uniproc:request:finish');
  const events: FinishedRequest[] = [];
  engine.engine.events.on('finished', (request) => events.push(request));
  await engine.generate(promptOf(8), { maxTokens: 3, n: 2 });
  await engine.generate(promptOf(8), { maxTokens: 3 });
  expect(starts.map(({ requestId }) => requestId)).toEqual(['0-0', '0-1', '1']);
  expect(finishes).toEqual(events);
  expect(finishes.map(({ requestId }) => requestId).sort()).toEqual(['0-0', '0-1', '1']);
  // A full block of 4; the last token is computed in any case.
  expect(starts[2]).toMatchObject({ numPromptTokens: 8, numCachedTokens: 4 });
  expect(starts[2].queueTimeMs).toBe(finishes[2].queueTimeMs);
});

test('a preempted request starts once', async () => {
  class SmallWorker extends PagedWorker {
    static override numBlocks = 16;
  }
  const engine = await TestEngine.create(SmallWorker);
  const starts = listen('uniproc:request:start');
  await Promise.all([1, 2, 3].map(() => engine.generate(promptOf(8), { maxTokens: 40 })));
  expect(engine.engine.stats().numPreemptions).toBeGreaterThan(0);
  expect(starts).toHaveLength(3);
});

test('an aborted request finishes', async () => {
  const engine = await TestEngine.create(PagedWorker);
  const finishes = listen('uniproc:request:finish');
  const controller = new AbortController();
  const call = engine.generate(promptOf(8), { maxTokens: 40 }, { signal: controller.signal });
  controller.abort();
  await expect(call).rejects.toMatchObject({ code: 'ABORT_ERR' });
  expect(finishes).toMatchObject([{ requestId: '0', finishReason: 'abort' }]);
});

test('the steps of a request: its prompt, then a token each', async () => {
  const engine = await TestEngine.create(PagedWorker, { asyncScheduling: false });
  const steps = listen('uniproc:step');
  await engine.generate(promptOf(8), { maxTokens: 3 });
  const of = (field: keyof StepMessage) => steps.map((step) => step[field]);
  expect(of('numScheduledTokens')).toEqual([8, 1, 1]);
  expect(of('numScheduledReqs')).toEqual([1, 1, 1]);
  expect(of('numNewReqs')).toEqual([1, 0, 0]);
  expect(of('numRunningReqs')).toEqual([1, 1, 0]);
  expect(of('numWaitingReqs')).toEqual([0, 0, 0]);
  expect(of('numPreemptedReqs')).toEqual([0, 0, 0]);
  for (const { durationMs } of steps) expect(durationMs).toBeGreaterThanOrEqual(0);
});

test('without a subscriber nothing is published and no clock is read for a step', async () => {
  const engine = await TestEngine.create(PagedWorker, { asyncScheduling: false });
  const publish = jest.spyOn(channel('uniproc:step'), 'publish');
  await engine.generate(promptOf(8), { maxTokens: 3 });
  expect(publish).not.toHaveBeenCalled();
});

test('what a subscriber throws is an uncaught exception, and the request continues', async () => {
  const { code, stdout } = await runNode(`
    const { subscribe } = require('node:diagnostics_channel');
    const { LLM } = require('uniproc');
    const messages = new Set();
    process.on('uncaughtException', ({ message }) => messages.add(message));
    for (const name of ${JSON.stringify(CHANNELS)}) {
      subscribe(name, () => {
        throw new Error('from ' + name);
      });
    }
    async function main() {
      const llm = await LLM.create({ device: 'cpu' });
      const [{ outputs }] = await llm.generate('Once', { maxTokens: 5, ignoreEos: true });
      await llm.shutdown();
      console.log(JSON.stringify([outputs[0].tokenIds.length, ...[...messages].sort()]));
    }
    main();
  `);
  expect(JSON.parse(stdout)).toEqual([5, ...CHANNELS.map((name) => `from ${name}`).sort()]);
  expect(code).toBe(0);
});
