/** docs/options.md against the options: their names, their defaults, and the page as it is made. */
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import {
  createUniprocConfig,
  type EngineArgs,
  engineArgsSchema,
} from '../../lib/config/engineArgs';
import { DEFAULT_LIMITS, limitsSchema } from '../../lib/config/limits';
import type { UniprocConfig } from '../../lib/config/uniprocConfig';
import { CPU_CACHE_SHARE, CUDA_MEMORY_UTILIZATION } from '../../lib/worker/memory';

const ROOT = path.join(__dirname, '..', '..');
// eslint-disable-next-line @typescript-eslint/no-require-imports
const { PAGE, render } = require('../../scripts/options') as {
  PAGE: string;
  render: (schemas: object) => string;
};
const page = readFileSync(PAGE, 'utf8');

/** The default of each option in the section's table. */
function defaultsIn(heading: string): Map<string, string> {
  const section = page.split(/^## /m).find((text) => text.startsWith(`${heading}\n`)) ?? '';
  const rows = section.matchAll(/^\| `(\w+)` \| .+? \| (.+?) \| .+ \|$/gm);
  return new Map(Array.from(rows, ([, name, defaultValue]) => [name, defaultValue]));
}

const engine = defaultsIn('The engine');
const configOf = (args: EngineArgs) => createUniprocConfig(args);

/** A literal of JavaScript in backticks; undefined for words. */
function valueOf(text: string | undefined): unknown {
  const literal = /^`(.+)`$/.exec(text ?? '')?.[1];
  return literal === undefined ? undefined : JSON.parse(literal.replaceAll("'", '"'));
}

/** What the page says of both devices, where it gives a value for each. */
function byDevice(text: string): { cuda: unknown; cpu: unknown } {
  const both = /^on CUDA (`.+?`); on a CPU (`.+?`)$/.exec(text);
  return { cuda: valueOf(both?.[1] ?? text), cpu: valueOf(both?.[2] ?? text) };
}

/** Another value than the default. */
function otherThan(value: unknown): unknown {
  if (typeof value === 'boolean') return !value;
  if (typeof value === 'number') return value + 1;
  const others = { fcfs: 'priority', auto: 'dummy', uni: 'external_launcher' };
  return others[value as keyof typeof others];
}

test('the page is what `npm run docs` makes of the types and schemas', () => {
  expect(page).toBe(render({ engineArgsSchema, limitsSchema }));
});

test('the page has every option of an engine, and no other', () => {
  expect([...engine.keys()].sort()).toEqual(Object.keys(engineArgsSchema.shape).sort());
});

test('the page has every option of LLM.create alone', () => {
  expect([...defaultsIn('Of LLM.create alone').keys()]).toEqual([
    'onProgress',
    'signal',
    'chatTemplate',
    'toolCallParser',
    'reasoningParser',
    'revision',
    'onPull',
  ]);
});

test('the page has every limit with its default', () => {
  const limits = [...defaultsIn('Limits')].map(([name, text]) => [name, valueOf(text)]);
  expect(Object.fromEntries(limits)).toEqual(DEFAULT_LIMITS);
});

/** Those of which the page gives a value. */
const valued = [...engine].filter(([, text]) => byDevice(text).cpu !== undefined);

/** Where the config has the options that are none by default. */
const NONE: Record<string, (config: UniprocConfig) => unknown> = {
  kvCacheMemoryBytes: ({ cache }) => cache.kvCacheMemoryBytes,
  maxQueuedRequests: ({ scheduler }) => scheduler.maxQueuedRequests,
  quantization: ({ model }) => model.transformer.quantization,
  workerCls: ({ parallel }) => parallel.workerCls,
  workerExtensionCls: ({ parallel }) => parallel.workerExtensionCls,
};

test('every other default is none, or has a test of its own', () => {
  const none = [...engine].filter(([, text]) => text.startsWith('none')).map(([name]) => name);
  expect(none.sort()).toEqual(Object.keys(NONE).sort());
  const named = new Set([...valued.map(([name]) => name), ...none]);
  expect([...engine.keys()].filter((name) => !named.has(name))).toEqual([
    'model',
    'device',
    'maxModelLen',
    'memoryUtilization',
    'limits',
    'eosTokenIds',
    'tokenizer',
    'languageModelOnly', // test/model/languageModel.test.ts
  ]);
});

describe.each(valued)('%s, by default %s', (name, text) => {
  test.each(['cpu', 'cuda'] as const)('is that on the device %s', async (device) => {
    const value = byDevice(text)[device];
    expect(await configOf({ device, [name]: value })).toEqual(await configOf({ device }));
  });

  test('is not another value', async () => {
    const value = name === 'dtype' ? 'float16' : otherThan(byDevice(text).cpu);
    expect(value).not.toBeUndefined();
    // More ranks than one are refused without other options: that differs, too.
    const other = await configOf({ device: 'cpu', [name]: value }).catch(() => null);
    expect(other).not.toEqual(await configOf({ device: 'cpu' }));
  });
});

test.each(Object.entries(NONE))('%s has no value by default', async (_, read) => {
  expect(read(await configOf({}))).toBeNull();
});

test('memoryUtilization has the defaults of a worker', () => {
  expect(engine.get('memoryUtilization')).toBe(
    `on CUDA \`${CUDA_MEMORY_UTILIZATION}\`; on a CPU none: the KV cache takes a quarter of the free memory`,
  );
  expect(CPU_CACHE_SHARE).toBe(1 / 4);
});

test('maxModelLen is what the model has positions for, on a CPU at most what the page says', async () => {
  const [most] = /(?<=`)\d+(?=`)/.exec(engine.get('maxModelLen') ?? '') ?? [];
  const llama = path.join(ROOT, 'test', 'golden', 'checkpoints', 'llama2');
  const config = JSON.parse(readFileSync(path.join(llama, 'config.json'), 'utf8')) as object;
  const folder = mkdtempSync(path.join(tmpdir(), 'uniproc-options-'));
  try {
    const text = JSON.stringify({ ...config, max_position_embeddings: 20_000 });
    writeFileSync(path.join(folder, 'config.json'), text);
    const lengthOn = async (device: string) =>
      (await configOf({ model: folder, device, eosTokenIds: [] })).model.maxModelLen;
    expect([await lengthOn('cpu'), await lengthOn('cuda')]).toEqual([Number(most), 20_000]);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test('model is the one that comes with the package', async () => {
  expect((await configOf({})).model.path).toBe(path.join(ROOT, 'models', 'stories'));
});

test('the page has the environment variables that the library reads, but that of the launcher', () => {
  const read = ['lib', 'native'].flatMap((folder) =>
    readdirSync(path.join(ROOT, folder), { recursive: true, encoding: 'utf8' })
      .filter((file) => /\.(ts|cpp|cu|h)$/.test(file))
      .flatMap((file) => {
        const text = readFileSync(path.join(ROOT, folder, file), 'utf8');
        return [...text.matchAll(/(?:process\.env\.|getenv\(")(UNIPROC_\w+)/g)].map(
          ([, name]) => name,
        );
      }),
  );
  const documented = page.slice(page.indexOf('## Environment')).match(/UNIPROC_\w+/g) ?? [];
  const ofBuild = ['UNIPROC_CUBLAS_DIR', 'UNIPROC_CUDA'];
  const ofLauncher = ['UNIPROC_LAUNCHER_FD'];
  expect([...new Set([...documented, ...ofLauncher])].sort()).toEqual(
    [...new Set([...read, ...ofBuild])].sort(),
  );
});
