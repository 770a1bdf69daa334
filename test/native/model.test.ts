/**
 * The native model against the same decoder in float64 (decoder.ts), and its handling of invalid
 * weights, steps and shutdowns. Models are small and random; test/golden covers real checkpoints.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  type DType,
  type ModelLimits,
  type ModelSpec,
  native,
  type NativeDeviceThread,
  type NativeModelRunner,
  type NativeRequest,
  type NativeSampling,
  type StoredTensor,
  type ParameterSource,
} from '../../lib/native';
import { packSources } from '../../lib/model/packedSources';
import { ready } from '../support/ready';
import { GREEDY } from '../support/sampling';
import { loseDevice, readLogits } from '../support/testingAddon';
import { plainSpec } from '../support/plainSpec';
import { decode, type ModelTensors, random, randomTensors, tensorOf } from './decoder';

const LLAMA: ModelSpec = {
  dtype: 'float32',
  vocabSize: 61,
  hiddenSize: 24,
  intermediateSize: 40,
  numLayers: 1,
  numHeads: 4,
  numKvHeads: 2,
  headDim: 8,
  rmsNormEps: 1e-5,
  ...plainSpec(1, 8),
  tieWordEmbeddings: false,
  weightFormats: {},
};

const LIMITS: ModelLimits = {
  maxNumSeqs: 4,
  maxNumBatchedTokens: 64,
  maxModelLen: 96,
  blockSize: 4,
  numSteps: 2,
  maxLogprobs: 6,
  listMemoryBytes: 2 ** 20,
  enforceEager: false,
};

const SAMPLING: NativeSampling = { ...GREEDY, numLogprobs: 6 };

const WIDTH = 1 + LIMITS.maxLogprobs;

/** A checkpoint's file and the position of each parameter in it. */
interface Checkpoint {
  files: string[];
  sources: ParameterSource[];
}

let folder: string;
let device: NativeDeviceThread;
let models: NativeModelRunner[] = [];

beforeAll(async () => {
  folder = mkdtempSync(path.join(os.tmpdir(), 'uniproc-model-'));
  device = new (native().DeviceThread)('cpu', 0, 2);
  await device.open();
});

afterEach(async () => {
  await Promise.all(models.map((model) => model.shutdown()));
  models = [];
  expect((await device.memory()).allocated).toBe(0);
});

afterAll(async () => {
  await device.shutdown();
  rmSync(folder, { recursive: true });
});

/** Writes the tensors to a file as consecutive float32. */
function write(name: string, tensors: ModelTensors, spec: ModelSpec = LLAMA): Checkpoint {
  const data: Buffer[] = [];
  let offset = 0;
  const sources = native()
    .declareParameters(spec, 0, 1)
    .map(({ layer, module, part }, parameter): ParameterSource => {
      const { data: values } = tensorOf(tensors, layer, module, part);
      data.push(Buffer.from(values.buffer, values.byteOffset, values.byteLength));
      offset += values.byteLength;
      return { parameter, file: 0, offset: offset - values.byteLength, dtype: 'float32' };
    });
  const file = path.join(folder, name);
  writeFileSync(file, Buffer.concat(data));
  return { files: [file], sources };
}

function newModel(spec = LLAMA, limits = LIMITS): NativeModelRunner {
  const model = new (native().ModelRunner)(device, spec, limits, null);
  models.push(model);
  return model;
}

/** A model with a cache and the given random weights. */
async function loadedModel(spec = LLAMA, limits = LIMITS, numBlocks = 64) {
  const tensors = randomTensors(spec, 7);
  const { files, sources } = write('model.bin', tensors, spec);
  const model = newModel(spec, limits);
  await model.load(files, await packSources(sources), () => {});
  await model.allocateKvCache(numBlocks);
  return { model, tensors };
}

interface Row {
  slot: number;
  computed: number;
  scheduled: number;
  /** Default true. */
  sampled?: boolean;
  promptLogprobs?: boolean;
}

type BlockUpdate = [slot: number, index: number, block: number];

/** Writes a step and launches its forward pass. */
function forward(
  model: NativeModelRunner,
  step: number,
  rows: Row[],
  blockUpdates: BlockUpdate[] = [],
  awaitsBitmask?: boolean,
): void {
  const buffers = model.steps[step];
  buffers.slots.set(rows.map((row) => row.slot));
  buffers.numComputedTokens.set(rows.map((row) => row.computed));
  buffers.numScheduledTokens.set(rows.map((row) => row.scheduled));
  buffers.blockUpdates.set(blockUpdates.flat());
  const indices = [...rows.keys()];
  const sampled = indices.filter((i) => rows[i].sampled !== false);
  const prompt = indices.filter((i) => rows[i].promptLogprobs);
  buffers.sampledRows.set(sampled);
  buffers.promptLogprobRows.set(prompt);
  const counts = [rows.length, blockUpdates.length, sampled.length, prompt.length] as const;
  model.forward(step, ...counts, awaitsBitmask);
}

/** Writes and launches a step; resolves after its outputs are in its buffers. */
function launch(
  model: NativeModelRunner,
  step: number,
  rows: Row[],
  blockUpdates: BlockUpdate[] = [],
  bitmask: Int32Array | null = null,
): Promise<void> {
  forward(model, step, rows, blockUpdates);
  return ready(model.sample(step, bitmask));
}

/** Adds a prompt to a slot, with blocks for `numTokens`; returns its first block. */
function add(
  model: NativeModelRunner,
  slot: number,
  tokenIds: number[],
  firstBlock: number,
  sampling: Partial<NativeSampling> = {},
  numTokens = LIMITS.maxModelLen,
): void {
  model.addRequest(slot, requestOf(tokenIds, firstBlock, sampling, numTokens));
}

function requestOf(
  tokenIds: number[],
  firstBlock: number,
  sampling: Partial<NativeSampling> = {},
  numTokens = LIMITS.maxModelLen,
): NativeRequest {
  const numBlocks = Math.ceil(numTokens / LIMITS.blockSize);
  return {
    tokenIds: Int32Array.from(tokenIds),
    numPromptTokens: tokenIds.length,
    blockIds: Int32Array.from({ length: numBlocks }, (_, i) => firstBlock + i),
    sampling: { ...SAMPLING, ...sampling },
  };
}

function prompt(length: number, seed = 1): number[] {
  const next = random(seed);
  return Array.from({ length }, () => Math.floor(next() * LLAMA.vocabSize));
}

/** Ids by descending log probability. */
const ranking = (logprobs: number[]) =>
  [...logprobs.keys()].sort((a, b) => logprobs[b] - logprobs[a]);

/** Log probabilities of the token after `tokens`. */
const decodeLast = (spec: ModelSpec, tensors: ModelTensors, tokenIds: number[]) =>
  decode(spec, tensors, tokenIds)[tokenIds.length - 1];

/** Expects the reference's logprobs at position `i` of the outputs, for `tokenId`. */
function expectLogprobs(
  tokenIds: Int32Array,
  logprobs: Float32Array,
  ranks: Int32Array,
  i: number,
  tokenId: number,
  expected: number[],
  numTop = LIMITS.maxLogprobs,
): void {
  const ranked = ranking(expected);
  const row = (array: Int32Array | Float32Array) =>
    Array.from(array.subarray(i * WIDTH, i * WIDTH + 1 + numTop));
  expect(row(tokenIds)).toEqual([tokenId, ...ranked.slice(0, numTop)]);
  row(logprobs).forEach((logprob, k) => {
    expect(Math.abs(logprob - expected[row(tokenIds)[k]])).toBeLessThan(1e-4);
  });
  expect(ranks[i]).toBe(ranked.indexOf(tokenId) + 1);
}

/** Prefills the prompt, decodes greedily, and compares every step with the reference. */
async function expectDecodes(spec: ModelSpec, promptLength: number, numDecoded: number) {
  const { model, tensors } = await loadedModel(spec);
  const tokenIds = prompt(promptLength);
  add(model, 1, tokenIds, 3);
  let computed = 0;
  for (let i = 0; i < numDecoded; i++) {
    await launch(model, 0, [{ slot: 1, computed, scheduled: tokenIds.length - computed }]);
    const expected = decodeLast(spec, tensors, tokenIds);
    const { sampledTokenIds, logprobTokenIds, logprobs, logprobRanks } = model.steps[0];
    const best = ranking(expected)[0];
    expect(sampledTokenIds[0]).toBe(best);
    expectLogprobs(logprobTokenIds, logprobs, logprobRanks, 0, best, expected);
    computed = tokenIds.length;
    tokenIds.push(best);
  }
}

