/**
 * A request may be aborted at any moment, by its signal or a leaving reader: it leaks no block, and
 * other requests are unaffected.
 */
import { type EngineArgs, type RequestOutput, SamplingParams } from '../lib';
import {
  BYTES_PER_TOKEN,
  expectEmpty,
  withEngine,
  type WatchedEngine,
} from './support/watchedEngine';
import { abortedBy } from './support/aborted';

/** [length] token ids. */
const prompt = (row: number, length: number) => ({
  promptTokenIds: Array.from({ length }, (_, i) => 6 + ((row * 389 + i * 37) % 2000)),
});
const NUM_TOKENS = 24;
const seeded = { temperature: 0.9, seed: 7, ignoreEos: true, detokenize: false };

/** Two samples that share a prompt of more than four blocks. */
const PROMPT = prompt(1, 70);
const PARAMS = new SamplingParams({ ...seeded, n: 2, maxTokens: NUM_TOKENS });
/** It shares a prefix with the other request, and runs before, beside and after it. */
const OTHER = { promptTokenIds: [...PROMPT.promptTokenIds.slice(0, 40), 9, 9, 9] };
const OTHER_PARAMS = new SamplingParams({ ...seeded, maxTokens: 60 });
/** Needs every block. */
const LONGEST = prompt(2, 255);
const LONGEST_PARAMS = new SamplingParams({ ...seeded, maxTokens: 1 });

/** 16 blocks; prompts in chunks of about a block. */
const ENGINE: EngineArgs = {
  skipTokenizerInit: true,
  kvCacheMemoryBytes: 256 * BYTES_PER_TOKEN,
  maxNumSeqs: 4,
  maxNumBatchedTokens: 20,
};
const MODES = [
  { asyncScheduling: true, enablePrefixCaching: true },
  { asyncScheduling: true, enablePrefixCaching: false },
  { asyncScheduling: false, enablePrefixCaching: true },
  { asyncScheduling: false, enablePrefixCaching: false },
];

const tokensOf = ({ outputs }: RequestOutput) => outputs.map(({ tokenIds }) => tokenIds);

let expected: { both: number[][]; other: number[][]; longest: number[][] };

beforeAll(async () => {
  expected = await withEngine({ ...ENGINE, ...MODES[3] }, async ({ llm }) => ({
    both: tokensOf((await llm.generate(PROMPT, PARAMS))[0]),
    other: tokensOf((await llm.generate(OTHER, OTHER_PARAMS))[0]),
    longest: tokensOf((await llm.generate(LONGEST, LONGEST_PARAMS))[0]),
  }));
});

/** Checks that no block is held and that a request for all blocks completes. */
async function expectAllBlocksFree(engine: WatchedEngine): Promise<void> {
  await expectEmpty(engine);
  const [output] = await engine.llm.generate(LONGEST, LONGEST_PARAMS);
  expect(tokensOf(output)).toEqual(expected.longest);
  await expectEmpty(engine);
}

/** Runs both requests and aborts one when step `step` is launched. */
async function abortAtStep(engine: WatchedEngine, step: number): Promise<'aborted' | 'done'> {
  const { llm, worker } = engine;
  const controller = new AbortController();
  const reason = new Error('aborted');
  let numSteps = 0;
  worker.onStep = () => {
    if (numSteps++ === step) controller.abort(reason);
  };
  const other = llm.generate(OTHER, OTHER_PARAMS);
  const outcome = await llm.generate(PROMPT, PARAMS, { signal: controller.signal }).then(
    ([output]) => {
      expect(tokensOf(output)).toEqual(expected.both);
      return 'done' as const;
    },
    (error: unknown) => {
      expect(error).toMatchObject(abortedBy(reason));
      return 'aborted' as const;
    },
  );
  expect(tokensOf((await other)[0])).toEqual(expected.other);
  worker.onStep = null;
  return outcome;
}

describe.each(MODES)('an aborted request, %j', (mode) => {
  it('leaks no block at any of its steps', () =>
    withEngine({ ...ENGINE, ...mode }, async (engine) => {
      let step = 0;
      while ((await abortAtStep(engine, step)) === 'aborted') {
        await expectEmpty(engine);
        step++;
      }
      // A step per token, and per chunk of the uncached prompt.
      expect(step).toBeGreaterThanOrEqual(NUM_TOKENS + (mode.enablePrefixCaching ? 0 : 3));
      // One of the two samples may be complete.
      const { abort } = engine.llm.stats().numFinishedReqs;
      expect(abort).toBeGreaterThan(1.5 * step);
      expect(abort).toBeLessThanOrEqual(2 * step);
      await expectAllBlocksFree(engine);
    }));

  it('leaks no block while blocks run out', () =>
    withEngine({ ...ENGINE, ...mode }, async (engine) => {
      const { llm, worker } = engine;
      const long = new SamplingParams({ ...seeded, maxTokens: 100 });
      const numSteps = 120;
      for (let step = 0; step < numSteps; step += 3) {
        const controller = new AbortController();
        const { signal } = controller;
        let numLaunched = 0;
        worker.onStep = () => {
          if (numLaunched++ === step) controller.abort();
        };
        const other = llm.generate(OTHER, OTHER_PARAMS);
        // Each needs ten of the sixteen blocks in the end.
        const given = [3, 4, 5].map((row) => llm.generate(prompt(row, 60), long, { signal }));
        const outcomes = await Promise.allSettled(given);
        expect(outcomes.map(({ status }) => status)).toContain('rejected');
        expect(tokensOf((await other)[0])).toEqual(expected.other);
        await expectEmpty(engine);
      }
      worker.onStep = null;
      expect(llm.stats().numPreemptions).toBeGreaterThan(20);
      await expectAllBlocksFree(engine);
    }));

  it('leaks no block if its reader leaves after any number of outputs', () =>
    withEngine({ ...ENGINE, ...mode }, async (engine) => {
      const { llm } = engine;
      const params = new SamplingParams({ ...seeded, maxTokens: NUM_TOKENS });
      for (let numOutputs = 0; numOutputs < NUM_TOKENS; numOutputs++) {
        const other = llm.generate(OTHER, OTHER_PARAMS);
        const stream = llm.stream(PROMPT, params);
        const tokenIds: number[] = [];
        // The first read is pending when a reader of no outputs leaves.
        const first = stream.next();
        let read = numOutputs > 0 ? await first : null;
        while (read !== null && read.done !== true) {
          tokenIds.push(...read.value.tokenIds);
          if (tokenIds.length >= numOutputs) break;
          read = await stream.next();
        }
        await stream.return();
        expect(tokenIds).toEqual(expected.both[0].slice(0, numOutputs));
        expect(tokensOf((await other)[0])).toEqual(expected.other);
        await expectEmpty(engine);
      }
      expect(llm.stats().numFinishedReqs.abort).toBe(NUM_TOKENS);
      await expectAllBlocksFree(engine);
    }));
});
