/**
 * Full-size models of random bfloat16 weights against Hugging Face transformers on the same device.
 *
 * The reference is transformers in float32. Our bfloat16 and transformers' bfloat16 both deviate from
 * it. The error of logits [positions, vocabSize] is the Frobenius norm of the difference over that
 * of the reference, and ours may be ALLOWANCE times that of transformers. The arg max must be the
 * reference's wherever the reference's first two logits are further apart than ALLOWANCE times the
 * largest error that any of transformers' logits has at that position.
 *
 * transformers_reference.py makes the weights and transformers' logits. UNIPROC_REFERENCE_PYTHON names
 * its interpreter, python3 by default.
 */
import { spawnSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statfsSync,
  writeFileSync,
} from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { type ModelLimits, native, type NativeModelRunner } from '../../lib/native';
import { ready } from '../support/ready';
import { GREEDY } from '../support/sampling';
import { readModel } from '../support/modelSpec';
import { packSources } from '../../lib/model/packedSources';
import { parameterSources } from '../../lib/model/parameterSources';
import testingAddon from '../support/testingAddon';
import { Random } from '../native/ops/reference';

const ALLOWANCE = 1.5;

const DEVICE = process.env.UNIPROC_TEST_DEVICE ?? 'cpu';
const PYTHON = process.env.UNIPROC_REFERENCE_PYTHON ?? 'python3';
const SCRIPT = path.join(__dirname, 'transformers_reference.py');

/** Timeout for a CPU; a GPU takes seconds. */
const TIMEOUT_MS = 20 * 60_000;

/** Their config.json. */
const MODELS = {
  'Llama-3.2-1B': {
    architectures: ['LlamaForCausalLM'],
    attention_bias: false,
    attention_dropout: 0,
    bos_token_id: 128000,
    eos_token_id: 128001,
    head_dim: 64,
    hidden_act: 'silu',
    hidden_size: 2048,
    initializer_range: 0.02,
    intermediate_size: 8192,
    max_position_embeddings: 131072,
    mlp_bias: false,
    model_type: 'llama',
    num_attention_heads: 32,
    num_hidden_layers: 16,
    num_key_value_heads: 8,
    pretraining_tp: 1,
    rms_norm_eps: 1e-5,
    rope_scaling: {
      factor: 32,
      high_freq_factor: 4,
      low_freq_factor: 1,
      original_max_position_embeddings: 8192,
      rope_type: 'llama3',
    },
    rope_theta: 500000,
    tie_word_embeddings: true,
    torch_dtype: 'bfloat16',
    use_cache: true,
    vocab_size: 128256,
  },
  'Qwen3-0.6B': {
    architectures: ['Qwen3ForCausalLM'],
    attention_bias: false,
    attention_dropout: 0,
    bos_token_id: 151643,
    eos_token_id: 151645,
    head_dim: 128,
    hidden_act: 'silu',
    hidden_size: 1024,
    initializer_range: 0.02,
    intermediate_size: 3072,
    max_position_embeddings: 40960,
    max_window_layers: 28,
    model_type: 'qwen3',
    num_attention_heads: 16,
    num_hidden_layers: 28,
    num_key_value_heads: 8,
    rms_norm_eps: 1e-6,
    rope_scaling: null,
    rope_theta: 1000000,
    sliding_window: null,
    tie_word_embeddings: true,
    torch_dtype: 'bfloat16',
    use_cache: true,
    use_sliding_window: false,
    vocab_size: 151936,
  },
};
type ModelName = keyof typeof MODELS;
const MODEL_NAMES = Object.keys(MODELS) as ModelName[];

/**
 * Tokens that each sequence computes in each step, all sequences in one batch; after the end of a list,
 * one token per step. So prompts are computed whole and in chunks, among decodes, and the last
 * steps are only decodes, which run as CUDA graphs. The last position of every chunk is compared.
 */
const NUM_STEPS = 20;
const CHUNKS = [
  [1],
  [37],
  [699],
  [30, 2, 97, 64, 5, 128, 17, 43],
  [211, 3, 96, 65, 7, 2, 150, 33, 18, 61, 12, 41],
].map((chunks) => Array.from({ length: NUM_STEPS }, (_, step) => chunks[step] ?? 1));