describe('the forward pass, against float64', () => {
  const DYNAMIC = { type: 'dynamic', factor: 4 } as const;
  const LONG = {
    type: 'longrope' as const,
    shortFactors: [1, 1.5, 2, 3],
    longFactors: [2, 4, 5, 9],
    attentionFactor: 1.2,
  };
  const [PLAIN] = LLAMA.ropes;
  const TWO_LAYERS = { numLayers: 2, slidingWindows: [0, 0], layerRopes: [0, 0] };
  const variants: [string, Partial<ModelSpec>][] = [
    ['Llama: grouped heads, untied head', {}],
    ['two layers', { numLayers: 2, slidingWindows: [0, 0], layerRopes: [0, 0] }],
    ['tied embeddings', { tieWordEmbeddings: true }],
    ['Qwen2: bias on q, k and v', { qkvBias: true }],
    ['all biases', { qkvBias: true, outputBias: true, mlpBias: true }],
    [
      'Qwen3: q and k norms, head size independent of the hidden size',
      { headDim: 12, ...plainSpec(1, 12), qkNorm: 'head' },
    ],
    ['Mistral: a sliding window', { slidingWindows: [7] }],
    [
      'a sliding window in only one layer',
      { numLayers: 2, slidingWindows: [5, 0], layerRopes: [0, 0] },
    ],
    ['one head, one key-value head', { numHeads: 1, numKvHeads: 1 }],
    ['rope scaling: linear', plainSpec(1, 8, { type: 'linear', factor: 4 })],
    [
      'rope scaling: llama3',
      {
        headDim: 16,
        ...plainSpec(1, 16, {
          type: 'llama3',
          factor: 8,
          lowFreqFactor: 1,
          highFreqFactor: 4,
          originalMaxPositionEmbeddings: 32,
        }),
      },
    ],
    ['rope scaling: dynamic', plainSpec(1, 8, { ...DYNAMIC, originalMaxPositionEmbeddings: 32 })],
    [
      'rope scaling: dynamic, in the original context',
      plainSpec(1, 8, { ...DYNAMIC, originalMaxPositionEmbeddings: 96 }),
    ],
    ['rope scaling: longrope', plainSpec(1, 8, { ...LONG, originalMaxPositionEmbeddings: 32 })],
    [
      'rope scaling: longrope, in the original context',
      plainSpec(1, 8, { ...LONG, originalMaxPositionEmbeddings: 96 }),
    ],
    ['a rotation of three quarters of each head', { ropes: [{ ...PLAIN, rotaryDim: 6 }] }],
    [
      'the same with biases and head norms',
      { ropes: [{ ...PLAIN, rotaryDim: 6 }], qkvBias: true, qkNorm: 'head' },
    ],
    ['a layer without rotation', { numLayers: 2, slidingWindows: [0, 0], layerRopes: [0, -1] }],
    [
      'a rotation of its own in each layer',
      {
        numLayers: 2,
        slidingWindows: [7, 0],
        layerRopes: [1, 0],
        ropes: [
          { ...PLAIN, theta: 100 },
          { ...PLAIN, rotaryDim: 4 },
        ],
      },
    ],
    ['norms after the blocks', { inputNorms: false, outputNorms: true, ...TWO_LAYERS }],
    ['norms before and after the blocks', { outputNorms: true, ...TWO_LAYERS }],
    [
      'norms of the whole projections of q and k, partly rotated',
      { qkNorm: 'projection', ropes: [{ ...PLAIN, rotaryDim: 6 }] },
    ],
    ['queries scaled by position', { queryScaleBeta: 0.5, queryScalePeriod: 8 }],
    ['windows in chunks', { slidingWindows: [7], chunkedWindows: true }],
    [
      'Llama 4: neighbours rotated, then normalized; a temperature in the layer without rotation',
      {
        numLayers: 2,
        slidingWindows: [7, 0],
        layerRopes: [0, -1],
        chunkedWindows: true,
        interleavedRope: true,
        qkNorm: 'unweighted',
        queryScaleBeta: 0.5,
        queryScalePeriod: 8,
        queryScaleShift: 1,
        queryScaleUnrotatedOnly: true,
      },
    ],
    [
      'Gemma 4: other heads in a layer, values normalized, layers scaled',
      {
        numLayers: 2,
        slidingWindows: [7, 0],
        layerRopes: [1, 0],
        otherHeads: { numKvHeads: 1, headDim: 16, keysAreValues: false, layers: [false, true] },
        ropes: [
          {
            theta: 100,
            scaling: { type: 'proportional', factor: 1.5, rotatedDim: 4 },
            rotaryDim: 16,
          },
          PLAIN,
        ],
        qkNorm: 'head',
        valueNorm: true,
        outputNorms: true,
        layerScales: true,
      },
    ],
    ['softcaps of scores and logits', { attentionSoftcap: 0.8, logitSoftcap: 2 }],
    ['an offset of the norms', { normOffset: 1, qkNorm: 'head', outputNorms: true }],
    ['GELU', { activation: 'gelu' }],
    ['GELU by tanh', { activation: 'geluTanh' }],
    [
      'scales of embeddings, attention, residuals and logits',
      {
        embeddingScale: 3,
        attentionScale: 0.7,
        residualScale: 0.4,
        logitScale: 0.6,
        ...TWO_LAYERS,
      },
    ],
    ...[true, false].map((truncate): [string, Partial<ModelSpec>] => [
      `rope scaling: yarn${truncate ? '' : ', its range not rounded'}`,
      {
        headDim: 16,
        ...plainSpec(1, 16, {
          type: 'yarn',
          factor: 4,
          betaFast: 8,
          betaSlow: 1,
          originalMaxPositionEmbeddings: 64,
          attentionFactor: 1.25,
          truncate,
        }),
      },
    ]),
  ];

  it.each(variants)('%s', async (_, change) => {
    await expectDecodes({ ...LLAMA, ...change }, 21, 4);
  });

  it('a prompt of one token', async () => {
    await expectDecodes(LLAMA, 1, 3);
  });

  it('logprobs of the prompt, computed in pieces smaller than the prompt', async () => {
    const { model, tensors } = await loadedModel();
    const [a, b] = [prompt(19, 2), prompt(11, 3)];
    add(model, 0, a, 0, { numPromptLogprobs: 2, numLogprobs: -1 });
    add(model, 3, b, 24, { numPromptLogprobs: 6 });
    const expected = { a: decode(LLAMA, tensors, a), b: decode(LLAMA, tensors, b) };
    const out = model.steps[0];
    const expectPosition = (i: number, ids: number[], p: number, all: number[][], top: number) =>
      expectLogprobs(
        out.promptLogprobTokenIds,
        out.promptLogprobs,
        out.promptLogprobRanks,
        i,
        ids[p + 1],
        all[p],
        top,
      );

    // All of b, and the first 13 of a's tokens: b's last position has no next token in the prompt.
    await launch(model, 0, [
      { slot: 3, computed: 0, scheduled: 11, promptLogprobs: true },
      { slot: 0, computed: 0, scheduled: 13, promptLogprobs: true, sampled: false },
    ]);
    for (let p = 0; p < 10; p++) expectPosition(p, b, p, expected.b, 6);
    for (let p = 0; p < 13; p++) expectPosition(10 + p, a, p, expected.a, 2);
    expect(out.sampledTokenIds[0]).toBe(ranking(expected.b[10])[0]);

    await launch(model, 0, [{ slot: 0, computed: 13, scheduled: 6, promptLogprobs: true }]);
    for (let p = 13; p < 18; p++) expectPosition(p - 13, a, p, expected.a, 2);
    expect(out.sampledTokenIds[0]).toBe(ranking(expected.a[18])[0]);
  });

  it('prefill in chunks, decode and prefill in one batch, blocks in any order', async () => {
    const { model, tensors } = await loadedModel();
    const [a, b] = [prompt(17, 4), prompt(6, 5)];
    const best = (ids: number[]) => ranking(decodeLast(LLAMA, tensors, ids))[0];
    add(model, 2, a, 40, {}, 8);
    add(model, 0, b, 9, {}, 8);
    await launch(model, 0, [
      { slot: 2, computed: 0, scheduled: 5, sampled: false },
      { slot: 0, computed: 0, scheduled: 6 },
    ]);
    expect(model.steps[0].sampledTokenIds[0]).toBe(best(b));
    b.push(best(b));
    await launch(
      model,
      1,
      [
        { slot: 0, computed: 6, scheduled: 1 },
        { slot: 2, computed: 5, scheduled: 12 },
      ],
      [
        [2, 2, 30],
        [2, 3, 2],
        [2, 4, 20],
      ],
    );
    expect([...model.steps[1].sampledTokenIds.subarray(0, 2)]).toEqual([best(b), best(a)]);
    a.push(best(a));
    await launch(model, 0, [{ slot: 2, computed: 17, scheduled: 1 }]);
    expect(model.steps[0].sampledTokenIds[0]).toBe(best(a));
  });

  it('a step launched before the previous step is sampled', async () => {
    const { model, tensors } = await loadedModel();
    const tokenIds = prompt(9, 6);
    add(model, 1, tokenIds, 0);
    const done = [launch(model, 0, [{ slot: 1, computed: 0, scheduled: 9 }])];
    done.push(launch(model, 1, [{ slot: 1, computed: 9, scheduled: 1 }]));
    await Promise.all(done);
    for (const step of [0, 1]) {
      const best = ranking(decodeLast(LLAMA, tensors, tokenIds))[0];
      expect(model.steps[step].sampledTokenIds[0]).toBe(best);
      tokenIds.push(best);
    }
  });

  it('the logits of rows to sample', async () => {
    const { model, tensors } = await loadedModel();
    const prompts = [prompt(9, 1), prompt(6, 2), prompt(4, 3)];
    prompts.forEach((tokenIds, slot) => add(model, slot, tokenIds, 20 * slot, {}, 16));
    const rows = prompts.map(({ length }, slot) => ({ slot, computed: 0, scheduled: length }));
    rows[1].scheduled = 5;
    forward(model, 0, [rows[0], { ...rows[1], sampled: false }, rows[2]]);
    const logits = await readLogits(model, 2);
    await ready(model.sample(0, null));
    [prompts[0], prompts[2]].forEach((tokenIds, row) => {
      const own = logits.subarray(row * LLAMA.vocabSize, (row + 1) * LLAMA.vocabSize);
      const logSum = Math.log(own.reduce((sum, logit) => sum + Math.exp(logit), 0));
      decodeLast(LLAMA, tensors, tokenIds).forEach((logprob, tokenId) => {
        expect(Math.abs(own[tokenId] - logSum - logprob)).toBeLessThan(1e-4);
      });
    });
  });

  it('sampling under a mask', async () => {
    const { model, tensors } = await loadedModel();
    const tokenIds = prompt(5);
    add(model, 0, tokenIds, 0);
    const ranked = ranking(decodeLast(LLAMA, tensors, tokenIds));
    const bitmask = new Int32Array(Math.ceil(LLAMA.vocabSize / 32));
    for (const id of ranked.slice(20)) bitmask[id >> 5] |= 1 << (id & 31);
    await launch(model, 0, [{ slot: 0, computed: 0, scheduled: 5 }], [], bitmask);
    expect(model.steps[0].sampledTokenIds[0]).toBe(ranked[20]);
  });

  it('sampling with the forward pass as well as after it', async () => {
    const { model } = await loadedModel();
    const tokenIds = prompt(5);
    const generate = async (sampling: Partial<NativeSampling>, awaitsBitmask: boolean) => {
      [0, 1, 2].forEach((slot) => add(model, slot, tokenIds, 8 * slot, { ...sampling, seed: 7n }));
      const tokens: number[][] = [];
      for (let i = 0; i < 6; ++i) {
        const rows = [0, 1, 2].map((slot) =>
          i === 0 ? { slot, computed: 0, scheduled: 5 } : { slot, computed: 4 + i, scheduled: 1 },
        );
        forward(model, 0, rows, [], awaitsBitmask);
        await ready(model.sample(0, null));
        tokens.push(Array.from(model.steps[0].sampledTokenIds.slice(0, 3)));
      }
      return tokens;
    };
    for (const sampling of [
      { temperature: 0 },
      { temperature: 1 },
      { temperature: 1, topP: 0.8 },
      { temperature: 1, topK: 5, numLogprobs: 1 },
    ]) {
      expect(await generate(sampling, false)).toEqual(await generate(sampling, true));
    }
  });
});

