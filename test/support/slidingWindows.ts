/**
 * Models with sliding windows, in float32: the tokens of transformers, for sequences of
 * several windows, in every way to schedule them, while the KV cache holds only the windows.
 * golden/make_windows.py wrote what is expected.
 */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { type EngineArgs, type RequestOutput, SamplingParams } from '../../lib';
import { maxBlocksHeld } from '../../lib/contract/kvCache';
import { expectEmpty, type WatchedEngine, withEngine } from './watchedEngine';

const GOLDEN = path.join(__dirname, '..', 'golden');
const BLOCK_SIZE = 16;
export const CHUNK = 16;
export const LENGTH = 240;
/** Known tokens of each prompt, beyond the 20 of the first: the beginning of the continuation. */
export const HEAD_STARTS = [0, 100, 37, 61, 5];

interface Case {
  promptTokenIds: number[];
  tokenIds: number[];
}

export const cases = Object.entries(
  JSON.parse(readFileSync(path.join(GOLDEN, 'windows.json'), 'utf8')) as Record<string, Case>,
);

const promptsOf = ({ promptTokenIds, tokenIds }: Case) =>
  HEAD_STARTS.map((known) => ({
    promptTokenIds: [...promptTokenIds, ...tokenIds.slice(0, known)],
  }));

const argsOf = (family: string, device: string): EngineArgs => ({
  device,
  model: path.join(GOLDEN, 'checkpoints', family),
  skipTokenizerInit: true,
  blockSize: BLOCK_SIZE,
  maxModelLen: LENGTH,
  maxNumSeqs: 8,
  kvCacheMemoryBytes: 2 ** 24,
});

const paramsOf = (prompt: { promptTokenIds: number[] }) =>
  new SamplingParams({
    temperature: 0,
    maxTokens: LENGTH - prompt.promptTokenIds.length,
    ignoreEos: true,
  });

/** Requires each prompt's output to end the reference's sequence. */
function expectReference(outputs: RequestOutput[], { promptTokenIds, tokenIds }: Case): void {
  for (const output of outputs) {
    const known = output.promptTokenIds.length - promptTokenIds.length;
    expect(output.outputs[0].tokenIds).toEqual(tokenIds.slice(known));
  }
}

async function generate({ llm }: WatchedEngine, reference: Case): Promise<RequestOutput[]> {
  const prompts = promptsOf(reference);
  return llm.generate(prompts, prompts.map(paramsOf));
}

/** The most blocks that a request of LENGTH tokens holds, with CHUNK tokens in a step. */
function mostBlocks({ llm }: WatchedEngine, tokensPerStep = CHUNK): number {
  return llm.stats().kvCache.groups.reduce((sum, { slidingWindow }) => {
    const most = maxBlocksHeld(slidingWindow, BLOCK_SIZE, tokensPerStep);
    return sum + Math.min(LENGTH / BLOCK_SIZE, most);
  }, 0);
}

/** Specifies that a device generates the reference's tokens. */
export function specifySlidingWindows(device: string): void {
  describe.each(cases)('%s', (family, reference) => {
    test.each([
      ['sync', false],
      ['async', true],
    ])('alone, with %s scheduling, holds only its windows', (_, asyncScheduling) =>
      withEngine(
        { ...argsOf(family, device), asyncScheduling, maxNumBatchedTokens: CHUNK },
        async (engine) => {
          const [prompt] = promptsOf(reference);
          expectReference(await engine.llm.generate([prompt], paramsOf(prompt)), reference);
          const { groups, peakNumUsedBlocks } = engine.llm.stats().kvCache;
          expect(groups.some(({ slidingWindow }) => slidingWindow !== null)).toBe(true);
          expect(peakNumUsedBlocks).toBeLessThanOrEqual(mostBlocks(engine));
          expect(peakNumUsedBlocks).toBeLessThan(groups.length * (LENGTH / BLOCK_SIZE));
          await expectEmpty(engine);
        },
      ),
    );

    test.each<[string, EngineArgs]>([
      ['in a batch', {}],
      ['in a batch, with sync scheduling', { asyncScheduling: false }],
      ['in chunks among decodes', { maxNumBatchedTokens: CHUNK }],
      ['in chunks of 7 tokens', { longPrefillTokenThreshold: 7, maxNumBatchedTokens: 64 }],
      ['without prefix caching', { enablePrefixCaching: false, maxNumBatchedTokens: CHUNK }],
    ])('%s', (_, args) =>
      withEngine({ ...argsOf(family, device), ...args }, async (engine) => {
        expectReference(await generate(engine, reference), reference);
        await expectEmpty(engine);
      }),
    );

    test('again, with what the cache has of it', () =>
      withEngine({ ...argsOf(family, device), maxNumBatchedTokens: CHUNK }, async (engine) => {
        expectReference(await generate(engine, reference), reference);
        const again = await generate(engine, reference);
        expectReference(again, reference);
        // All full blocks, but for the one with the last token, are still in the cache.
        expect(again.map(({ numCachedTokens }) => numCachedTokens)).toEqual(
          again.map(({ promptTokenIds: { length } }) => length - 1 - ((length - 1) % BLOCK_SIZE)),
        );
        await expectEmpty(engine);
      }));

    test.each([
      ['async', true, true],
      ['sync', false, true],
      ['async, without prefix caching', true, false],
    ])('preempted, with %s scheduling', async (_, asyncScheduling, enablePrefixCaching) => {
      const args = { ...argsOf(family, device), maxNumBatchedTokens: CHUNK };
      const [blockBytes, most] = await withEngine(args, async (engine) => {
        const { kvCacheBytes, numKvBlocks } = engine.llm.startup;
        return Promise.resolve([kvCacheBytes / numKvBlocks, mostBlocks(engine)]);
      });
      const kvCacheMemoryBytes = (most + 2) * blockBytes;
      const small = { ...args, kvCacheMemoryBytes, asyncScheduling, enablePrefixCaching };
      await withEngine(small, async (engine) => {
        expect(engine.llm.startup.numKvBlocks).toBe(most + 2);
        expectReference(await generate(engine, reference), reference);
        expect(engine.llm.stats().numPreemptions).toBeGreaterThan(0);
        await expectEmpty(engine);
      });
    });

    test('as many requests of full length as stats tell run without preemption', async () => {
      const args = {
        ...argsOf(family, device),
        maxNumBatchedTokens: CHUNK,
        enablePrefixCaching: false,
      };
      const [blockBytes, most, growing] = await withEngine(args, async (engine) => {
        const { kvCacheBytes, numKvBlocks } = engine.llm.startup;
        const blocks = [mostBlocks(engine), mostBlocks(engine, 1)];
        return Promise.resolve([kvCacheBytes / numKvBlocks, ...blocks]);
      });
      const kvCacheMemoryBytes = (most + 3 * growing) * blockBytes;
      await withEngine({ ...args, kvCacheMemoryBytes }, async (engine) => {
        const { llm } = engine;
        expect(llm.stats().kvCache.maxFullLengthRequests).toBe(4);
        const prompts = promptsOf(reference).slice(0, 4);
        expectReference(await llm.generate(prompts, prompts.map(paramsOf)), reference);
        expect(llm.stats().numPreemptions).toBe(0);
      });
    });
  });
}