/** Tokens of each sequence that are computed after each step. */
const ENDS = CHUNKS.map((chunks) => {
  let end = 0;
  return chunks.map((numTokens) => (end += numTokens));
});

const NUM_POSITIONS = ENDS.flat().length;

const LIMITS: ModelLimits = {
  maxNumSeqs: 8,
  maxNumBatchedTokens: 1024,
  maxModelLen: 1024,
  blockSize: 16,
  numSteps: 1,
  maxLogprobs: 0,
  listMemoryBytes: 2 ** 20,
  enforceEager: false,
};
const BLOCKS_PER_SEQUENCE = LIMITS.maxModelLen / LIMITS.blockSize;

/** Random tokens, seeded by the model. */
function sequencesOf(model: ModelName): Int32Array[] {
  const random = new Random(7);
  const vocabSize = MODELS[model].vocab_size;
  return ENDS.map((ends) =>
    Int32Array.from({ length: ends[NUM_STEPS - 1] }, () => random.below(vocabSize)),
  );
}

/** Folder for the 4 GB checkpoints: in memory if it fits, else on disk. */
function roomyFolder(): string {
  const memory = '/dev/shm';
  if (!existsSync(memory)) return os.tmpdir();
  const { bavail, bsize } = statfsSync(memory);
  return bavail * bsize > 5e9 ? memory : os.tmpdir();
}

let folder: string;

beforeAll(() => {
  folder = mkdtempSync(path.join(roomyFolder(), 'uniproc-transformers-'));
  for (const model of MODEL_NAMES) {
    const sequences = sequencesOf(model).map((tokenIds, i) => ({
      tokenIds: [...tokenIds],
      positions: ENDS[i].map((end) => end - 1),
    }));
    mkdirSync(path.join(folder, model));
    writeFileSync(path.join(folder, model, 'config.json'), JSON.stringify(MODELS[model]));
    writeFileSync(path.join(folder, model, 'sequences.json'), JSON.stringify(sequences));
  }
  runReference(MODEL_NAMES.map((model) => path.join(folder, model)));
}, TIMEOUT_MS);

afterAll(() => rmSync(folder, { recursive: true }));

function runReference(folders: string[]): void {
  const { status, stderr, error } = spawnSync(PYTHON, [SCRIPT, DEVICE, ...folders], {
    encoding: 'utf8',
    timeout: TIMEOUT_MS,
  });
  if (status === 0) return;
  throw new Error(
    `the reference could not be computed by ${PYTHON}: ${error?.message ?? stderr}\n` +
      'It needs Python with torch, transformers 5 and safetensors, and torch with the device ' +
      `under test, ${DEVICE}; UNIPROC_REFERENCE_PYTHON names another interpreter.`,
  );
}

/** transformers' logits [NUM_POSITIONS, vocabSize] in one type. */
function readLogits(model: ModelName, dtype: 'float32' | 'bfloat16'): Float32Array {
  const { buffer, byteOffset, byteLength } = readFileSync(
    path.join(folder, model, `logits.${dtype}.bin`),
  );
  return new Float32Array(buffer, byteOffset, byteLength / 4);
}

/** Our bfloat16 logits [NUM_POSITIONS, vocabSize] of the same checkpoint. */
async function computeLogits(model: ModelName): Promise<Float32Array> {
  const { spec, family, table, schemes } = await readModel(path.join(folder, model), 'bfloat16');
  const { files, sources } = await parameterSources(
    native().declareParameters(spec, 0, 1),
    spec,
    family,
    table,
    schemes,
  );
  const device = new (native().DeviceThread)(DEVICE, 0, 0);
  try {
    await device.open();
    const nativeModel = new (native().ModelRunner)(device, spec, LIMITS, null);
    await nativeModel.load(files, await packSources(sources), () => {});
    await nativeModel.allocateKvCache(ENDS.length * BLOCKS_PER_SEQUENCE);
    const sequences = sequencesOf(model);
    const logits = new Float32Array(NUM_POSITIONS * spec.vocabSize);
    for (let step = 0; step < NUM_STEPS; step++) {
      const rows = await runStep(nativeModel, step, sequences);
      ENDS.forEach((_, i) => {
        const row = rows.subarray(i * spec.vocabSize, (i + 1) * spec.vocabSize);
        logits.set(row, (i * NUM_STEPS + step) * spec.vocabSize);
      });
    }
    await nativeModel.shutdown();
    return logits;
  } finally {
    await device.shutdown();
  }
}