describe('load', () => {
  const tensors = randomTensors(LLAMA, 7);
  const declared = native().declareParameters(LLAMA, 0, 1);
  const indexOf = (module: string) => declared.findIndex((each) => each.module === module);

  it('reports the bytes and tensors read, then resolves', async () => {
    const { files, sources } = write('progress.bin', tensors);
    const progress: [number, number][] = [];
    await newModel().load(files, await packSources(sources), (bytes, count) =>
      progress.push([bytes, count]),
    );
    expect(progress.map(([, count]) => count)).toEqual(sources.map((_, i) => i + 1));
    const bytes = declared.map(({ shape }) => shape.reduce((all, { size }) => all * size, 4));
    expect(progress.map(([total]) => total)).toEqual(
      bytes.map((_, i) => bytes.slice(0, i + 1).reduce((a, b) => a + b)),
    );
  });

  it('converts to the type of the model', async () => {
    const { files, sources } = write('convert.bin', tensors);
    const model = newModel({ ...LLAMA, dtype: 'bfloat16' });
    await model.load(files, await packSources(sources), () => {});
    await model.allocateKvCache(16);
    const tokenIds = prompt(9);
    add(model, 0, tokenIds, 0, {}, 16);
    await launch(model, 0, [{ slot: 0, computed: 0, scheduled: 9 }]);
    const expected = decodeLast(LLAMA, tensors, tokenIds);
    const { logprobTokenIds, logprobs } = model.steps[0];
    expect(Math.abs(logprobs[0] - expected[logprobTokenIds[0]])).toBeLessThan(0.1);
    expect(Math.abs(logprobs[0] - expected[logprobTokenIds[0]])).toBeGreaterThan(0);
  });

  const damages: [string, RegExp, (checkpoint: Checkpoint) => void][] = [
    [
      'a missing file',
      /cannot be opened/,
      ({ files }) => files.splice(0, 1, path.join(folder, 'missing.bin')),
    ],
    ['a folder', /cannot be read: it is a directory/, ({ files }) => files.splice(0, 1, folder)],
    [
      'a truncated file',
      /but the file has \d+/,
      ({ files, sources }) => truncateSync(files[0], sources[sources.length - 1].offset + 3),
    ],
    [
      'a tensor beyond the end of the file',
      /but the file has/,
      ({ sources }) => (sources[0].offset = 2 ** 40),
    ],
    ['a tensor before the file', /at byte -8/, ({ sources }) => (sources[0].offset = -8)],
    ['a file that is not listed', /refers to file 1 of 1/, ({ sources }) => (sources[3].file = 1)],
    ['an unknown parameter', /has no parameter 12/, ({ sources }) => (sources[0].parameter = 12)],
    [
      'a type that the weight does not have',
      /layers\.0\.mlp\.down\.weight is stored in a type that this model does not support for it/,
      ({ sources }) => (sources[indexOf('mlp.down')].dtype = 'float8_e4m3'),
    ],
    [
      'a parameter named twice',
      /layers\.0\.attention\.k\.weight has two sources/,
      ({ sources }) => (sources[indexOf('attention.q')].parameter = indexOf('attention.k')),
    ],
    [
      'a parameter left out',
      /layers\.0\.mlp\.up\.weight has no source/,
      ({ sources }) => sources.splice(indexOf('mlp.up'), 1),
    ],
  ];

  it.each(damages)('rejects %s, and frees what it allocated', async (_, message, damage) => {
    const checkpoint = write('damaged.bin', tensors);
    damage(checkpoint);
    const model = newModel();
    const packed = await packSources(checkpoint.sources);
    await expect(model.load(checkpoint.files, packed, () => {})).rejects.toMatchObject({
      code: 'CHECKPOINT_INVALID',
      message: expect.stringMatching(message) as string,
      file: /refers to file|no parameter/.test(message.source) ? 'checkpoint' : checkpoint.files[0],
    });
    expect((await device.memory()).allocated).toBe(0);
    const { files, sources } = write('damaged.bin', tensors);
    await model.load(files, await packSources(sources), () => {});
  });

  it('rejects a file that is truncated during the load, and stays usable', async () => {
    const spec = { ...LLAMA, intermediateSize: 40_000 };
    const { files, sources } = write('shrinking.bin', randomTensors(spec, 7), spec);
    // The longest weights last, so that most of the file is unread after the first tensor.
    const bytes = readFileSync(files[0]);
    const { offset } = sources[indexOf('mlp.gate')];
    let reason: { code?: string; file?: string; message?: string } | null = null;
    // The file may already have been read completely.
    while (reason === null) {
      writeFileSync(files[0], bytes);
      const model = newModel(spec);
      const load = model.load(files, await packSources(sources), () =>
        truncateSync(files[0], offset),
      );
      reason = await load.then(
        () => null,
        (error: unknown) => error as Error,
      );
      await model.shutdown();
    }
    expect(reason).toMatchObject({ code: 'CHECKPOINT_INVALID', file: files[0] });
    expect(reason.message).toMatch(
      /was truncated while it was read: it had \d+ bytes .* ends before/,
    );
    expect((await device.memory()).allocated).toBe(0);
  });

  it('loads a second time only after the weights are released', async () => {
    const { files, sources } = write('again.bin', tensors);
    const model = newModel();
    await model.load(files, await packSources(sources), () => {});
    const { allocated } = await device.memory();
    const packed = await packSources(sources);
    const load = () => model.load(files, packed, () => {});
    await expect(load()).rejects.toMatchObject({ code: 'INVALID_STATE' });
    await model.releaseWeights();
    const released = (await device.memory()).allocated;
    expect(allocated - released).toBeGreaterThan(sources.length * 64);
    await load();
    expect((await device.memory()).allocated).toBe(allocated);
  });

  it('makes the same random weights from the same seed', async () => {
    const sampled = async (seed: number) => {
      const model = newModel();
      await model.loadDummy(seed);
      await model.allocateKvCache(24);
      add(model, 0, prompt(8), 0);
      await launch(model, 0, [{ slot: 0, computed: 0, scheduled: 8 }]);
      return Array.from(model.steps[0].logprobs.subarray(0, WIDTH));
    };
    const first = await sampled(5);
    expect(await sampled(5)).toEqual(first);
    expect(await sampled(6)).not.toEqual(first);
  });
});

