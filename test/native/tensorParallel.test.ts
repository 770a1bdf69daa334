/**
 * A model sharded over ranks, each with its own device in this process, against Hugging Face
 * transformers on the golden checkpoints (test/golden) and, for features that those lack, against
 * the same decoder in float64 (decoder.ts).
 */
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { readTransformerConfig } from '../../lib/model/transformerConfig';
import type { TransformerSpec } from '../../lib/config/uniprocConfig';
import {
  type ModelLimits,
  type ModelSpec,
  native,
  type NativeCommunicator,
  type NativeDeviceThread,
  type NativeModelRunner,
  type NativeSampling,
  type StepBuffers,
} from '../../lib/native';
import { readTensorTable } from '../../lib/model/safetensors';
import { divisionFault } from '../../lib/model/division';
import { llama } from '../../lib/model/families/llama';
import { packSources } from '../../lib/model/packedSources';
import { parameterSources } from '../../lib/model/parameterSources';
import { type Prediction, readExpected } from '../golden/families';
import { folderWith } from '../support/folder';
import { type CheckpointModel, readModel } from '../support/modelSpec';
import { ready } from '../support/ready';
import { GREEDY } from '../support/sampling';
import { readLogits } from '../support/testingAddon';
import { plainSpec } from '../support/plainSpec';
import { fileOf, withNanRow } from '../worker/safetensors';
import { bfloat16ToNumber, BlockScaledMatrix, Random } from './ops/reference';
import { decode, type ModelTensors, randomTensors, type Tensor } from './decoder';

const GOLDEN = path.join(__dirname, '..', 'golden');
const TOLERANCE = 1e-4;

const LIMITS: ModelLimits = {
  maxNumSeqs: 6,
  maxNumBatchedTokens: 768,
  maxModelLen: 512,
  blockSize: 16,
  numSteps: 1,
  maxLogprobs: 5,
  listMemoryBytes: 2 ** 20,
  enforceEager: false,
};
const WIDTH = 1 + LIMITS.maxLogprobs;

interface Row {
  slot: number;
  computed: number;
  scheduled: number;
  promptLogprobs?: boolean;
}

function launch(model: NativeModelRunner, rows: Row[]): Promise<void> {
  const [buffers] = model.steps;
  const prompts = [...rows.keys()].filter((i) => rows[i].promptLogprobs);
  buffers.slots.set(rows.map((row) => row.slot));
  buffers.numComputedTokens.set(rows.map((row) => row.computed));
  buffers.numScheduledTokens.set(rows.map((row) => row.scheduled));
  buffers.sampledRows.set([...rows.keys()]);
  buffers.promptLogprobRows.set(prompts);
  model.forward(0, rows.length, 0, rows.length, prompts.length);
  return ready(model.sample(0, null));
}

/** A position in a step's buffers: the token's logprob, its rank, and the top logprobs. */
interface Position {
  tokenId: number;
  logprob: number;
  rank: number;
  top: [number, number][];
}

function positionAt(
  tokenIds: Int32Array,
  logprobs: Float32Array,
  ranks: Int32Array,
  i: number,
): Position {
  const entries = Array.from({ length: WIDTH }, (_, k): [number, number] => [
    tokenIds[i * WIDTH + k],
    logprobs[i * WIDTH + k],
  ]);
  const [[tokenId, logprob], ...top] = entries;
  return { tokenId, logprob, rank: ranks[i], top };
}

const sampledAt = (out: StepBuffers, i: number) =>
  positionAt(out.logprobTokenIds, out.logprobs, out.logprobRanks, i);
const promptAt = (out: StepBuffers, i: number) =>
  positionAt(out.promptLogprobTokenIds, out.promptLogprobs, out.promptLogprobRanks, i);

const modelSpecOf = (spec: TransformerSpec): ModelSpec => ({
  ...spec,
  dtype: 'float32',
  weightFormats: {},
});

