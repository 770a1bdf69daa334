/**
 * Invalid input to the public API during another request: a typed error that names the fault, and
 * the other request is unaffected. More kinds are in test/config and test/worker.
 */
import { cp, mkdtemp, open, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { LLM, SamplingParams, type Prompt, type UniprocError } from '../lib';
import { watchThreads } from './support/threads';

const CHECKPOINT = path.join(__dirname, 'golden', 'checkpoints', 'llama2');
const WEIGHTS = 'model.safetensors';
const PROMPT = { promptTokenIds: [5, 6, 7] };

let bystander: LLM;
let served: Promise<number[]>;
let expected: number[];
let stopServing = false;
let folder: string;

const params = new SamplingParams({ temperature: 0, maxTokens: 20, ignoreEos: true });

function load(model: string, args = {}): Promise<LLM> {
  return LLM.create({
    model,
    device: 'cpu',
    dtype: 'float32',
    skipTokenizerInit: true,
    kvCacheMemoryBytes: 2 ** 22,
    ...args,
  });
}

/** Repeats one request; resolves to its last tokens, rejects if they change. */
async function serve(): Promise<number[]> {
  let tokenIds = expected;
  while (!stopServing) {
    const [out] = await bystander.generate([PROMPT], params);
    ({ tokenIds } = out.outputs[0]);
    expect(tokenIds).toEqual(expected);
  }
  return tokenIds;
}

beforeAll(async () => {
  bystander = await load(CHECKPOINT);
  const [out] = await bystander.generate([PROMPT], params);
  expected = out.outputs[0].tokenIds;
  served = serve();
});

afterAll(async () => {
  stopServing = true;
  await expect(served).resolves.toEqual(expected);
  await bystander.shutdown();
});

beforeEach(async () => {
  folder = await mkdtemp(path.join(os.tmpdir(), 'uniproc-bad-'));
  await cp(CHECKPOINT, folder, { recursive: true });
});

afterEach(() => rm(folder, { recursive: true }));

async function refusal(promise: Promise<unknown>): Promise<UniprocError> {
  try {
    await promise;
  } catch (error) {
    return error as UniprocError;
  }
  throw new Error('it was accepted');
}

/** Paths of this process's open files. */
function openFiles(): string[] {
  return readdirSync('/proc/self/fd').flatMap((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`);
    } catch {
      return []; // The listing itself.
    }
  });
}

async function editConfig(change: Record<string, unknown>): Promise<void> {
  const file = path.join(folder, 'config.json');
  const config = JSON.parse(await readFile(file, 'utf8')) as Record<string, unknown>;
  await writeFile(file, JSON.stringify({ ...config, ...change }));
}

/** Replaces text of the header, keeping its length. */
async function editHeader(edit: (header: string) => string): Promise<void> {
  const file = path.join(folder, WEIGHTS);
  const bytes = await readFile(file);
  const length = Number(bytes.readBigUInt64LE(0));
  const header = edit(bytes.toString('utf8', 8, 8 + length));
  bytes.write(header.padEnd(length).slice(0, length), 8, 'utf8');
  await writeFile(file, bytes);
}

describe('a checkpoint is refused, naming the file,', () => {
  it.each<[string, string, RegExp, () => Promise<unknown>]>([
    ['whose weights are missing', '', /safetensors/, () => rm(path.join(folder, WEIGHTS))],
    [
      'whose config is missing',
      'config.json',
      /missing/,
      () => rm(path.join(folder, 'config.json')),
    ],
    [
      'that was cut short',
      WEIGHTS,
      /\d+ bytes/,
      () => truncate(path.join(folder, WEIGHTS), 50_000),
    ],
    [
      'whose header is longer than the file',
      WEIGHTS,
      /header/,
      async () => {
        const file = await open(path.join(folder, WEIGHTS), 'r+');
        await file.write(Buffer.from([0, 0, 0, 5, 0, 0, 0, 0]), 0, 8, 0);
        await file.close();
      },
    ],
    [
      'in which a tensor has another shape',
      WEIGHTS,
      /shape/,
      () => editHeader((header) => header.replace(/"shape":\[\d/, '"shape":[9')),
    ],
    [
      'in which a tensor has a type nobody knows',
      WEIGHTS,
      /X32/,
      () => editHeader((header) => header.replace('"F32"', '"X32"')),
    ],
    [
      'in which a tensor is missing',
      WEIGHTS,
      /model\.norm\.weight/,
      () => editHeader((header) => header.replace('model.norm.weight', 'model.torn.weight')),
    ],
    [
      'whose config contradicts the weights',
      '',
      /intermediate_size|shape/,
      () => editConfig({ intermediate_size: 4096 }),
    ],
    [
      'whose config has a wrong type',
      'config.json',
      /hidden_size is 'many'/,
      () => editConfig({ hidden_size: 'many' }),
    ],
  ])('%s', async (_, file, cause, damage) => {
    await damage();
    const error = await refusal(load(folder));
    expect(error.code).toBe('CHECKPOINT_INVALID');
    expect(error.message).toContain(path.join(folder, file));
    expect(error.message).toMatch(cause);
  });

  it.each([
    ['of another architecture', { architectures: ['MambaForCausalLM'] }, /MambaForCausalLM/],
    [
      'in a format that is not known',
      { quantization_config: { quant_method: 'bitsandbytes' } },
      /bitsandbytes/,
    ],
  ])('%s', async (_, change, cause) => {
    await editConfig(change);
    const error = await refusal(load(folder));
    expect(error.code).toBe('MODEL_UNSUPPORTED');
    expect(error.message).toContain(path.join(folder, 'config.json'));
    expect(error.message).toMatch(cause);
  });

  it('and leaves no thread or open file behind', async () => {
    const started = watchThreads();
    await editHeader((header) => header.replace('model.norm.weight', 'model.torn.weight'));
    for (let i = 0; i < 10; i++) await refusal(load(folder));
    expect(started()).toEqual([]);
    expect(readFileSync('/proc/self/maps', 'utf8')).not.toContain(folder);
    expect(openFiles().filter((file) => file.startsWith(folder))).toEqual([]);
  });
});

describe('an option is refused, naming it and its value:', () => {
  it.each([
    [{ dtype: 'int3' }, /dtype.*int3/],
    [{ blockSize: 0 }, /blockSize.*0/],
    [{ maxModelLen: 1e9 }, /maxModelLen.*1000000000/],
    [{ maxnumseqs: 3 }, /maxnumseqs/],
    [{ device: 'tpu' }, /device.*tpu/],
    [{ kvCacheMemoryBytes: 64 }, /kvCacheMemoryBytes/],
  ])('%j', async (args, cause) => {
    const error = await refusal(load(CHECKPOINT, args));
    expect(error.code).toBe('CONFIG_INVALID');
    expect(error.message).toMatch(cause);
  });
});

describe('a request is refused, naming the prompt:', () => {
  it.each<[string, unknown, RegExp]>([
    ['a token id out of range', { promptTokenIds: [5, 1_000_000] }, /token 1 is 1000000/],
    ['a negative token id', { promptTokenIds: [-1] }, /token 0 is -1/],
    ['a token id that is no integer', { promptTokenIds: [1.5] }, /token 0 is 1\.5/],
    ['a token id that is no number', { promptTokenIds: ['5'] }, /token 0 is '5'/],
    ['an empty prompt', { promptTokenIds: [] }, /empty/],
    ['a prompt too long', { promptTokenIds: Array<number>(100_000).fill(1) }, /100000 tokens/],
    ['a prompt that is none', 7, /it is 7/],
  ])('%s', async (_, bad, cause) => {
    const error = await refusal(bystander.generate([PROMPT, bad as Prompt], params));
    expect(error.code).toBe('REQUEST_INVALID');
    expect(error.message).toMatch(/prompt 1/);
    expect(error.message).toMatch(cause);
  });

  it.each<[object, RegExp]>([
    [{ temperature: -1 }, /temperature.*-1/],
    [{ topP: 0 }, /topP.*0/],
    [{ topP: 1.1 }, /topP.*1\.1/],
    [{ topK: -2 }, /topK.*-2/],
    [{ minP: 2 }, /minP.*2/],
    [{ presencePenalty: 3 }, /presencePenalty.*3/],
    [{ repetitionPenalty: 0 }, /repetitionPenalty.*0/],
    [{ maxTokens: 0 }, /maxTokens.*0/],
    [{ n: 0 }, /n.*0/],
    [{ seed: 1.5 }, /seed.*1\.5/],
    [{ logprobs: 1000 }, /logprobs.*1000/],
    [{ allowedTokenIds: [1_000_000] }, /allowedTokenIds.*1000000/],
    [{ stopTokenIds: [-3] }, /stopTokenIds.*-3/],
    [{ temprature: 1 }, /temprature/],
  ])('sampling with %j', async (options, cause) => {
    const error = await refusal(
      (async () => bystander.generate([PROMPT], new SamplingParams(options)))(),
    );
    expect(error.code).toBe('REQUEST_INVALID');
    expect(error.message).toMatch(cause);
  });
});