describe('areEqual', () => {
  const bits = (...values: number[]) => Buffer.from(Uint16Array.from(values).buffer);
  const floats = (...values: number[]) => Buffer.from(Float32Array.from(values).buffer);
  const stored = (name: string, dtype: DType, data: Buffer, offset = 0): StoredTensor => {
    const file = path.join(folder, name);
    writeFileSync(file, Buffer.concat([Buffer.alloc(offset, 7), data]));
    return { path: file, offset, dtype };
  };
  const float32 = (...values: number[]) => stored('float32.bin', 'float32', floats(...values), 5);
  // Files of two types, with values of IEEE 754 and bfloat16.
  const ONE_AND_A_BIT = { float32: 1 + 2 ** -12, bfloat16: 0x3f80, float16: 0x3c00 };

  const cases: [string, () => StoredTensor, () => StoredTensor, DType, boolean][] = [
    [
      'the same bytes',
      () => float32(1, 2),
      () => stored('b', 'float32', floats(1, 2)),
      'float32',
      true,
    ],
    [
      'the last element',
      () => float32(1, 2),
      () => stored('b', 'float32', floats(1, 3)),
      'float32',
      false,
    ],
    [
      'zeros of opposite sign',
      () => float32(0, 1),
      () => stored('b', 'float32', floats(-0, 1)),
      'float32',
      true,
    ],
    [
      'values that differ only in float32, for a float32 model',
      () => float32(ONE_AND_A_BIT.float32, 1),
      () => stored('b', 'bfloat16', bits(ONE_AND_A_BIT.bfloat16, 0x3f80)),
      'float32',
      false,
    ],
    [
      'values that differ only in float32, for a bfloat16 model',
      () => float32(ONE_AND_A_BIT.float32, 1),
      () => stored('b', 'bfloat16', bits(ONE_AND_A_BIT.bfloat16, 0x3f80)),
      'bfloat16',
      true,
    ],
    [
      'equal values in two types',
      () => stored('a', 'float16', bits(ONE_AND_A_BIT.float16, 0xc000)),
      () => stored('b', 'bfloat16', bits(ONE_AND_A_BIT.bfloat16, 0xc000)),
      'float16',
      true,
    ],
    [
      'NaN beside a number',
      () => float32(NaN, 1),
      () => stored('b', 'float32', floats(1, 1)),
      'float32',
      false,
    ],
  ];

  it.each(cases)('compares %s', async (_, a, b, dtype, expected) => {
    expect(await device.areEqual(a(), b(), 2, dtype)).toBe(expected);
  });

  it('finds a difference far from the start', async () => {
    const values = new Float32Array(2 ** 20 + 3);
    const a = stored('a', 'float32', Buffer.from(values.buffer));
    values[2 ** 20 + 1] = 1;
    const b = stored('b', 'float32', Buffer.from(values.buffer));
    expect(await device.areEqual(a, b, values.length, 'float32')).toBe(false);
    expect(await device.areEqual(a, b, 2 ** 20 + 1, 'float32')).toBe(true);
  });

  it('rejects a file shorter than its header says', async () => {
    const [a, b] = [stored('a', 'float32', floats(1, 2)), stored('b', 'float32', floats(1, 2))];
    truncateSync(b.path, 6);
    await expect(device.areEqual(a, b, 2, 'float32')).rejects.toMatchObject({
      code: 'CHECKPOINT_INVALID',
      file: b.path,
      message: expect.stringMatching(/had 6 bytes .* ends before byte 7/) as string,
    });
  });

  it('rejects a pipe without waiting for a writer', async () => {
    const pipe = path.join(folder, 'pipe');
    spawnSync('mkfifo', [pipe]);
    const a = { ...stored('a', 'float32', floats(1, 2)), path: pipe };
    await expect(device.areEqual(a, a, 2, 'float32')).rejects.toMatchObject({
      code: 'CHECKPOINT_INVALID',
      message: expect.stringMatching(/it is not a regular file/) as string,
    });
  });
});

describe('weights in host memory', () => {
  const allocated = async () => (await device.memory()).allocated;
  const tokenIds = prompt(8);

  /** Logprobs after the prompt. */
  async function logprobs(model: NativeModelRunner): Promise<number[]> {
    add(model, 0, tokenIds, 0);
    await launch(model, 0, [{ slot: 0, computed: 0, scheduled: tokenIds.length }]);
    return Array.from(model.steps[0].logprobs.subarray(0, WIDTH));
  }

  it('free device memory, and are unchanged after the move back', async () => {
    const { model } = await loadedModel();
    const expected = await logprobs(model);
    const awake = await allocated();
    await model.offloadWeights();
    expect(awake - (await allocated())).toBe(statSync(path.join(folder, 'model.bin')).size);
    await model.restoreWeights();
    expect(await allocated()).toBe(awake);
    expect(await logprobs(model)).toEqual(expected);
  });

  it('can be moved only from their current memory', async () => {
    const { model } = await loadedModel();
    await expect(model.restoreWeights()).rejects.toMatchObject({ code: 'INVALID_STATE' });
    await model.offloadWeights();
    const step = launch(model, 0, []);
    await expect(step).rejects.toMatchObject({
      message: expect.stringMatching(/weights/) as string,
    });
    await expect(model.offloadWeights()).rejects.toMatchObject({ code: 'INVALID_STATE' });
    await expect(model.loadDummy(1)).rejects.toMatchObject({ code: 'INVALID_STATE' });
    await model.releaseWeights();
    await expect(model.restoreWeights()).rejects.toMatchObject({ code: 'INVALID_STATE' });
    await model.loadDummy(1);
  });

  it('stay there until the device has memory for them', async () => {
    const { model } = await loadedModel();
    const expected = await logprobs(model);
    await model.offloadWeights();
    // Unwritten caches that leave less memory than the weights need.
    const bytesPerBlock = 2 * LIMITS.blockSize * LLAMA.numKvHeads * LLAMA.headDim * 4;
    const others = [newModel(), newModel()];
    for (const [i, other] of others.entries()) {
      const { total, allocated: taken } = await device.memory();
      const share = (total - taken) / (others.length - i);
      await other.allocateKvCache(Math.floor(share / bytesPerBlock));
    }
    await expect(model.restoreWeights()).rejects.toMatchObject({
      code: 'OUT_OF_MEMORY',
      message: expect.stringMatching(/the weights: \d+ bytes .* free of/) as string,
    });
    await Promise.all(others.map((other) => other.releaseKvCache()));
    await model.restoreWeights();
    expect(await logprobs(model)).toEqual(expected);
  });
});