/** The ranks of a world in this process, each with its shard of one model. */
class World {
  readonly devices: NativeDeviceThread[] = [];
  readonly communicators: NativeCommunicator[] = [];
  readonly models: NativeModelRunner[] = [];

  constructor(readonly size: number) {}

  get ranks(): number[] {
    return [...Array(this.size).keys()];
  }

  async open(timeout = 200_000): Promise<void> {
    for (const rank of this.ranks) {
      const device = new (native().DeviceThread)('cpu', 0, 1);
      this.devices.push(device);
      await device.open();
      if (this.size === 1) continue;
      const options = { rank, worldSize: this.size, timeout, customAllReduce: true };
      this.communicators.push(new (native().Communicator)(device, options));
    }
    const addresses = await Promise.all(this.communicators.map((each) => each.address()));
    await Promise.all(this.communicators.map((each) => each.connect(addresses)));
  }

  newModel(spec: ModelSpec, rank: number): NativeModelRunner {
    const model = new (native().ModelRunner)(
      this.devices[rank],
      spec,
      LIMITS,
      this.communicators[rank] ?? null,
    );
    this.models.push(model);
    return model;
  }

  /** Loads the model's shards and creates a cache on every rank. */
  async load(checkpoint: CheckpointModel): Promise<void> {
    for (const rank of this.ranks) this.newModel(checkpoint.spec, rank);
    await this.fill(checkpoint);
    await Promise.all(
      this.models.map((model) => model.allocateKvCache(LIMITS.maxNumSeqs * BLOCKS_PER_SLOT)),
    );
  }

  /** Loads the weights into the ranks' models. */
  async fill({ spec, family, table, schemes }: CheckpointModel): Promise<void> {
    const loads = this.models.map(async (model, rank) => {
      const { files, sources, totalBytes } = await parameterSources(
        native().declareParameters(spec, rank, this.size),
        spec,
        family,
        table,
        schemes,
      );
      let bytesRead = 0;
      await model.load(files, await packSources(sources), (bytes) => (bytesRead = bytes));
      expect(bytesRead).toBe(totalBytes);
    });
    await Promise.all(loads);
  }

  add(slot: number, tokenIds: number[], sampling: Partial<NativeSampling> = {}): void {
    for (const model of this.models) {
      model.addRequest(slot, {
        tokenIds: Int32Array.from(tokenIds),
        numPromptTokens: tokenIds.length,
        blockIds: Int32Array.from(
          { length: BLOCKS_PER_SLOT },
          (_, i) => slot * BLOCKS_PER_SLOT + i,
        ),
        sampling: { ...GREEDY, numLogprobs: 5, ...sampling },
      });
    }
  }

  /** Runs one step on every rank, expects equal outputs, and resolves to rank 0's. */
  async step(rows: Row[]): Promise<StepBuffers> {
    await Promise.all(this.models.map((model) => launch(model, rows)));
    const [first, ...others] = this.models.map((model) => model.steps[0]);
    for (const other of others) {
      for (const name of OUTPUTS) {
        const bytes = (array: Int32Array | Float32Array) =>
          Buffer.from(array.buffer, array.byteOffset, array.byteLength);
        expect([name, bytes(other[name]).equals(bytes(first[name]))]).toEqual([name, true]);
      }
    }
    return first;
  }

  /** Generates greedily; resolves to the tokens and the logprobs of all positions. */
  async generate(
    prompts: number[][],
    numTokens: number,
    sampling: Partial<NativeSampling> = {},
  ): Promise<{ tokenIds: number[]; positions: Position[] }[]> {
    const results = prompts.map((_, slot) => {
      this.add(slot, prompts[slot], { numPromptLogprobs: 5, ...sampling });
      return { tokenIds: [] as number[], positions: [] as Position[] };
    });
    for (let i = 0; i < numTokens; i++) {
      const rows = prompts.map(({ length }, slot) =>
        i === 0
          ? { slot, computed: 0, scheduled: length, promptLogprobs: true }
          : { slot, computed: length + i - 1, scheduled: 1 },
      );
      const out = await this.step(rows);
      let next = 0;
      prompts.forEach(({ length }, row) => {
        for (let p = 1; i === 0 && p < length; p++) {
          results[row].positions.push(promptAt(out, next++));
        }
        results[row].positions.push(sampledAt(out, row));
        results[row].tokenIds.push(out.sampledTokenIds[row]);
      });
    }
    prompts.forEach((_, slot) => this.models.forEach((model) => model.removeRequest(slot)));
    return results;
  }

