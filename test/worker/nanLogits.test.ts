/**
 * Steps of a checkpoint with NaN weights, on the device UNIPROC_TEST_DEVICE (default: CPU): NaN is
 * counted for each request that it reaches and reaches no other. Other requests' expected outputs
 * are from Hugging Face transformers (test/golden).
 */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { createUniprocConfig } from '../../lib/config/engineArgs';
import { SamplingParams, type SamplingParamsOptions } from '../../lib/config/samplingParams';
import { UniProcExecutor } from '../../lib/executor/uniProcExecutor';
import {
  EMPTY_MODEL_RUNNER_OUTPUT,
  type ModelRunnerOutput,
} from '../../lib/contract/modelRunnerOutput';
import { emptySchedulerOutput, type SchedulerOutput } from '../../lib/contract/schedulerOutput';
import { readExpected } from '../golden/families';
import { folderWith } from '../support/folder';
import { withNanRow } from './safetensors';

const DEVICE = process.env.UNIPROC_TEST_DEVICE === 'cuda' ? 'cuda' : 'cpu';
const GOLDEN = path.join(__dirname, '..', 'golden', 'checkpoints', 'llama2');
const VOCAB_SIZE = 320;
const BLOCK_SIZE = 16;
const BLOCKS_EACH = 16;

const [{ promptTokenIds: clean, tokenIds: expected }] = readExpected('llama2');
const used = new Set([...clean, ...expected]);
/** A token that the clean request does not contain. */
const poison = Array.from({ length: VOCAB_SIZE }, (_, id) => id).find((id) => !used.has(id)) ?? -1;

let executor: UniProcExecutor;

afterEach(() => executor.shutdown());

/** llama2, with separate embedding and output head, one of which has NaN in one row. */
async function start(tensor: string): Promise<void> {
  const read = (name: string) => readFileSync(path.join(GOLDEN, name));
  const model = await folderWith({
    'config.json': read('config.json'),
    'model.safetensors': withNanRow(read('model.safetensors'), tensor, poison),
  });
  const config = await createUniprocConfig({
    model,
    device: DEVICE,
    dtype: 'float32',
    maxModelLen: 256,
    maxNumSeqs: 4,
    maxNumBatchedTokens: 512,
    blockSize: BLOCK_SIZE,
    skipTokenizerInit: true,
  });
  executor = await UniProcExecutor.create(config);
  await executor.determineAvailableMemory();
  await executor.initializeFromConfig([{ numBlocks: 4 * BLOCKS_EACH }]);
  await executor.compileOrWarmUpModel();
}

/** A request stepped manually. */
class Running {
  readonly tokenIds: number[] = [];
  numComputed = 0;

  constructor(
    readonly reqId: string,
    readonly prompt: number[],
    /** Index of its range among four in the cache. */
    readonly place: number,
    readonly options: SamplingParamsOptions = {},
  ) {}

  get numTokens(): number {
    return this.prompt.length + this.tokenIds.length;
  }
}

/** Runs one step of these requests: the uncomputed tokens of each, at most `most`. */
async function step(
  requests: Running[],
  finishedReqIds: string[] = [],
  most = Infinity,
): Promise<Required<ModelRunnerOutput>> {
  const fresh = requests.filter((request) => request.numComputed === 0);
  const known = requests.filter((request) => request.numComputed > 0);
  const numScheduledTokens = new Map(
    requests.map(({ reqId, numTokens, numComputed }) => [
      reqId,
      Math.min(most, numTokens - numComputed),
    ]),
  );
  const schedulerOutput: SchedulerOutput = {
    ...emptySchedulerOutput(),
    finishedReqIds,
    scheduledNewReqs: fresh.map(({ reqId, prompt, place, options }) => ({
      reqId,
      promptTokenIds: Int32Array.from(prompt),
      samplingParams: new SamplingParams({ temperature: 0, ...options }),
      stopTokenIds: [],
      badWordsTokenIds: [],
      seed: 0n,
      blockIds: Array.from({ length: BLOCKS_EACH }, (_, i) => place * BLOCKS_EACH + i),
      numComputedTokens: 0,
    })),
    scheduledCachedReqs: {
      ...emptySchedulerOutput().scheduledCachedReqs,
      reqIds: known.map(({ reqId }) => reqId),
      newBlockIds: known.map(() => null),
      numComputedTokens: known.map(({ numComputed }) => numComputed),
    },
    numScheduledTokens,
    totalNumScheduledTokens: [...numScheduledTokens.values()].reduce((a, b) => a + b, 0),
  };
  const output = await executor.executeModel(schedulerOutput);
  if (output === null) throw new Error('the step waits for sampleTokens');
  requests.forEach((request, row) => {
    request.numComputed += numScheduledTokens.get(request.reqId) ?? 0;
    request.tokenIds.push(...output.sampledTokenIds.at(row));
  });
  return output as Required<ModelRunnerOutput>;
}