describe('an invalid step', () => {
  const invalid = (message: RegExp, code = 'INVALID_STATE') => ({
    code,
    message: expect.stringMatching(message) as string,
  });

  it('fails without weights or a cache, and works once they exist', async () => {
    const model = newModel();
    const step = () => launch(model, 0, []);
    await expect(step()).rejects.toMatchObject(invalid(/weights are not loaded/));
    await model.loadDummy(1);
    await expect(step()).rejects.toMatchObject(invalid(/KV cache is not allocated/));
    await model.allocateKvCache(2);
    await step();
    await model.releaseKvCache();
    await expect(step()).rejects.toMatchObject(invalid(/KV cache is not allocated/));
  });

  const steps: [string, RegExp, Row[], BlockUpdate[]][] = [
    [
      'a slot there is none of',
      /slot 4 does not exist/,
      [{ slot: 4, computed: 0, scheduled: 1 }],
      [],
    ],
    ['an empty slot', /slot 2\) holds no request/, [{ slot: 2, computed: 0, scheduled: 1 }], []],
    [
      'a slot twice',
      /appears twice in the step/,
      [
        { slot: 0, computed: 0, scheduled: 10 },
        { slot: 0, computed: 0, scheduled: 10 },
      ],
      [],
    ],
    ['no tokens', /computes 0 tokens/, [{ slot: 0, computed: 0, scheduled: 0 }], []],
    ['tokens before the first', /from -1 on/, [{ slot: 0, computed: -1, scheduled: 2 }], []],
    [
      'unknown tokens',
      /computes 11 tokens from 0 on; the request has 10/,
      [{ slot: 0, computed: 0, scheduled: 11 }],
      [],
    ],
    [
      'tokens beyond the blocks of a request',
      /its 2 blocks hold 8/,
      [{ slot: 1, computed: 0, scheduled: 9, sampled: false }],
      [],
    ],
    [
      'a sample before the last token',
      /samples token 9; the request has 10/,
      [{ slot: 0, computed: 0, scheduled: 9 }],
      [],
    ],
    [
      'more tokens than the batch may have',
      /exceeds maxNumBatchedTokens, 64/,
      [
        { slot: 3, computed: 0, scheduled: 60, sampled: false },
        { slot: 0, computed: 0, scheduled: 10, sampled: false },
      ],
      [],
    ],
    ['a block there is none of', /block 64 of 64/, [], [[1, 2, 64]]],
    ['a block before its turn', /which can take indices up to 2/, [], [[1, 3, 0]]],
    ['a block for an empty slot', /slot 2, which holds no request/, [], [[2, 0, 0]]],
  ];

  it.each(steps)('rejects %s, and the next step works', async (_, message, rows, updates) => {
    const { model, tensors } = await loadedModel();
    const tokenIds = prompt(10);
    add(model, 0, tokenIds, 0);
    add(model, 1, tokenIds, 32, {}, 8);
    add(model, 3, prompt(60), 40);
    await expect(launch(model, 0, rows, updates)).rejects.toMatchObject(invalid(message));
    await launch(model, 0, [{ slot: 0, computed: 0, scheduled: 10 }]);
    const best = ranking(decodeLast(LLAMA, tensors, tokenIds))[0];
    expect(model.steps[0].sampledTokenIds[0]).toBe(best);
  });

  it.each<[string, RegExp, (model: NativeModelRunner) => void]>([
    ['a block there is none of', /refers to block 64/, (model) => add(model, 0, [1], 41)],
    ['a slot there is none of', /slot -1 does not exist/, (model) => add(model, -1, [1], 0)],
    [
      'no block in place of its last',
      /refers to block -1/,
      (model) => model.addRequest(0, { ...requestOf([1], 0), blockIds: Int32Array.of(-1) }),
    ],
    [
      'no block behind a block',
      /refers to block -1/,
      (model) => model.addRequest(0, { ...requestOf([1], 0), blockIds: Int32Array.of(0, -1, 1) }),
    ],
  ])('refuses a request with %s', async (_, message, addBad) => {
    const { model } = await loadedModel();
    addBad(model);
    await expect(launch(model, 0, [])).rejects.toMatchObject(invalid(message));
    await launch(model, 0, []);
  });

  const requests: [string, RegExp, number[], Partial<NativeSampling>][] = [
    ['a token beyond the vocabulary', /names token 61/, [1, 61], {}],
    ['a negative token', /names token -1/, [-1], {}],
    ['no tokens', /0 tokens has a prompt of 0/, [], {}],
    ['too many tokens', /97 tokens; maxModelLen is 96/, prompt(97), {}],
    [
      'a biased token beyond the vocabulary',
      /names token 99/,
      [1],
      { logitBiasTokenIds: Int32Array.of(99), logitBiases: Float32Array.of(1) },
    ],
    [
      'a duplicate biased token',
      /logitBiasTokenIds names token 9 twice/,
      [1],
      { logitBiasTokenIds: Int32Array.of(9, 3, 9), logitBiases: Float32Array.of(1, 2, 3) },
    ],
    [
      'a missing bias',
      /1 logit biases for 2 tokens/,
      [1],
      { logitBiasTokenIds: Int32Array.of(9, 3), logitBiases: Float32Array.of(1) },
    ],
    [
      'an allowed token beyond the vocabulary',
      /allowedTokenIds\[1\] names token -2147483648/,
      [1],
      { allowedTokenIds: Int32Array.of(0, 2 ** 31) },
    ],
    [
      'a stop token beyond the vocabulary',
      /stopTokenIds\[0\] names token 61/,
      [1],
      { stopTokenIds: Int32Array.of(61) },
    ],
    [
      'an empty bad word',
      /bad word 1 of a request has no token/,
      [1],
      { badWordsTokenIds: Int32Array.of(3, 4), badWordsEnds: Int32Array.of(1, 1, 2) },
    ],
    [
      'bad words with inconsistent ends',
      /bad words end at 1 of 2/,
      [1],
      { badWordsTokenIds: Int32Array.of(3, 4), badWordsEnds: Int32Array.of(1) },
    ],
    [
      'more logprobs than there is room for',
      /numPromptLogprobs is 7; it must be from -1 \(none\) to maxLogprobs, 6/,
      [1],
      { numPromptLogprobs: 7 },
    ],
    ['fewer logprobs than none', /numLogprobs is -2;/, [1], { numLogprobs: -2 }],
  ];

  it.each(requests)('rejects a request with %s', async (_, message, tokenIds, sampling) => {
    const { model } = await loadedModel();
    const refused = invalid(message, 'REQUEST_INVALID');
    expect(() => model.checkRequest(requestOf(tokenIds, 0, sampling))).toThrow(
      expect.objectContaining(refused) as Error,
    );
    add(model, 0, tokenIds, 0, sampling);
    await expect(launch(model, 0, [])).rejects.toMatchObject(refused);
    await launch(model, 0, []);
  });

  it('rejects invalid lists of any length', () => {
    const model = newModel();
    const many = new Int32Array(2 ** 24 + 1);
    for (const name of [
      'logitBiasTokenIds',
      'allowedTokenIds',
      'badWordsTokenIds',
      'stopTokenIds',
    ]) {
      expect(() => model.checkRequest(requestOf([1], 0, { [name]: many }))).toThrow(
        `${name} has 16777217 entries; the maximum is 16777216`,
      );
    }
  });

  describe('has memory for long lists', () => {
    // 4,400 bytes; a slot has 4,096.
    const only = (tokenId: number) => new Int32Array(1100).fill(tokenId);

    it('separately for each request', async () => {
      const { model } = await loadedModel();
      for (const [slot, tokenId] of [7, 8, 9].entries()) {
        const sampling = { allowedTokenIds: only(tokenId) };
        const request = requestOf(prompt(10, slot), 20 * slot, sampling, 20);
        model.addRequest(slot, { ...request, listOffset: 4608 * (2 - slot) });
      }
      const rows = [0, 1, 2].map((slot) => ({ slot, computed: 0, scheduled: 10 }));
      await launch(model, 0, rows);
      expect(Array.from(model.steps[0].sampledTokenIds.slice(0, 3))).toEqual([7, 8, 9]);
    });

    it('up to its last byte', async () => {
      const { model } = await loadedModel(LLAMA, { ...LIMITS, listMemoryBytes: 4608 + 4400 });
      const request = requestOf(prompt(10), 0, { allowedTokenIds: only(5) });
      model.addRequest(0, { ...request, listOffset: 4608 });
      await launch(model, 0, [{ slot: 0, computed: 0, scheduled: 10 }]);
      expect(model.steps[0].sampledTokenIds[0]).toBe(5);
    });

    it.each([
      ['no place', undefined, 'take 4400 bytes; 4096 are available for them'],
      ['too little of it', 8960, 'take 4400 bytes; 48 are available for them'],
      [
        'a place that is not aligned',
        4,
        "a request's listOffset is 4; it must be -1 or a multiple",
      ],
      ['a place before it', -256, "a request's listOffset is -256"],
      ['a place behind it', 2 ** 40, "a request's listOffset is 1099511627776"],
    ])('and refuses a request with %s', async (_, listOffset, message) => {
      const { model } = await loadedModel(LLAMA, { ...LIMITS, listMemoryBytes: 4608 + 4400 });
      const request = { ...requestOf([1], 0, { allowedTokenIds: only(5) }), listOffset };
      const refused = expect.objectContaining({
        code: 'REQUEST_INVALID',
        message: expect.stringContaining(message) as string,
      }) as Error;
      expect(() => model.checkRequest(request)).toThrow(refused);
      model.addRequest(0, request);
      await expect(launch(model, 0, [])).rejects.toEqual(refused);
      await launch(model, 0, []);
    });

    it('that counts as device memory', () => {
      for (const listMemoryBytes of [-1, 2 ** 31 + 1]) {
        expect(() => newModel(LLAMA, { ...LIMITS, listMemoryBytes })).toThrow(
          `listMemoryBytes is ${listMemoryBytes}; it must be from 0 to 2147483648`,
        );
      }
    });
  });

  it('reuses the slot of a rejected request', async () => {
    const { model, tensors } = await loadedModel();
    const tokenIds = prompt(10);
    add(model, 0, [61], 0);
    await expect(launch(model, 0, [])).rejects.toMatchObject({ code: 'REQUEST_INVALID' });
    add(model, 0, tokenIds, 0);
    await launch(model, 0, [{ slot: 0, computed: 0, scheduled: 10 }]);
    const best = ranking(decodeLast(LLAMA, tensors, tokenIds))[0];
    expect(model.steps[0].sampledTokenIds[0]).toBe(best);
  });

  describe('rejects wrong types in', () => {
    const numbers = [NaN, Infinity, -Infinity, 2 ** 31, -(2 ** 31) - 1, 0.5, 2 ** 53];
    const others = [undefined, null, '1', true, 1n, {}, [], [, 1]]; // eslint-disable-line no-sparse-arrays
    const floats = ['temperature', 'topP', 'minP', 'repetitionPenalty'] as const;
    const integers = ['topK', 'minTokens', 'numLogprobs', 'numPromptLogprobs'] as const;
    const lists = [
      'logitBiasTokenIds',
      'logitBiases',
      'allowedTokenIds',
      'badWordsTokenIds',
      'badWordsEnds',
      'stopTokenIds',
    ] as const;

    it.each([
      ...floats.map((name) => [name, others] as const),
      ...integers.map((name) => [name, [...numbers, ...others]] as const),
      ['seed', [...numbers, 1, -1n, 2n ** 64n, null, undefined]] as const,
      ...lists.map((name) => [name, [...others, 3, [1], new Uint8Array(4)]] as const),
    ])('%s', (name, values: readonly unknown[]) => {
      const model = newModel();
      for (const value of values) {
        const request = requestOf([1], 0, { [name]: value });
        const refused = expect.objectContaining(
          invalid(new RegExp(`^a request's ${name} must be`), 'REQUEST_INVALID'),
        ) as Error;
        expect(() => model.checkRequest(request)).toThrow(refused);
        expect(() => model.addRequest(0, request)).toThrow(refused);
      }
    });

    it('a request, its tokens and its sampling', () => {
      const model = newModel();
      const request = requestOf([1], 0);
      const bad = [...others, ...others.map((tokenIds) => ({ ...request, tokenIds }))];
      bad.push(...others.map((numPromptTokens) => ({ ...request, numPromptTokens })));
      bad.push(...others.map((sampling) => ({ ...request, sampling })));
      for (const value of bad) {
        expect(() => model.checkRequest(value as NativeRequest)).toThrow(
          expect.objectContaining({ code: 'REQUEST_INVALID' }) as Error,
        );
      }
    });
  });

  it('rejects a mask of the wrong size, and sampling without a forward pass', async () => {
    const { model } = await loadedModel();
    add(model, 0, prompt(4), 0);
    const rows = [{ slot: 0, computed: 0, scheduled: 4 }];
    const step = launch(model, 0, rows, [], new Int32Array(3));
    await expect(step).rejects.toMatchObject(invalid(/3 words instead of 2/));
    await expect(ready(model.sample(0, null))).rejects.toMatchObject(invalid(/not launched/));
    await launch(model, 0, rows);
  });

  it('rejects a mask for a step launched without awaitsBitmask', async () => {
    const { model } = await loadedModel();
    add(model, 0, prompt(4), 0);
    forward(model, 0, [{ slot: 0, computed: 0, scheduled: 4 }], [], false);
    const bitmask = new Int32Array(Math.ceil(LLAMA.vocabSize / 32)).fill(-1);
    await expect(ready(model.sample(0, bitmask))).rejects.toThrow(/launch it with awaitsBitmask/);
  });

  it('has logits only of rows to sample in a step that is not sampled yet', async () => {
    const { model } = await loadedModel();
    await expect(readLogits(model, 1)).rejects.toMatchObject(
      invalid(/no launched step is waiting/),
    );
    add(model, 0, prompt(4), 0);
    forward(model, 0, [{ slot: 0, computed: 0, scheduled: 4 }]);
    await expect(readLogits(model, 2)).rejects.toMatchObject(invalid(/for 1 rows, not for 2/));
    await ready(model.sample(0, null));
    await expect(readLogits(model, 1)).rejects.toMatchObject(
      invalid(/no launched step is waiting/),
    );
  });

  it('rejects a second forward pass before the first is sampled', async () => {
    const { model } = await loadedModel();
    model.forward(0, 0, 0, 0, 0);
    model.forward(1, 0, 0, 0, 0);
    const sampled = ready(model.sample(1, null));
    await expect(sampled).rejects.toMatchObject(invalid(/step 0 waits to be sampled/));
    await launch(model, 0, []);
  });

  it('rejects inconsistent sizes', () => {
    const make = (change: Partial<ModelSpec>) => () =>
      new (native().ModelRunner)(device, { ...LLAMA, ...change }, LIMITS, null);
    const config = expect.objectContaining({
      code: 'CONFIG_INVALID',
      name: 'ConfigError',
    }) as Error;
    expect(make({ numKvHeads: 3 })).toThrow(config);
    expect(make({ headDim: 7 })).toThrow(config);
    expect(make({ slidingWindows: [] })).toThrow(config);
    expect(make({ vocabSize: 0 })).toThrow(config);
    expect(make({ hiddenSize: 1.5 })).toThrow('hiddenSize must be an integer');
  });
});

