/**
 * In float32 on the CPU each request of a mix gets bit-identical output to running alone, whatever
 * the batch, arrival, chunking, cache hits, preemption, async scheduling or aborts of others.
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import * as fc from 'fast-check';
import {
  type EngineArgs,
  type LLM,
  type Prompt,
  type RequestOutput,
  SamplingParams,
  type SamplingParamsOptions,
} from '../lib';
import {
  BYTES_PER_TOKEN,
  expectEmpty,
  withEngine,
  type WatchedEngine,
} from './support/watchedEngine';

const NUM_REQUESTS = 40;

/** Each longer than two blocks. */
const BEGINNINGS = [
  'One day, a little girl named Lily went to the park with her mom. She saw a big red ball under ' +
    'a tree, and she wanted to play with it. But the ball was not hers. ',
  'Once upon a time there was a small dog who lived in a big house near the sea. He liked to run ' +
    'on the sand and look at the birds. ',
];
const ENDINGS = [
  'Then',
  'She was very happy and',
  'The dog said',
  'Mom, can we',
  'It was cold. He',
];

interface Ask {
  prompt: Prompt;
  options: SamplingParamsOptions;
  priority: number;
  /** The step after which it arrives, or earlier if the engine is idle. */
  arrival: number;
  /** How it is read; 'leave' aborts it after some deltas. */
  use: 'generate' | 'stream' | 'leave';
  numDeltas: number;
}

/** 1 to 180 tokens: one of three blocks, then one of three continuations. */
const tokenPrompt = fc
  .record({ first: fc.nat(2), rest: fc.nat(2), length: fc.integer({ min: 1, max: 180 }) })
  .map(({ first, rest, length }) => ({
    promptTokenIds: Array.from(
      { length },
      (_, i) => 6 + (((i < 16 ? first : rest) * 389 + i * 37) % 2000),
    ),
  }));
const textPrompt = fc
  .record({ beginning: fc.constantFrom(...BEGINNINGS), ending: fc.constantFrom(...ENDINGS) })
  .map(({ beginning, ending }) => beginning + ending);

const number = (min: number, max: number) => fc.double({ min, max, noNaN: true });
const nothing = fc.constant({});

const options: fc.Arbitrary<SamplingParamsOptions> = fc
  .record({
    choice: fc.oneof(
      fc.constant({ temperature: 0 }),
      fc.record({
        n: fc.integer({ min: 1, max: 3 }),
        seed: fc.nat(),
        temperature: number(0.5, 1.5),
        topP: fc.constantFrom(1, 0.95, 0.6),
        topK: fc.constantFrom(0, 5, 50),
        minP: fc.constantFrom(0, 0.05),
      }),
    ),
    penalties: fc.oneof(
      nothing,
      fc.record({
        presencePenalty: number(-1, 1),
        frequencyPenalty: number(-1, 1),
        repetitionPenalty: number(0.8, 1.5),
      }),
    ),
    limits: fc.oneof(
      nothing,
      fc.constant({ badWords: [' the', ' little'] }),
      fc.constant({ logitBias: { 302: 5, 312: -100 } }),
      fc.constant({ allowedTokenIds: Array.from({ length: 300 }, (_, i) => 250 + i) }),
    ),
    report: fc.oneof(
      nothing,
      fc.record({ logprobs: fc.nat(5) }),
      fc.record({ logprobs: fc.nat(5), promptLogprobs: fc.nat(2) }),
    ),
    end: fc.oneof(
      nothing,
      fc.record({
        stop: fc.constantFrom([' and'], ['.', '!'], ['e w', 'ing t']),
        includeStopStrInOutput: fc.boolean(),
      }),
      fc.constant({ stopTokenIds: [311, 313], minTokens: 4 }),
      fc.constant({ ignoreEos: true }),
    ),
    maxTokens: fc.integer({ min: 4, max: 60 }),
  })
  .map(({ choice, penalties, limits, report, end, maxTokens }) => ({
    ...choice,
    ...penalties,
    ...limits,
    ...report,
    ...end,
    maxTokens,
  }));

const asks: Ask[] = fc.sample(
  fc.record({
    prompt: fc.oneof(tokenPrompt, textPrompt),
    options,
    priority: fc.integer({ min: -1, max: 1 }),
    arrival: fc.nat(100),
    use: fc.constantFrom<Ask['use']>('generate', 'generate', 'stream', 'leave'),
    numDeltas: fc.nat(12),
  }),
  { numRuns: NUM_REQUESTS, seed: 4, unbiased: true },
);