  async shutdown(): Promise<void> {
    this.communicators.forEach((each) => each.abort('the test is over'));
    await Promise.all(this.models.map((model) => model.shutdown()));
    await Promise.all(this.communicators.map((each) => each.shutdown()));
    for (const device of this.devices) {
      expect((await device.memory()).allocated).toBe(0);
      await device.shutdown();
    }
  }
}

const BLOCKS_PER_SLOT = LIMITS.maxModelLen / LIMITS.blockSize;
const OUTPUTS = [
  'sampledTokenIds',
  'numNans',
  'logprobTokenIds',
  'logprobs',
  'logprobRanks',
  'promptLogprobTokenIds',
  'promptLogprobs',
  'promptLogprobRanks',
  'promptNumNans',
] as const;

const worlds: World[] = [];

afterEach(async () => {
  await Promise.all(worlds.splice(0).map((world) => world.shutdown()));
});

async function openWorld(size: number): Promise<World> {
  const world = new World(size);
  worlds.push(world);
  await world.open();
  return world;
}

/** A line for each value that differs from the reference; ranks and the arg max only if unambiguous. */
function differences(ours: Position[], reference: Prediction[]): string[] {
  expect(ours).toHaveLength(reference.length);
  return ours.flatMap((position, i) => {
    const { logprob, rank, margin, top } = reference[i];
    const pairs = [
      ['logprob', position.logprob, logprob],
      ...top.map(([, each], k) => [`top ${k}`, position.top[k][1], each] as const),
    ] as const;
    const wrong = pairs
      .filter(([, mine, theirs]) => !(Math.abs(mine - theirs) <= TOLERANCE))
      .map(([what, mine, theirs]) => `${what} at ${i} is ${mine}, not ${theirs}`);
    if (margin > 2 * TOLERANCE && position.rank !== rank) {
      wrong.push(`rank at ${i} is ${position.rank}, not ${rank}`);
    }
    if (top[0][1] - top[1][1] > 2 * TOLERANCE && position.top[0][0] !== top[0][0]) {
      wrong.push(`arg max at ${i} is ${position.top[0][0]}, not ${top[0][0]}`);
    }
    return wrong;
  });
}

const goldenFolder = (name: string) => path.join(GOLDEN, 'checkpoints', name);
/** The golden checkpoints of test/golden/formats.py. */
const inFormats = /-(fp8-|fbgemm|modelopt|int[48]|mixed|awq|gptq|mxfp4)/;
const golden = readdirSync(path.join(GOLDEN, 'checkpoints'));
const inFour = [
  'gemma2',
  'gemma3',
  'gemma3-multimodal',
  'gemma4',
  'gemma4-e',
  'gemma4-moe',
  'glm4-moe',
  'gpt-oss',
  'granite',
  'llama-grouped',
  'llama2',
  'llama4',
  'llama4-multimodal',
  'mistral',
  'mistral3',
  'mixtral-moe',
  'olmo2',
  'olmo3',
  'phi3',
  'phi4-mini',
  'qwen2',
  'qwen2-moe',
  'qwen3-fp8',
  'qwen3-moe',
  'smollm3',
];
inFour.push(...golden.filter((name) => inFormats.test(name)));
const inTwo = [...inFour, 'llama-linear', 'llama-yarn', 'qwen2-yarn'];

async function openGolden(name: string, size: number): Promise<World> {
  const world = await openWorld(size);
  await world.load(await readModel(goldenFolder(name)));
  return world;
}