describe('the times of steps', () => {
  it('distinguish computing from waiting, and omit failed steps', async () => {
    const { model } = await loadedModel();
    add(model, 0, prompt(40), 0);
    const before = await device.stepTimes();
    const start = performance.now();
    await launch(model, 0, [{ slot: 0, computed: 0, scheduled: 40 }]);
    await sleep(20);
    await launch(model, 1, [{ slot: 0, computed: 40, scheduled: 1 }]);
    const passed = performance.now() - start;
    await expect(launch(model, 0, [{ slot: 3, computed: 0, scheduled: 1 }])).rejects.toThrow();
    const after = await device.stepTimes();
    expect(after.numSteps - before.numSteps).toBe(2);
    expect(after.idleMs - before.idleMs).toBeGreaterThan(19);
    expect(after.busyMs).toBeGreaterThan(before.busyMs);
    expect(after.busyMs - before.busyMs).toBeLessThan(passed - 19);
  });
});

describe('between steps', () => {
  it('profile and warmUp do not change requests, cache and sampling', async () => {
    const spec = { ...LLAMA, numLayers: 2, slidingWindows: [0, 0], layerRopes: [0, 0] };
    const { model } = await loadedModel(spec);
    const generate = async (disturb: () => Promise<unknown>) => {
      add(model, 1, prompt(12), 8, { temperature: 1, seed: 3n });
      const tokens: number[] = [];
      for (let i = 0; i < 6; i++) {
        const [computed, scheduled] = i === 0 ? [0, 12] : [11 + i, 1];
        await launch(model, 0, [{ slot: 1, computed, scheduled }]);
        tokens.push(model.steps[0].sampledTokenIds[0]);
        await disturb();
      }
      return tokens;
    };
    const { allocated } = await device.memory();
    const expected = await generate(async () => {});
    const disturbed = await generate(async () => {
      await model.profile();
      await model.warmUp();
    });
    expect(disturbed).toEqual(expected);
    expect((await device.memory()).allocated).toBe(allocated);
  });

  it("profile raises the peak to the largest step's memory", async () => {
    const model = newModel();
    await model.loadDummy(1);
    await device.resetPeakMemory();
    await model.profile();
    const { allocated, peakAllocated } = await device.memory();
    expect(peakAllocated).toBeGreaterThan(allocated);
  });

  it('a slot can be reused after its request has been removed', async () => {
    const { model, tensors } = await loadedModel();
    const expectFirst = async (tokenIds: number[]) => {
      add(model, 0, tokenIds, 0, { stopTokenIds: Int32Array.of(1, 2), minTokens: 0 });
      await launch(model, 0, [{ slot: 0, computed: 0, scheduled: tokenIds.length }]);
      const best = ranking(decodeLast(LLAMA, tensors, tokenIds))[0];
      expect(model.steps[0].sampledTokenIds[0]).toBe(best);
    };
    const { allocated: empty } = await device.memory();
    await expectFirst(prompt(20, 8));
    const { allocated } = await device.memory();
    model.removeRequest(0);
    await expectFirst(prompt(7, 9));
    await expectFirst(prompt(13, 10));
    expect((await device.memory()).allocated).toBe(allocated);
    model.removeRequest(0);
    expect((await device.memory()).allocated).toBe(empty);
    const gone = launch(model, 0, [{ slot: 0, computed: 0, scheduled: 13 }]);
    await expect(gone).rejects.toMatchObject({
      message: expect.stringMatching(/slot 0\) holds no request/) as string,
    });
  });

  it("the cache allocates its blocks' memory, and frees it", async () => {
    const model = newModel({ ...LLAMA, numLayers: 2, slidingWindows: [0, 0], layerRopes: [0, 0] });
    await model.loadDummy(1);
    const before = (await device.memory()).allocated;
    await model.allocateKvCache(10);
    const bytesPerToken = 2 * 2 * LLAMA.numKvHeads * LLAMA.headDim * 4;
    const { allocated } = await device.memory();
    expect(allocated - before).toBe(10 * LIMITS.blockSize * bytesPerToken);
    await expect(model.allocateKvCache(10)).rejects.toMatchObject({ code: 'INVALID_STATE' });
    await model.releaseKvCache();
    expect((await device.memory()).allocated).toBe(before);
  });

  it('a request has no blocks in a new cache', async () => {
    const { model } = await loadedModel();
    add(model, 0, prompt(8), 0);
    await model.releaseKvCache();
    await model.allocateKvCache(1);
    const rows = [{ slot: 0, computed: 0, scheduled: 8 }];
    await expect(launch(model, 0, rows)).rejects.toMatchObject({
      message: expect.stringMatching(/its 0 blocks hold 0/) as string,
    });
  });

  it('too large a cache is an error with the sizes, and changes nothing', async () => {
    const { model } = await loadedModel();
    await model.releaseKvCache();
    await expect(model.allocateKvCache(2 ** 31 - 1)).rejects.toMatchObject({
      code: 'OUT_OF_MEMORY',
      message: expect.stringMatching(/\d/) as string,
    });
    await model.allocateKvCache(8);
    await launch(model, 0, []);
  });
});

