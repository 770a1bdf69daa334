/** docs/troubleshooting.md: its messages are those of the sources, and what the library really says. */
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { LLM, SamplingParams, type CreateArgs } from '../../lib';
import * as errors from '../../lib/errors';
import { nativeError } from '../../lib/nativeError';
import { FakeCuda } from '../support/fakeCuda';
import { sourceMessages } from './messages';

const ROOT = path.resolve(__dirname, '..', '..');
const page = readFileSync(path.join(ROOT, 'docs', 'troubleshooting.md'), 'utf8');

/** By heading: the message, and the code that follows it. */
const problems = new Map(
  [...page.matchAll(/^### (.+)\n\n```text\n(.+)\n```\n\n`([A-Z_]+)`/gm)].map(
    ([, heading, message, code]) => [heading, { message, code }],
  ),
);

test('every message stands with a code', () => {
  expect(problems.size).toBeGreaterThan(30);
  expect(page.match(/^```text$/gm)).toHaveLength(problems.size);
});

test('the codes are those of errors, or of a warning', () => {
  const documented = readFileSync(path.join(ROOT, 'docs', 'errors.md'), 'utf8');
  for (const { code } of problems.values()) {
    if (code.startsWith('UNIPROC_')) continue;
    expect(documented).toContain(`| \`${code}\` |`);
  }
});

const folders: string[] = [];
const fake = new FakeCuda();

afterAll(() => {
  fake.remove();
  for (const folder of folders) rmSync(folder, { recursive: true });
});

/** The small model, changed. */
function checkpoint(change: (folder: string) => void): string {
  const folder = mkdtempSync(path.join(tmpdir(), 'uniproc-troubles-'));
  folders.push(folder);
  cpSync(path.join(ROOT, 'models', 'stories'), folder, { recursive: true });
  change(folder);
  return folder;
}

const config = (changes: object) =>
  checkpoint((folder) => {
    const file = path.join(folder, 'config.json');
    const json = JSON.parse(readFileSync(file, 'utf8')) as object;
    writeFileSync(file, JSON.stringify({ ...json, ...changes }));
  });

const create = (args: CreateArgs) => async () => {
  const llm = await LLM.create({ device: 'cpu', ...args });
  await llm.shutdown();
};

/** Does something with a small engine. */
const using =
  (use: (llm: LLM) => Promise<unknown>, args: CreateArgs = {}) =>
  async () => {
    const llm = await LLM.create({ device: 'cpu', maxModelLen: 64, maxNumSeqs: 1, ...args });
    try {
      await use(llm);
    } finally {
      await llm.shutdown();
    }
  };

/** Opens a GPU, with stand-ins for what NVIDIA makes (test/support/fakeCuda.ts). */
const openGpu =
  (
    env: Record<string, string>,
    {
      backend = fake.usableBackend,
      libraries = [],
      index = 0,
    }: {
      backend?: string | Buffer | null;
      libraries?: string[];
      index?: number;
    } = {},
  ) =>
  async () => {
    fake.putBackend(backend);
    const { code, message } = fake.errorOfGpu([fake.driver, ...libraries], env, index);
    await Promise.reject(nativeError(code, message));
  };

const weights = 'model.safetensors';
/** How an HDF5 file begins. */
const HDF5 = Buffer.from('894844460d0a1a0a', 'hex');
const POINTER = `version https://git-lfs.github.com/spec/v1\noid sha256:${'0'.repeat(64)}\nsize 9\n`;
const withoutTemplate = () =>
  checkpoint((folder) => {
    const file = path.join(folder, 'tokenizer_config.json');
    const json = JSON.parse(readFileSync(file, 'utf8')) as { chat_template?: string };
    delete json.chat_template;
    writeFileSync(file, JSON.stringify(json));
    rmSync(path.join(folder, 'chat_template.jinja'), { force: true });
  });

const withCublasLt = { libraries: [fake.cublasLt] };

const troubles: Record<string, () => Promise<unknown>> = {
  'The build has no CUDA backend': openGpu({}, { backend: null }),
  'The CUDA backend cannot be loaded': openGpu({}, { backend: 'damaged' }),
  'cuBLASLt is not found': openGpu({}),
  'cuBLASLt has another version': openGpu({ UNIPROC_CUBLAS_DIR: fake.cublasLt12 }),
  'There is no driver': openGpu({ LD_LIBRARY_PATH: fake.noDriver() }),
  'The driver shows no GPU': openGpu({ CUDA_VISIBLE_DEVICES: '' }),
  'The driver fails': openGpu({ FAKE_GPU_INIT: '803' }),
  'The driver is too old': openGpu({ FAKE_GPU_DRIVER: '12080' }, withCublasLt),
  'The GPU is too old': openGpu({ FAKE_GPU_CAPABILITY: '75' }),
  'There is no such GPU': openGpu({}, { index: 1 }),
  "Others use the GPU's memory": create({ memoryUtilization: 1 }),
  'The model is too large': create({ memoryUtilization: 1e-5 }),
  'The KV cache is too small': create({ kvCacheMemoryBytes: 2 ** 20 }),
  'The folder is not there': create({ model: 'models/Qwen3-0.6B' }),
  'The path is a file of another format': create({
    model: path.join(
      checkpoint((folder) => writeFileSync(path.join(folder, 'model.h5'), HDF5)),
      'model.h5',
    ),
  }),
  'The folder has no config.json': create({
    model: checkpoint((folder) => {
      mkdirSync(path.join(folder, 'inner'));
      renameSync(path.join(folder, 'config.json'), path.join(folder, 'inner', 'config.json'));
    }),
  }),
  'The weights are missing': create({
    model: checkpoint((folder) => rmSync(path.join(folder, weights))),
  }),
  'The files are Git LFS pointers': create({
    model: checkpoint((folder) => writeFileSync(path.join(folder, weights), POINTER)),
  }),
  'A file is truncated': create({
    model: checkpoint((folder) => truncateSync(path.join(folder, weights), 1_000_000)),
  }),
  'The architecture is not supported': create({
    model: config({ architectures: ['DeepseekV3ForCausalLM'] }),
  }),
  'The quantization is not supported': create({
    model: config({ quantization_config: { quant_method: 'hqq' } }),
  }),
  'config.json and the weights disagree': create({ model: config({ num_hidden_layers: 1 }) }),
  'An option is misspelt': create({ maxModelLength: 64 } as CreateArgs),
  'The prompt is too long': using((llm) =>
    llm.generate({ promptTokenIds: new Array<number>(64).fill(5) }),
  ),
  'The model has no chat template': using((llm) => llm.chat([{ role: 'user', content: 'Hello' }]), {
    model: withoutTemplate(),
  }),
  'The queue is full': using((llm) => llm.generate(['a', 'b', 'c']), { maxQueuedRequests: 1 }),
  'A call takes too long': using((llm) =>
    llm.generate('a', new SamplingParams({ maxTokens: 63, ignoreEos: true }), { timeoutMs: 1 }),
  ),
  'The executor is asleep': using(async (llm) => {
    await llm.engine.executor.sleep(1);
    await llm.generate('a');
  }),
  'The launcher is missing': create({
    tensorParallelSize: 2,
    seed: 1,
    distributedExecutorBackend: 'external_launcher',
  }),
};

const literal = (message: string) => message.replaceAll('…', '');
const pattern = (message: string) =>
  message.replace(/[.*+?^${}()|[\]\\]/g, '\\$&').replaceAll('…', '.*');

/** Those that take a GPU, another machine or other ranks. */
describe('the sources have the message of', () => {
  const messages = sourceMessages();

  const unseen = [...problems].filter(([heading]) => !Object.hasOwn(troubles, heading));

  test.each(unseen)('%s', (_, { message }) => {
    // What is put in on the page may be a constant's value.
    const known = messages.filter((each) => new RegExp(`^(.*: )?${pattern(each)}$`).test(message));
    const length = Math.max(0, ...known.map((each) => literal(each).length));
    expect(length / literal(message).length).toBeGreaterThan(0.6);
  });
});

describe('the library says', () => {
  test.each(Object.entries(troubles))('%s', async (heading, trouble) => {
    const { message, code } = problems.get(heading) ?? { message: '', code: '' };
    const error: unknown = await trouble().then(
      () => null,
      (reason: unknown) => reason,
    );
    expect(error).toBeInstanceOf(errors.UniprocError);
    const { code: said, message: text } = error as errors.UniprocError;
    expect(said).toBe(code);
    // It may say first in which file or prompt.
    expect(text).toMatch(new RegExp(`^(.*: )?${pattern(message)}$`));
  });
});