/** The logits [sequences, vocabSize] of the last tokens of this step's chunks. */
async function runStep(
  model: NativeModelRunner,
  step: number,
  sequences: Int32Array[],
): Promise<Float32Array> {
  const [buffers] = model.steps;
  sequences.forEach((tokenIds, i) => {
    const end = ENDS[i][step];
    // Teacher forcing: the sequence's token replaces the sampled one.
    model.addRequest(i, {
      tokenIds: tokenIds.slice(0, end),
      numPromptTokens: Math.min(end, ENDS[i][0]),
      blockIds: blocksOf(i),
      sampling: GREEDY,
    });
    buffers.slots[i] = i;
    buffers.numComputedTokens[i] = end - CHUNKS[i][step];
    buffers.numScheduledTokens[i] = CHUNKS[i][step];
    buffers.sampledRows[i] = i;
  });
  model.forward(0, sequences.length, 0, sequences.length, 0);
  const logits = await testingAddon.readLogits(model, sequences.length);
  await ready(model.sample(0, null));
  return logits;
}

/** Interleaves the blocks of the sequences. */
function blocksOf(sequence: number): Int32Array {
  return Int32Array.from(
    { length: BLOCKS_PER_SEQUENCE },
    (_, block) => block * ENDS.length + sequence,
  );
}

/** Frobenius norm of the difference, relative to the reference's. */
function relativeError(logits: Float32Array, reference: Float32Array): number {
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < reference.length; i++) {
    const error = logits[i] - reference[i];
    difference += error * error;
    norm += reference[i] * reference[i];
  }
  return Math.sqrt(difference / norm);
}

function largestError(logits: Float32Array, reference: Float32Array): number {
  let largest = 0;
  for (let i = 0; i < reference.length; i++) {
    const error = Math.abs(logits[i] - reference[i]);
    if (error > largest) largest = error;
  }
  return largest;
}

/** The ids of the two largest logits, the largest first. */
function topTwo(logits: Float32Array): [number, number] {
  let [first, second] = logits[0] >= logits[1] ? [0, 1] : [1, 0];
  for (let id = 2; id < logits.length; id++) {
    if (logits[id] > logits[first]) [first, second] = [id, first];
    else if (logits[id] > logits[second]) second = id;
  }
  return [first, second];
}

test.each(MODEL_NAMES)(
  '%s is as accurate as transformers, and has the same arg max wherever it is unambiguous',
  async (model) => {
    const { vocab_size: vocabSize } = MODELS[model];
    const reference = readLogits(model, 'float32');
    const theirs = readLogits(model, 'bfloat16');
    const ours = await computeLogits(model);
    expect([theirs.length, ours.length]).toEqual([reference.length, reference.length]);

    let numDecided = 0;
    const wrong: string[] = [];
    for (let position = 0; position < NUM_POSITIONS; position++) {
      const [expected, their, our] = [reference, theirs, ours].map((logits) =>
        logits.subarray(position * vocabSize, (position + 1) * vocabSize),
      );
      const [first, second] = topTwo(expected);
      if (expected[first] - expected[second] <= ALLOWANCE * largestError(their, expected)) continue;
      numDecided++;
      const [argMax] = topTwo(our);
      if (argMax !== first) wrong.push(`position ${position}: arg max ${argMax}, not ${first}`);
    }

    const ourError = relativeError(ours, reference);
    const theirError = relativeError(theirs, reference);
    process.stdout.write(
      `${model}: relative error ${ourError.toExponential(2)}, of transformers ` +
        `${theirError.toExponential(2)}, ratio ${(ourError / theirError).toFixed(2)}; ` +
        `${NUM_POSITIONS} positions, ${numDecided} decided, ${wrong.length} of them wrong\n`,
    );
    expect(ourError).toBeLessThanOrEqual(ALLOWANCE * theirError);
    expect(wrong).toEqual([]);
    expect(numDecided).toBeGreaterThan(0);
  },
  TIMEOUT_MS,
);
