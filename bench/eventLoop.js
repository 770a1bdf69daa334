// The maximum event loop delay while large calls are admitted beside a running stream, minus this
// machine's idle delay. The device does nothing, so that only the tokenizer's threads use the cores.
'use strict';

const { monitorEventLoopDelay } = require('node:perf_hooks');
const { setImmediate: nextTurn, setTimeout: pause } = require('node:timers/promises');
const { LLM, SamplingParams } = require('..');
const { NullWorker } = require('./nullWorker');

/** Maximum delay beyond idle, in ms. */
const BOUND = 20;
const IDLE_MS = 2000;

/** The maximum event loop delay during `work`, in ms. */
async function longestWait(work) {
  const delay = monitorEventLoopDelay({ resolution: 1 });
  delay.enable();
  await work();
  // A delayed timer is recorded when it fires.
  await pause(5);
  delay.disable();
  return delay.max / 1e6;
}

const create = (model, args = {}) =>
  LLM.create({ model, device: 'cpu', maxModelLen: 512, workerCls: NullWorker, ...args });

/** Runs `work` on a new engine, beside a running stream. */
async function beside(model, args, work) {
  const llm = await create(model, args);
  const controller = new AbortController();
  const { signal } = controller;
  const endless = async () => {
    const params = new SamplingParams({ maxTokens: 256, ignoreEos: true });
    while (!signal.aborted) {
      const stream = llm.stream('Once', params, { signal });
      while ((await stream.next()).done !== true);
    }
  };
  const streaming = endless().catch(() => {});
  try {
    return await longestWait(() => work(llm));
  } finally {
    controller.abort();
    await streaming;
    await llm.shutdown();
  }
}

const short = new SamplingParams({ maxTokens: 1, ignoreEos: true });
const refused = (call) =>
  call.then(
    () => {},
    () => {},
  );

/** 20,000 calls made as by a server, then aborted by one signal. */
async function fillQueue(llm, priorityOf) {
  const controller = new AbortController();
  const long = new SamplingParams({ maxTokens: 500, ignoreEos: true });
  const calls = [];
  for (let i = 0; i < 20_000; i++) {
    const options = { signal: controller.signal, priority: priorityOf(i) };
    calls.push(refused(llm.generate({ promptTokenIds: [i % 256, 2, 3] }, long, options)));
    if (i % 100 === 99) await nextTurn();
  }
  await pause(200);
  controller.abort();
  await Promise.all(calls);
}

/** The rows: [name, engine's options, work]. */
const ROWS = [
  [
    'a prompt of 1 MB',
    {},
    (llm) => refused(llm.generate('Once upon a time. '.repeat(58_000), short)),
  ],
  [
    '10,000 prompts in a call',
    {},
    (llm) =>
      llm.generate(
        Array.from({ length: 10_000 }, (_, i) => `Story ${i}`),
        short,
        { progress: false },
      ),
  ],
  ['20,000 waiting, fcfs', { maxNumSeqs: 4 }, (llm) => fillQueue(llm, () => 0)],
  [
    '20,000 waiting, priority',
    { maxNumSeqs: 4, schedulingPolicy: 'priority' },
    (llm) => fillQueue(llm, (i) => -i),
  ],
  [
    '50,000 bad words',
    {},
    (llm) => {
      const badWords = Array.from({ length: 50_000 }, (_, i) => `word${i}`);
      return llm.generate('Once', new SamplingParams({ badWords, maxTokens: 1 }));
    },
  ],
  [
    'a chat of 10,000 messages',
    {},
    (llm) => {
      const messages = Array.from({ length: 10_000 }, (_, i) => ({
        role: i % 2 === 0 ? 'user' : 'assistant',
        content: 'Once upon a time. '.repeat(6),
      }));
      return llm.chat(messages, short, { truncatePromptTokens: -1 });
    },
  ],
  [
    'a chat template without end',
    {},
    (llm) => {
      const loop = '{% for i in range(100000) %}';
      const chatTemplate = `${loop}${loop}{% set x = i %}{% endfor %}{% endfor %}`;
      return refused(llm.chat([{ role: 'user', content: 'Once' }], short, { chatTemplate }));
    },
  ],
];

async function benchEventLoop({ model }) {
  const idle = await longestWait(() => pause(IDLE_MS));
  const row = (what, wait) => ({
    bench: 'event loop',
    what,
    value: Math.max(0, wait - idle),
    unit: 'ms',
    bound: BOUND,
  });
  const rows = [{ bench: 'event loop', what: 'idle', value: idle, unit: 'ms' }];
  let llm;
  const creating = await longestWait(async () => {
    llm = await create(model);
  });
  await llm.shutdown();
  rows.push(row('LLM.create', creating));
  for (const [what, args, work] of ROWS) rows.push(row(what, await beside(model, args, work)));
  return rows;
}

module.exports = { benchEventLoop };