describe.each([
  [1, golden],
  [2, inTwo],
  [4, inFour],
])('the golden checkpoints on %i ranks', (size, names) => {
  it.each(names)('%s: the tokens and logprobs of the reference', async (name) => {
    const prompts = readExpected(name);
    const world = await openGolden(name, size);
    const results = await world.generate(
      prompts.map(({ promptTokenIds }) => promptTokenIds),
      prompts[0].tokenIds.length,
    );
    results.forEach(({ tokenIds, positions }, i) => {
      expect(tokenIds).toEqual(prompts[i].tokenIds);
      expect(differences(positions, prompts[i].float32)).toEqual([]);
    });
  });

  it('cover all models whose heads the ranks divide', async () => {
    const others = golden.filter((each) => !names.includes(each));
    for (const name of others) {
      const { spec } = await readTransformerConfig(goldenFolder(name), true);
      expect(divisionFault(spec, size)).not.toBeNull();
    }
  });
});

it('samples the same tokens on 1, 2 and 4 ranks', async () => {
  const prompts = [
    [5, 17, 3, 250],
    [9, 9, 31],
  ];
  const sampling = { temperature: 1, topP: 0.9, topK: 40, repetitionPenalty: 1.1, seed: 77n };
  const tokens: number[][][] = [];
  for (const size of [1, 2, 4]) {
    const world = await openGolden('mistral', size);
    const results = await world.generate(prompts, 24, sampling);
    tokens.push(results.map(({ tokenIds }) => tokenIds));
  }
  expect(tokens[1]).toEqual(tokens[0]);
  expect(tokens[2]).toEqual(tokens[0]);
});

/**
 * The golden checkpoint with experts, random matrices in fp8 in place of its own (`isQuantized`), or
 * the same matrices in float32. The blocks divide neither the experts' rows nor the heads'.
 */
async function expertsInFp8(isQuantized: boolean): Promise<string> {
  const [scaleRows, scaleCols] = [20, 28];
  const folder = goldenFolder('qwen3-moe');
  const { files, tensors } = await readTensorTable(folder);
  const bytes = readFileSync(files[0]);
  const random = new Random(11);
  const stored: [string, { dtype: string; shape: number[]; data: Buffer }][] = [];
  for (const [name, { dtype, shape, offset, numBytes }] of tensors) {
    if (!/(mlp\.experts|self_attn)\..*proj\.weight$/.test(name)) {
      stored.push([name, { dtype, shape, data: bytes.subarray(offset, offset + numBytes) }]);
      continue;
    }
    const matrix = new BlockScaledMatrix(shape[0], shape[1], scaleRows, scaleCols, random);
    const bytesOf = (values: Float32Array | Uint8Array) => Buffer.from(values.buffer);
    if (!isQuantized) {
      stored.push([name, { dtype: 'F32', shape, data: bytesOf(Float32Array.from(matrix.values)) }]);
      continue;
    }
    const scaleShape = [Math.ceil(shape[0] / scaleRows), Math.ceil(shape[1] / scaleCols)];
    stored.push(
      [name, { dtype: 'F8_E4M3', shape, data: bytesOf(matrix.codes) }],
      [`${name}_scale_inv`, { dtype: 'F32', shape: scaleShape, data: bytesOf(matrix.scales) }],
    );
  }
  const empty = fileOf(Object.fromEntries(stored));
  const dataStart = 8 + Number(empty.readBigUInt64LE());
  const config = JSON.parse(readFileSync(path.join(folder, 'config.json'), 'utf8')) as object;
  const quantization = { quant_method: 'fp8', weight_block_size: [scaleRows, scaleCols] };
  return folderWith({
    'config.json': JSON.stringify({
      ...config,
      ...(isQuantized && { quantization_config: quantization }),
    }),
    'model.safetensors': Buffer.concat([
      empty.subarray(0, dataStart),
      ...stored.map(([, { data }]) => data),
    ]),
  });
}