describe('a lost device', () => {
  const lost = { code: 'DEVICE_FAILED', message: 'the device is lost' };

  // The addon for tests throws to the library's. libc++'s runtime compares types by address, and each
  // addon of `npm run test:libcxx` has its own.
  const test = process.env.UNIPROC_SEPARATE_RUNTIMES ? it.skip : it;

  test('fails running steps and later calls with its error, and can be shut down', async () => {
    const own = new (native().DeviceThread)('cpu', 0, 1);
    await own.open();
    const model = new (native().ModelRunner)(own, LLAMA, LIMITS, null);
    await model.loadDummy(1);
    await model.allocateKvCache(24);
    add(model, 0, prompt(8), 0);
    const rows = [{ slot: 0, computed: 0, scheduled: 8, sampled: false }];
    const before = launch(model, 0, rows);
    loseDevice(own);
    const after = launch(model, 1, rows);
    await before;
    await expect(after).rejects.toMatchObject(lost);
    await expect(model.profile()).rejects.toMatchObject(lost);
    await expect(own.synchronize()).rejects.toMatchObject(lost);
    const thread = new (native().OutputThread)('WorkerAsyncOutput');
    const error = await new Promise((resolve) => {
      model.forward(0, 0, 0, 0, 0);
      thread.submit(model.sample(0, null), resolve);
    });
    expect(error).toMatchObject(lost);
    await thread.shutdown();
    await model.shutdown();
    expect(model.steps[0].slots.length).toBe(0);
    await own.shutdown();
  });
});

/** Start of a program for a separate process. */
function constants(): string {
  const addonPath = path.resolve(__dirname, '../../build/Release/uniproc.node');
  const spec = {
    ...LLAMA,
    hiddenSize: 128,
    intermediateSize: 512,
    vocabSize: 2000,
  };
  return `
    const addonPath = ${JSON.stringify(addonPath)};
    const spec = ${JSON.stringify(spec)};
    const limits = ${JSON.stringify(LIMITS)};
    const none = new Int32Array(0);
    const sampling = { ...${JSON.stringify({ ...SAMPLING, seed: 0 })}, seed: 0n,
      logitBiasTokenIds: none, logitBiases: new Float32Array(0), allowedTokenIds: none,
      badWordsTokenIds: none, badWordsEnds: none, stopTokenIds: none };`;
}

describe('shutdown', () => {
  it('waits for running steps, frees all memory and detaches the buffers', async () => {
    const { model } = await loadedModel();
    add(model, 0, prompt(40), 0);
    const order: string[] = [];
    const { sampledTokenIds } = model.steps[0];
    const step = launch(model, 0, [{ slot: 0, computed: 0, scheduled: 40 }]).then(() => {
      order.push('step');
      expect(sampledTokenIds.length).toBe(LIMITS.maxNumSeqs);
    });
    await Promise.all([step, model.shutdown().then(() => order.push('shutdown'))]);
    expect(order).toEqual(['step', 'shutdown']);
    expect(sampledTokenIds.length).toBe(0);
    expect((await device.memory()).allocated).toBe(0);
    await model.shutdown();
  });

  it('makes later calls fail', async () => {
    const { model } = await loadedModel();
    await model.shutdown();
    await expect(model.profile()).rejects.toMatchObject({ code: 'SHUT_DOWN' });
    model.forward(0, 0, 0, 0, 0);
    await expect(ready(model.sample(0, null))).rejects.toMatchObject({ code: 'SHUT_DOWN' });
  });

  it('of a device first shuts down its models', async () => {
    const own = new (native().DeviceThread)('cpu', 0, 1);
    await own.open();
    const model = new (native().ModelRunner)(own, LLAMA, LIMITS, null);
    await model.loadDummy(1);
    await model.allocateKvCache(24);
    add(model, 0, prompt(40), 0);
    const step = launch(model, 0, [{ slot: 0, computed: 0, scheduled: 40 }]);
    await own.shutdown();
    await step;
    expect(model.steps[0].slots.length).toBe(0);
    await model.shutdown();
  });

  it('of an output thread waits for its submitted steps', async () => {
    const { model } = await loadedModel();
    add(model, 0, prompt(40), 0);
    const thread = new (native().OutputThread)('WorkerAsyncOutput');
    const errors: unknown[] = [];
    const buffers = model.steps[0];
    buffers.slots[0] = 0;
    buffers.numComputedTokens[0] = 0;
    buffers.numScheduledTokens[0] = 40;
    buffers.sampledRows[0] = 0;
    model.forward(0, 1, 0, 1, 0);
    thread.submit(model.sample(0, null), (error) => errors.push(error));
    await thread.shutdown();
    expect(errors).toEqual([null]);
  });

  it('is automatic for a garbage-collected model', () => {
    const program = `${constants()}
      const addon = require(addonPath);
      const device = new addon.DeviceThread('cpu', 0, 1);
      const use = async () => {
        const model = new addon.ModelRunner(device, spec, limits, null);
        await model.loadDummy(1);
        return model.steps[0].slots;
      };
      (async () => {
        await device.open();
        const slots = await use();
        const { allocated } = await device.memory();
        console.log(allocated > 0);
        while ((await device.memory()).allocated > 0) {
          gc();
          await new Promise(setImmediate);
        }
        slots.fill(1);
        console.log((await device.memory()).allocated, slots.length);
      })();`;
    const { stdout } = spawnSync(process.execPath, ['--expose-gc', '-e', program], {
      encoding: 'utf8',
      timeout: 240_000,
    });
    expect(stdout).toBe(`true\n0 ${LIMITS.maxNumSeqs}\n`);
  });

  it('is automatic for workers terminated during steps', () => {
    const worker = `
      const addon = require(addonPath);
      const device = new addon.DeviceThread('cpu', 0, 2);
      device.open();
      const model = new addon.ModelRunner(device, spec, limits, null);
      model.loadDummy(1);
      model.profile();
      model.allocateKvCache(24);
      model.addRequest(0, {
        tokenIds: new Int32Array(40),
        numPromptTokens: 40,
        blockIds: Int32Array.from({ length: 24 }, (_, i) => i),
        sampling,
      });
      const thread = new addon.OutputThread('WorkerAsyncOutput');
      const step = (i) => {
        const buffers = model.steps[i % 2];
        buffers.numScheduledTokens[0] = 40;
        model.forward(i % 2, 1, 0, 0, 0);
        thread.submit(model.sample(i % 2, null), (error) => {
          if (error) throw error;
          if (i === 0) require('node:worker_threads').parentPort.postMessage('up');
          step(i + 2);
        });
      };
      step(0);
      step(1);`;
    const program = `
      const { readdirSync } = require('node:fs');
      const { Worker } = require('node:worker_threads');
      const { once } = require('node:events');
      const threads = () => readdirSync('/proc/self/task').length;
      (async () => {
        const before = threads();
        let resident;
        for (let i = 0; i < 60; i++) {
          const worker = new Worker(process.env.WORKER, { eval: true });
          await once(worker, 'message');
          await worker.terminate();
          if (i === 19) resident = process.memoryUsage.rss();
        }
        const grown = (process.memoryUsage.rss() - resident) / 2 ** 20;
        // Node's own threads may take a moment more to end.
        while (threads() > before) await new Promise((resolve) => setTimeout(resolve, 10));
        console.log(JSON.stringify({ threads: threads() - before, grown }));
      })();`;
    const { status, signal, stdout, stderr } = spawnSync(process.execPath, ['-e', program], {
      encoding: 'utf8',
      timeout: 240_000,
      env: { ...process.env, WORKER: constants() + worker },
    });
    expect({ status, signal, stderr }).toEqual({ status: 0, signal: null, stderr: '' });
    const { threads, grown } = JSON.parse(stdout) as { threads: number; grown: number };
    expect(threads).toBe(0);
    // Sanitizers delay the reuse of freed memory.
    if (!process.env.UNIPROC_SANITIZERS) expect(grown).toBeLessThan(16);
  });
});