/** What a reader got of an output; `finishReason` is null if it left. */
interface Part {
  text: string;
  tokenIds: number[];
  finishReason: string | null;
}

async function read(llm: LLM, { prompt, options, priority, use, numDeltas }: Ask): Promise<Part[]> {
  const parts: Part[] = [];
  const params = new SamplingParams(options);
  let numRead = 0;
  for await (const delta of llm.stream(prompt, params, { priority })) {
    const part = (parts[delta.index] ??= { text: '', tokenIds: [], finishReason: null });
    part.text += delta.text;
    part.tokenIds.push(...delta.tokenIds);
    part.finishReason = delta.finishReason;
    if (use === 'leave' && ++numRead > numDeltas) break;
  }
  return parts;
}

async function answer(llm: LLM, ask: Ask): Promise<RequestOutput | Part[]> {
  if (ask.use !== 'generate') return read(llm, ask);
  const { prompt, options, priority } = ask;
  return (await llm.generate(prompt, new SamplingParams(options), { priority }))[0];
}

/**
 * Runs all requests in one engine, arriving at their steps; returns the outputs, or the parts read.
 * Steps, not times, so that batches do not depend on the machine's speed.
 */
async function mix({ llm, worker }: WatchedEngine): Promise<(RequestOutput | Part[])[]> {
  const results: Promise<RequestOutput | Part[]>[] = [];
  let numOpen = 0;
  const inOrder = asks.map((ask, i) => ({ ask, i })).sort((a, b) => a.ask.arrival - b.ask.arrival);
  for (const { ask, i } of inOrder) {
    while (worker.steps.length < ask.arrival && numOpen > 0) await nextTurn();
    numOpen++;
    results[i] = answer(llm, ask).finally(() => numOpen--);
  }
  return Promise.all(results);
}

/** The parts of a result that do not depend on the request's index. */
function everything({ promptTokenIds, promptLogprobs, outputs }: RequestOutput) {
  return { promptTokenIds, promptLogprobs, outputs };
}

/** Runs each alone, one after another, in an engine for one request. */
let alone: RequestOutput[];

beforeAll(async () => {
  alone = await withEngine(
    { asyncScheduling: false, enablePrefixCaching: false, maxNumSeqs: 3 },
    async ({ llm }) => {
      const outputs: RequestOutput[] = [];
      for (const { prompt, options } of asks) {
        outputs.push(...(await llm.generate(prompt, new SamplingParams(options))));
      }
      return outputs;
    },
  );
}, 600_000);

function expectAsAlone(results: readonly (RequestOutput | Part[])[]): void {
  results.forEach((result, i) => {
    if (!Array.isArray(result)) {
      expect(everything(result)).toEqual(everything(alone[i]));
      return;
    }
    // An output not read before its reader left is absent.
    result.forEach(({ text, tokenIds, finishReason }, index) => {
      const expected = alone[i].outputs[index];
      const isWhole = asks[i].use === 'stream' || finishReason !== null;
      expect({ tokenIds, finishReason }).toEqual({
        tokenIds: isWhole ? expected.tokenIds : expected.tokenIds.slice(0, tokenIds.length),
        finishReason: isWhole ? expected.finishReason : null,
      });
      expect(isWhole ? text : expected.text.slice(0, text.length)).toBe(
        isWhole ? expected.text : text,
      );
    });
    if (asks[i].use === 'stream') expect(result).toHaveLength(alone[i].outputs.length);
  });
}

/** Room for one request of maxModelLen and one block; few tokens per step. */
const TIGHT: EngineArgs = {
  kvCacheMemoryBytes: 272 * BYTES_PER_TOKEN,
  maxNumSeqs: 8,
  maxNumBatchedTokens: 48,
  schedulingPolicy: 'priority',
};

/** The most tokens of one request in a step. */
function longestChunk({ worker }: WatchedEngine): number {
  return Math.max(...worker.steps.flatMap((step) => [...step.numScheduledTokens.values()]));
}