/** Half way between two integers, the even one. */
function roundToEven(x: number): number {
  const floor = Math.floor(x);
  if (x - floor !== 0.5) return Math.round(x);
  return floor % 2 === 0 ? floor : floor + 1;
}

/** The float8 number nearest to x, ties to even codes, of at most 448. */
function toFloat8(x: number): number {
  const unit = 2 ** (Math.max(-6, Math.floor(Math.log2(Math.abs(x)))) - 3);
  return roundToEven(x / unit) * unit;
}

/** A group's elements, rounded to nearest with one scale, as the option `quantization` says. */
function roundGroup(group: Float32Array, method: 'fp8' | 'int4'): Float32Array {
  const largest = group.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a), 0);
  const scale = Math.fround(method === 'int4' ? largest / -8 : Math.abs(largest) / 448);
  return group.map((x) => {
    const scaled = Math.fround(x / scale);
    const code = method === 'int4' ? Math.min(7, roundToEven(scaled)) : toFloat8(scaled);
    return code * scale;
  });
}

/** A golden checkpoint with the elements that its matrices have after quantization. */
async function quantizedGolden(name: string, method: 'fp8' | 'int4'): Promise<string> {
  const folder = goldenFolder(name);
  const { files, tensors } = await readTensorTable(folder);
  const bytes = readFileSync(files[0]);
  const stored: [string, { dtype: string; shape: number[]; data: Buffer }][] = [];
  for (const [tensor, { dtype, shape, offset, numBytes }] of tensors) {
    const data = bytes.subarray(offset, offset + numBytes);
    if (!tensor.endsWith('_proj.weight')) {
      stored.push([tensor, { dtype, shape, data }]);
      continue;
    }
    const elements = Float32Array.from({ length: numBytes / 2 }, (_, i) =>
      bfloat16ToNumber(data.readUInt16LE(2 * i)),
    );
    const [rows, cols] = shape;
    const size = method === 'int4' ? 128 : cols;
    for (let row = 0; row < rows; row++) {
      for (let col = 0; col < cols; col += size) {
        const first = row * cols + col;
        const group = elements.subarray(first, first + Math.min(size, cols - col));
        group.set(roundGroup(group, method));
      }
    }
    stored.push([tensor, { dtype: 'F32', shape, data: Buffer.from(elements.buffer) }]);
  }
  const empty = fileOf(Object.fromEntries(stored));
  const dataStart = 8 + Number(empty.readBigUInt64LE());
  return folderWith({
    'config.json': readFileSync(path.join(folder, 'config.json'), 'utf8'),
    'model.safetensors': Buffer.concat([
      empty.subarray(0, dataStart),
      ...stored.map(([, { data }]) => data),
    ]),
  });
}

/** Rearranged in memory, and of ranks with columns that fill groups up. */
describe.each([1, 2])('int4 in act-order on %i ranks', (size) => {
  const prompts = [[3, 1, 4, 1, 5, 9, 2, 6], [27]];

  it('is the same after a move to host memory and back, and loaded again', async () => {
    const checkpoint = await readModel(goldenFolder('llama-grouped-int4-ordered'));
    const world = await openWorld(size);
    await world.load(checkpoint);
    const expected = await world.generate(prompts, 8);
    for (let times = 0; times < 2; times++) {
      await Promise.all(world.models.map((model) => model.offloadWeights()));
      await Promise.all(world.models.map((model) => model.restoreWeights()));
      expect(await world.generate(prompts, 8)).toEqual(expected);
      await Promise.all(world.models.map((model) => model.releaseWeights()));
      await world.fill(checkpoint);
      expect(await world.generate(prompts, 8)).toEqual(expected);
    }
  });
});