describe('groups of layers with block tables of their own', () => {
  const WINDOW = 6;
  const spec: ModelSpec = {
    ...LLAMA,
    numLayers: 3,
    slidingWindows: [WINDOW, 0, WINDOW],
    layerRopes: [0, 0, 0],
  };
  const limits: ModelLimits = { ...LIMITS, kvCacheGroups: [0, 1, 0] };
  const numBlocks = 24;
  const NO_BLOCK = -1;
  /** As the window's group and the other take blocks from the pool, in turn. */
  const blockIdsOf = (first: number, count: number) =>
    Array.from({ length: 2 * count }, (_, i) => (first + 7 * i) % numBlocks);
  /** The table's row of a slot and a group. */
  const table = (slot: number, group: number) => group * limits.maxNumSeqs + slot;

  it('compute, in two tables of one pool, what layers of one table do', async () => {
    const { model, tensors } = await loadedModel(spec, limits, numBlocks);
    const tokenIds = prompt(22);
    const blockIds = Int32Array.from(blockIdsOf(3, 4));
    model.addRequest(1, { ...requestOf(tokenIds, 0), blockIds });
    const rows = (computed: number, scheduled: number, sampled: boolean): Row[] => [
      { slot: 1, computed, scheduled, sampled },
    ];
    await launch(model, 0, rows(0, 13, false));
    const later = blockIdsOf(3, 8).slice(8);
    const updates = [0, 1].map((i): BlockUpdate[] => [
      [table(1, 0), 4 + i, later[2 * i]],
      [table(1, 1), 4 + i, later[2 * i + 1]],
    ]);
    await launch(model, 0, rows(13, 9, true), updates.flat());
    const best = ranking(decodeLast(spec, tensors, tokenIds))[0];
    expect(model.steps[0].sampledTokenIds[0]).toBe(best);
    tokenIds.push(best);
    await launch(model, 0, rows(22, 1, true));
    const next = decodeLast(spec, tensors, tokenIds);
    expect(model.steps[0].sampledTokenIds[0]).toBe(ranking(next)[0]);
    const { logprobTokenIds, logprobs, logprobRanks } = model.steps[0];
    expectLogprobs(logprobTokenIds, logprobs, logprobRanks, 0, ranking(next)[0], next);
  });

  it('need no blocks before a window, and another request may have those', async () => {
    const { model, tensors } = await loadedModel(spec, limits, numBlocks);
    const tokenIds = prompt(22);
    const blockIds = blockIdsOf(3, 6);
    model.addRequest(1, { ...requestOf(tokenIds, 0), blockIds: Int32Array.from(blockIds) });
    await launch(model, 0, [{ slot: 1, computed: 0, scheduled: 21, sampled: false }]);
    model.removeRequest(1);

    // Token 21 reads keys 16 to 21 in the window's group: blocks 4 and 5.
    const behind = [0, 1, 2, 3].map((i) => blockIds[2 * i]);
    const resumed = blockIds.map((id, at) => (at % 2 === 0 && at < 8 ? NO_BLOCK : id));
    model.addRequest(2, { ...requestOf(tokenIds, 0), blockIds: Int32Array.from(resumed) });
    const others = prompt(8, 5);
    model.addRequest(0, { ...requestOf(others, 0), blockIds: Int32Array.from(behind) });
    await launch(model, 0, [
      { slot: 2, computed: 21, scheduled: 1 },
      { slot: 0, computed: 0, scheduled: 8 },
    ]);
    expect([...model.steps[0].sampledTokenIds.subarray(0, 2)]).toEqual(
      [tokenIds, others].map((ids) => ranking(decodeLast(spec, tensors, ids))[0]),
    );
  });

  it.each<[string, RegExp, (model: NativeModelRunner) => void]>([
    [
      'a block of one group alone',
      /3 blocks; it must have as many of each of 2 groups/,
      (model) => model.addRequest(0, { ...requestOf([1], 0), blockIds: Int32Array.of(1, 2, 3) }),
    ],
    [
      'more blocks than a table holds',
      /25 blocks; its block table holds 24/,
      (model) =>
        model.addRequest(0, { ...requestOf([1], 0), blockIds: new Int32Array(50).fill(1) }),
    ],
    [
      'no block in a group',
      /refers to block -1/,
      (model) => model.addRequest(0, { ...requestOf([1], 0), blockIds: Int32Array.of(1, -1) }),
    ],
  ])('refuse a request with %s', async (_, message, addBad) => {
    const { model } = await loadedModel(spec, limits, numBlocks);
    addBad(model);
    await expect(launch(model, 0, [])).rejects.toMatchObject({ code: 'INVALID_STATE' });
    addBad(model);
    await expect(launch(model, 0, [])).rejects.toThrow(message);
  });

  it('refuse a step that appends a block in one group alone, or to a table there is none of', async () => {
    const { model } = await loadedModel(spec, limits, numBlocks);
    const blockIds = Int32Array.of(0, 1);
    model.addRequest(1, { ...requestOf(prompt(8), 0), blockIds });
    const rows: Row[] = [{ slot: 1, computed: 0, scheduled: 8 }];
    await expect(launch(model, 0, rows, [[table(1, 0), 1, 2]])).rejects.toThrow(
      /computes up to token 8; its 1 blocks hold 4/,
    );
    await expect(launch(model, 0, rows, [[table(1, 2), 1, 2]])).rejects.toThrow(
      /slot 9 does not exist/,
    );
  });

  it.each([
    ['of another number of layers', [0, 1], /one entry for each of its 3 layers/],
    ['below 0', [0, -1, 0], /kvCacheGroups name group -1/],
    ['beyond the layers', [0, 3, 0], /kvCacheGroups name group 3/],
  ])('are refused if they are %s', (_, kvCacheGroups, message) => {
    expect(() => newModel(spec, { ...limits, kvCacheGroups })).toThrow(message);
  });
});