/** Prompts chunked in their first step. */
function numPromptsInChunks({ worker }: WatchedEngine): number {
  return worker.steps.flatMap(({ scheduledNewReqs, numScheduledTokens }) =>
    scheduledNewReqs.filter(
      ({ reqId, promptTokenIds, numComputedTokens }) =>
        numComputedTokens + (numScheduledTokens.get(reqId) ?? NaN) < promptTokenIds.length,
    ),
  ).length;
}

test('the mix has every kind of request and outcome', () => {
  const uses = new Set(asks.map(({ use }) => use));
  expect(uses).toEqual(new Set(['generate', 'stream', 'leave']));
  const has = (name: keyof SamplingParamsOptions) =>
    asks.filter(({ options }) => options[name] !== undefined).length;
  for (const name of [
    'seed',
    'presencePenalty',
    'badWords',
    'logitBias',
    'allowedTokenIds',
    'logprobs',
    'promptLogprobs',
    'stop',
    'stopTokenIds',
  ] as const) {
    expect([name, has(name) >= 3]).toEqual([name, true]);
  }
  expect(asks.filter(({ options: { n = 1 } }) => n > 1).length).toBeGreaterThan(5);
  expect(asks.filter(({ options }) => options.temperature === 0).length).toBeGreaterThan(5);

  const outputs = alone.flatMap(({ outputs }) => outputs);
  const ended = (reason: string) => outputs.filter(({ finishReason }) => finishReason === reason);
  expect(ended('length').length).toBeGreaterThan(5);
  expect(ended('stop').length).toBeGreaterThan(5);
  const stopStrings = alone.filter(
    ({ outputs: [{ finishReason }] }, i) =>
      asks[i].options.stop !== undefined && finishReason === 'stop',
  );
  expect(stopStrings.length).toBeGreaterThan(2);
});

describe.each([
  { enablePrefixCaching: true, asyncScheduling: true },
  { enablePrefixCaching: true, asyncScheduling: false },
  { enablePrefixCaching: false, asyncScheduling: true },
  { enablePrefixCaching: false, asyncScheduling: false },
])('a mix under tight limits, %j', (args) => {
  it.each(['fcfs', 'priority'] as const)('gives what each gives alone, %s', (schedulingPolicy) =>
    withEngine({ ...TIGHT, ...args, schedulingPolicy }, async (engine) => {
      expectAsAlone(await mix(engine));
      await expectEmpty(engine);

      // All cases occurred.
      const { llm } = engine;
      const { numPreemptions, prefixCacheStats, numFinishedReqs } = llm.stats();
      expect(numPreemptions).toBeGreaterThan(5);
      expect(numFinishedReqs.abort).toBeGreaterThan(2);
      expect(numPromptsInChunks(engine)).toBeGreaterThan(5);
      if (args.enablePrefixCaching) expect(prefixCacheStats.hits).toBeGreaterThan(100);
      else expect(prefixCacheStats.hits).toBe(0);
      expect(llm.engine.executor.maxConcurrentBatches).toBe(args.asyncScheduling ? 2 : 1);
    }),
  );
});

it.each([true, false])(
  'a mix that finds much of its prompts in the cache gives what each gives alone, async %p',
  (asyncScheduling) =>
    // Room for most: 128 blocks.
    withEngine({ ...TIGHT, asyncScheduling, kvCacheMemoryBytes: 2 ** 25 }, async (engine) => {
      expectAsAlone(await mix(engine));
      await expectEmpty(engine);
      const { queries, hits } = engine.llm.stats().prefixCacheStats;
      expect(hits / queries).toBeGreaterThan(0.25);
    }),
);

describe('prompts in chunks', () => {
  const longest = () => Math.max(...alone.map(({ promptTokenIds }) => promptTokenIds.length));

  async function expectNoChange(chunk: number): Promise<void> {
    const args = {
      ...TIGHT,
      enablePrefixCaching: false,
      maxNumBatchedTokens: longest() + 8,
      longPrefillTokenThreshold: chunk,
    };
    await withEngine(args, async (engine) => {
      expectAsAlone(await mix(engine));
      await expectEmpty(engine);
      expect(longestChunk(engine)).toBe(chunk);
    });
  }

  it.each([1, 2, 3, 7, 15, 16, 17, 64])('of %d tokens change nothing', expectNoChange);
  it('as long as the longest prompt change nothing', () => expectNoChange(longest()));
});