describe.each(['fp8', 'int4'] as const)('a model quantized to %s while loading', (method) => {
  const name = 'llama-grouped';
  const prompts = [[3, 1, 4, 1, 5, 9, 2, 6], [27]];

  it.each([1, 2, 4])('on %i ranks computes what the rounded weights do', async (size) => {
    const expected = await openWorld(1);
    await expected.load(await readModel(await quantizedGolden(name, method)));
    const world = await openWorld(size);
    await world.load(await readModel(goldenFolder(name), 'float32', method));
    const [ours, theirs] = [await world.generate(prompts, 8), await expected.generate(prompts, 8)];
    ours.forEach(({ tokenIds, positions }, i) => {
      expect(tokenIds).toEqual(theirs[i].tokenIds);
      positions.forEach(({ logprob }, p) => {
        expect(Math.abs(logprob - theirs[i].positions[p].logprob)).toBeLessThan(1e-4);
      });
    });
  });
});

describe('experts in fp8', () => {
  const prompts = [[3, 1, 4, 1, 5, 9, 2, 6], [27]];
  const generate = async (isQuantized: boolean, size: number) => {
    const world = await openWorld(size);
    await world.load(await readModel(await expertsInFp8(isQuantized)));
    return world.generate(prompts, 8);
  };

  it.each([1, 2, 4])('on %i ranks compute what their dequantised weights do', async (size) => {
    const results = await generate(true, size);
    const logprobs = results.flatMap(({ positions }) => positions.map(({ logprob }) => logprob));
    expect(logprobs.every((logprob) => logprob < 0)).toBe(true);
    // The sums of quantised and of float weights are in orders of their own.
    const expected = await generate(false, size);
    results.forEach(({ tokenIds, positions }, i) => {
      expect(tokenIds).toEqual(expected[i].tokenIds);
      positions.forEach(({ logprob }, p) => {
        expect(Math.abs(logprob - expected[i].positions[p].logprob)).toBeLessThan(1e-5);
      });
    });
  });
});

describe.each([1, 2, 4])('NaN in the weights on %i ranks', (size) => {
  const poison = 300; // of 320: on the last rank
  const load = async (tensor: string) => {
    const read = (name: string) => readFileSync(path.join(goldenFolder('llama2'), name));
    const folder = await folderWith({
      'config.json': read('config.json'),
      'model.safetensors': withNanRow(read('model.safetensors'), tensor, poison),
    });
    const world = await openWorld(size);
    await world.load(await readModel(folder));
    return world;
  };
  const prompts = [
    [5, 17, 3, 250],
    [9, poison, 31],
    [7, 8],
  ];
  const rows = prompts.map(({ length }, slot) => ({
    slot,
    computed: 0,
    scheduled: length,
    promptLogprobs: slot === 0,
  }));

  it("in one rank's rows of the output head is counted once per row, on every rank", async () => {
    const world = await load('lm_head.weight');
    prompts.forEach((tokenIds, slot) => world.add(slot, tokenIds));
    const { numNans, promptNumNans } = await world.step(rows);
    expect([...numNans.subarray(0, 3)]).toEqual([1, 1, 1]);
    expect([...promptNumNans.subarray(0, 3)]).toEqual([1, 1, 1]);
  });

  it("in a token's embedding is counted in its request's row, on every rank", async () => {
    const world = await load('model.embed_tokens.weight');
    prompts.forEach((tokenIds, slot) => world.add(slot, tokenIds));
    const { numNans, promptNumNans } = await world.step(rows);
    expect([...numNans.subarray(0, 3)]).toEqual([0, 320, 0]);
    expect([...promptNumNans.subarray(0, 3)]).toEqual([0, 0, 0]);
  });
});

/** Eight heads, and weights of every kind. */
const SPEC: TransformerSpec = {
  vocabSize: 61,
  hiddenSize: 20,
  intermediateSize: 36,
  numLayers: 2,
  numHeads: 8,
  numKvHeads: 2,
  headDim: 6,
  rmsNormEps: 1e-5,
  ...plainSpec(2, 6),
  slidingWindows: [0, 5],
  qkvBias: true,
  outputBias: true,
  mlpBias: true,
  qkNorm: 'head',
  tieWordEmbeddings: false,
};