const noNans = EMPTY_MODEL_RUNNER_OUTPUT.numNansInLogits;

describe('NaN in the embedding of a token', () => {
  beforeEach(() => start('model.embed_tokens.weight'));

  it('is counted in each step for the request with the token, and for no other', async () => {
    const requests = [
      new Running('before', clean, 0),
      new Running('poisoned', [...clean.slice(0, 5), poison, 7], 1),
      new Running('after', clean, 2),
    ];
    for (let i = 0; i < expected.length; i++) {
      const { numNansInLogits } = await step(requests);
      expect([...numNansInLogits]).toEqual([['poisoned', VOCAB_SIZE]]);
    }
    expect(requests[0].tokenIds).toEqual(expected);
    expect(requests[2].tokenIds).toEqual(expected);
  });

  it('is no longer counted once that request has finished', async () => {
    const other = new Running('other', clean, 0);
    expect((await step([other])).numNansInLogits).toBe(noNans);
    const poisoned = [1, 2, 3].map((place) => new Running(`bad${place}`, [poison], place));
    expect((await step([other, ...poisoned])).numNansInLogits.size).toBe(3);
    expect((await step([other, ...poisoned])).numNansInLogits.size).toBe(3);
    // On CUDA, rows that pad a step to its graph's size keep the previous step's data.
    const bad = poisoned.map(({ reqId }) => reqId);
    const next = [other, new Running('next', clean, 1), new Running('third', clean, 2)];
    expect((await step(next, bad)).numNansInLogits).toBe(noNans);
    for (let i = 0; i < 4; i++) expect((await step(next)).numNansInLogits).toBe(noNans);
    for (let i = 0; i < 4; i++) expect((await step([other])).numNansInLogits).toBe(noNans);
    expect(other.tokenIds).toEqual(expected.slice(0, other.tokenIds.length));
  });

  it('is counted at prompt positions with logprobs requested', async () => {
    const prompt = [poison, 3, 4, 5, 6, 7, 8, 9];
    const requests = [
      new Running('clean', clean.slice(0, 8), 2, { promptLogprobs: 2 }),
      new Running('asks', prompt, 0, { promptLogprobs: 2 }),
      new Running('silent', prompt, 1),
    ];
    // Positions 0 to 5; the step samples nothing.
    const first = await step(requests, [], 6);
    expect([...first.numNansInLogits]).toEqual([['asks', 6 * VOCAB_SIZE]]);
    // Position 6 is about the prompt's last token; afterwards each step samples one.
    const second = await step(requests);
    expect(new Map(second.numNansInLogits)).toEqual(
      new Map([
        ['asks', 2 * VOCAB_SIZE],
        ['silent', VOCAB_SIZE],
      ]),
    );
  });

  it('does not affect allowed tokens', async () => {
    const allowed = new Running('r', [poison], 0, { allowedTokenIds: [30, 20], temperature: 1 });
    for (let i = 0; i < 3; i++) {
      expect((await step([allowed])).numNansInLogits.get('r')).toBe(VOCAB_SIZE);
    }
    expect(allowed.tokenIds).toEqual([20, 20, 20]);
  });
});

it('NaN in a row of the output head affects every request, and its token is never sampled', async () => {
  await start('lm_head.weight');
  const requests = [new Running('a', clean, 0), new Running('b', [4, 5], 1)];
  for (let i = 0; i < expected.length; i++) {
    const { numNansInLogits } = await step(requests);
    expect([...numNansInLogits]).toEqual([
      ['a', 1],
      ['b', 1],
    ]);
  }
  expect(requests[0].tokenIds).toEqual(expected);
  expect(requests[1].tokenIds).not.toContain(poison);
});