/** Writes the tensors as a checkpoint in a new folder. */
async function writeCheckpoint({ layers, ...tensors }: ModelTensors): Promise<string> {
  const named: [string, Tensor | undefined][] = [
    ['model.embed_tokens.weight', tensors.embedTokens],
    ['model.norm.weight', tensors.norm],
    ['lm_head.weight', tensors.lmHead],
    ...layers.flatMap((layer, i) =>
      Object.entries({
        'input_layernorm.weight': layer.inputNorm,
        'self_attn.q_proj.weight': layer.q,
        'self_attn.k_proj.weight': layer.k,
        'self_attn.v_proj.weight': layer.v,
        'self_attn.q_proj.bias': layer.qBias,
        'self_attn.k_proj.bias': layer.kBias,
        'self_attn.v_proj.bias': layer.vBias,
        'self_attn.q_norm.weight': layer.qNorm,
        'self_attn.k_norm.weight': layer.kNorm,
        'self_attn.o_proj.weight': layer.o,
        'self_attn.o_proj.bias': layer.oBias,
        'post_attention_layernorm.weight': layer.postAttentionNorm,
        'mlp.gate_proj.weight': layer.gate,
        'mlp.up_proj.weight': layer.up,
        'mlp.gate_proj.bias': layer.gateBias,
        'mlp.up_proj.bias': layer.upBias,
        'mlp.down_proj.weight': layer.down,
        'mlp.down_proj.bias': layer.downBias,
      }).map(([name, tensor]): [string, Tensor | undefined] => [
        `model.layers.${i}.${name}`,
        tensor,
      ]),
    ),
  ];
  const given = named.filter((entry): entry is [string, Tensor] => entry[1] !== undefined);
  const file = fileOf(
    Object.fromEntries(
      given.map(([name, { rows, cols }]) => {
        const isVector = !/(proj|embed_tokens|lm_head)\.weight$/.test(name);
        return [name, { dtype: 'F32', shape: isVector ? [rows] : [rows, cols] }];
      }),
    ),
  );
  let offset = 8 + Number(file.readBigUInt64LE());
  for (const [, { data }] of given) {
    offset += Buffer.from(data.buffer, data.byteOffset, data.byteLength).copy(file, offset);
  }
  return folderWith({ 'model.safetensors': file });
}

describe.each<[string, Partial<TransformerSpec>]>([
  ['biases, head norms, two key-value heads, an indivisible vocabulary', {}],
  ['one key-value head, a divisible vocabulary', { numKvHeads: 1, vocabSize: 64 }],
  ['as many key-value heads as heads', { numKvHeads: 8 }],
  ['tied embeddings', { tieWordEmbeddings: true }],
  ['a vocabulary without a part on the last rank', { vocabSize: 5 }],
  [
    'no biases, no head norms',
    { qkvBias: false, outputBias: false, mlpBias: false, qkNorm: null, numLayers: 1 },
  ],
])('%s', (_, change) => {
  const spec = { ...SPEC, ...change };
  spec.slidingWindows = spec.slidingWindows.slice(0, spec.numLayers);
  spec.layerRopes = spec.layerRopes.slice(0, spec.numLayers);
  const whole = modelSpecOf(spec);
  const tensors = randomTensors(whole, 7);

  it.each([1, 2, 4])('matches float64 on %i ranks', async (size) => {
    const world = await openWorld(size);
    const table = await readTensorTable(await writeCheckpoint(tensors));
    await world.load({ spec: whole, family: llama, table });
    const prompts = [17, 6].map((length, seed) =>
      Array.from({ length }, (_, i) => (7 * i * (i + seed) + 3) % spec.vocabSize),
    );
    const results = await world.generate(prompts, 4);
    results.forEach(({ tokenIds, positions }, i) => {
      const sequence = [...prompts[i], ...tokenIds];
      const expected = decode(whole, tensors, sequence.slice(0, -1));
      expect(positions).toHaveLength(expected.length);
      positions.forEach((position, p) => {
        const ranked = [...expected[p].keys()].sort((a, b) => expected[p][b] - expected[p][a]);
        expect(position.tokenId).toBe(sequence[p + 1]);
        expect(position.rank).toBe(ranked.indexOf(position.tokenId) + 1);
        expect(position.top.map(([id]) => id)).toEqual(ranked.slice(0, 5));
        for (const [id, logprob] of [[position.tokenId, position.logprob], ...position.top]) {
          expect(Math.abs(logprob - expected[p][id])).toBeLessThan(TOLERANCE);
        }
        if (p >= prompts[i].length - 1) expect(position.tokenId).toBe(ranked[0]);
      });
    });
  });
});

describe('between steps', () => {
  it('profile and warmUp run on all ranks, and do not change requests and cache', async () => {
    const world = await openGolden('qwen2', 2);
    const prompts = [[3, 1, 4, 1, 5, 9, 2, 6]];
    const [expected] = await world.generate(prompts, 6);
    await Promise.all(world.models.map((model) => model.profile()));
    await Promise.all(world.models.map((model) => model.warmUp()));
    expect(await world.generate(prompts, 6)).toEqual([expected]);
  });

  it('random weights differ between ranks, and give all ranks the same logits', async () => {
    const world = await openWorld(2);
    const spec = { ...SPEC, vocabSize: 64 };
    await Promise.all(
      world.ranks.map(async (rank) => {
        const model = world.newModel(modelSpecOf(spec), rank);
        await model.loadDummy(3);
        await model.allocateKvCache(LIMITS.maxNumSeqs * BLOCKS_PER_SLOT);
      }),
    );
    world.add(0, [1, 2, 3]);
    const logits = await Promise.all(
      world.models.map(async (model) => {
        const [buffers] = model.steps;
        buffers.slots[0] = 0;
        buffers.numComputedTokens[0] = 0;
        buffers.numScheduledTokens[0] = 3;
        buffers.sampledRows[0] = 0;
        model.forward(0, 1, 0, 1, 0);
        const all = await readLogits(model, 1);
        await ready(model.sample(0, null));
        return all;
      }),
    );
    expect(logits[1]).toEqual(logits[0]);
    expect(logits[0].subarray(32)).not.toEqual(logits[0].subarray(0, 32));
  });
});

describe('a failed world', () => {
  const rows = [{ slot: 0, computed: 0, scheduled: 3 }];

  it('fails a step that waits for a peer when its communicator is aborted', async () => {
    const world = await openGolden('qwen2', 2);
    world.add(0, [1, 2, 3]);
    const step = launch(world.models[0], rows);
    world.communicators[0].abort('rank 1 is gone');
    await expect(step).rejects.toMatchObject({
      code: 'PEER_LOST',
      message: expect.stringContaining('rank 1 is gone') as string,
    });
    await expect(launch(world.models[0], rows)).rejects.toMatchObject({ code: 'PEER_LOST' });
  });

  it('fails the steps after its communicator was shut down', async () => {
    const world = await openGolden('qwen2', 2);
    world.add(0, [1, 2, 3]);
    await world.communicators[0].shutdown();
    await expect(launch(world.models[0], rows)).rejects.toMatchObject({ code: 'SHUT_DOWN' });
    await expect(world.models[0].warmUp()).rejects.toMatchObject({ code: 'SHUT_DOWN' });
  });

  it('rejects a spec that its ranks cannot divide, and a communicator of another device', async () => {
    const world = await openWorld(2);
    const make = (spec: TransformerSpec, communicator: NativeCommunicator) => () =>
      new (native().ModelRunner)(world.devices[0], modelSpecOf(spec), LIMITS, communicator);
    const [first, second] = world.communicators;
    expect(make({ ...SPEC, intermediateSize: 13 }, first)).toThrow(
      /intermediateSize, 13, must be a multiple of the 2 ranks/,
    );
    expect(make(SPEC, second)).toThrow(/must use the same device/);
    expect(make(SPEC, {} as NativeCommunicator)).toThrow('must be a NativeCommunicator');
  });
});
