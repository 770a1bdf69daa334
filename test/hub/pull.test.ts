/** Models by name, from a hub of the tests' own on loopback. */
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import fs from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';
import { createHandler, LLM, pull, type PullProgress } from '../../lib';
import { everyType, quantizedModel } from '../support/ggufQuantized';
import { COMMIT, gitId, Hub, MODEL, sha256 } from '../support/hub';

const ROOT = path.resolve(__dirname, '..', '..');
const stories = (name: string) => readFileSync(path.join(ROOT, 'models', 'stories', name));
const weights = randomBytes(300_000);
const FILES = {
  'README.md': Buffer.from('# Tiny'),
  'config.json': Buffer.from('{"architectures": []}'),
  'tokenizer.json': stories('tokenizer.json'),
  'additional_chat_templates/tools.jinja': Buffer.from('{{ messages }}'),
  'model.safetensors': weights,
  'consolidated.safetensors': Buffer.from('a copy'),
  'original/model.safetensors': Buffer.from('another'),
  'pytorch_model.bin': Buffer.from('a pickle'),
  'training_args.json': Buffer.from('{}'),
};
const WANTED = [
  'additional_chat_templates/tools.jinja',
  'config.json',
  'model.safetensors',
  'tokenizer.json',
];

let hub: Hub;
let home: string;
const variables = ['HF_HOME', 'HF_ENDPOINT', 'HF_TOKEN', 'HF_HUB_CACHE', 'HF_HUB_OFFLINE'];
const before = Object.fromEntries(variables.map((name) => [name, process.env[name]]));

beforeEach(async () => {
  hub = await Hub.start(FILES);
  home = mkdtempSync(path.join(tmpdir(), 'uniproc-hub-'));
  for (const name of variables) Reflect.deleteProperty(process.env, name);
  process.env.HF_HOME = home;
  process.env.HF_ENDPOINT = `${hub.url}/`;
});

afterEach(() => {
  hub.close();
  rmSync(home, { recursive: true, force: true });
  for (const name of variables) {
    const value = before[name];
    if (value === undefined) Reflect.deleteProperty(process.env, name);
    else process.env[name] = value;
  }
});

const repository = (root = path.join(home, 'hub')) => path.join(root, 'models--org--tiny');
const filesBelow = (folder: string) =>
  readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .filter((name) => !lstatSync(path.join(folder, name)).isDirectory())
    .sort();

test("fills the cache in the layout of Python's huggingface_hub, with a model's files alone", async () => {
  const folder = await pull(MODEL);
  expect(folder).toBe(path.join(repository(), 'snapshots', COMMIT));
  expect(filesBelow(folder)).toEqual(WANTED);
  expect(readFileSync(path.join(repository(), 'refs', 'main'), 'utf8')).toBe(COMMIT);
  for (const name of WANTED) {
    const bytes = FILES[name as keyof typeof FILES];
    const id = name.endsWith('.safetensors') ? sha256(bytes) : gitId(bytes);
    const link = readlinkSync(path.join(folder, name));
    expect(link).toBe(path.join(...name.split('/').map(() => '..'), '..', 'blobs', id));
    expect(readFileSync(path.join(folder, name)).equals(bytes)).toBe(true);
  }
  expect(readdirSync(path.join(repository(), 'blobs'))).toHaveLength(WANTED.length);
  expect(filesBelow(path.join(home, 'hub', '.locks'))).toEqual([]);
});

test('downloads nothing twice, and uses what Python has downloaded', async () => {
  const config = FILES['config.json'];
  mkdirSync(path.join(repository(), 'blobs'), { recursive: true });
  writeFileSync(path.join(repository(), 'blobs', gitId(config)), config);
  await pull(MODEL);
  await pull(MODEL);
  const urls = hub.requests.map(({ url }) => url).filter((url) => url.includes('/resolve/'));
  expect(urls).toHaveLength(WANTED.length - 1);
  expect(urls.some((url) => url.endsWith('config.json'))).toBe(false);
});

test('takes a branch, a revision with a slash, and a commit', async () => {
  for (const revision of ['main', 'pr/1', COMMIT]) {
    expect(await pull(MODEL, { revision })).toContain(COMMIT);
  }
  expect(filesBelow(path.join(repository(), 'refs'))).toEqual(['main', 'pr/1']);
});

test.each([
  ['https://huggingface.co/org/tiny', 'main'],
  ['https://huggingface.co/org/tiny/', 'main'],
  ['hf://org/tiny', 'main'],
  ['https://huggingface.co/org/tiny/tree/main', 'main'],
  ['https://hf.co/org/tiny/tree/pr%2F1', 'pr/1'],
])('takes the address %s', async (address, revision) => {
  expect(await pull(address)).toBe(path.join(repository(), 'snapshots', COMMIT));
  expect(filesBelow(path.join(repository(), 'refs'))).toEqual([revision]);
});

test.each([
  'https://huggingface.co/org/tiny/blob/main/config.json',
  'https://huggingface.co/org/tiny/blob/main',
  'https://huggingface.co/org/tiny/tree/main/folder',
  'https://huggingface.co/org/tiny/discussions',
  'https://huggingface.co/docs',
])('the address %s, which is no model, is refused', async (address) => {
  for (const call of [pull(address), LLM.create({ model: address })]) {
    await expect(call).rejects.toMatchObject({
      code: 'CONFIG_INVALID',
      message: expect.stringContaining(`model is ${address}, which is no model`) as unknown,
    });
  }
  expect(hub.requests).toEqual([]);
});

test('reports its progress up to all bytes', async () => {
  const reports: PullProgress[] = [];
  await pull(MODEL, { onProgress: (progress) => reports.push(progress) });
  const totalBytes = WANTED.reduce(
    (sum, name) => sum + FILES[name as keyof typeof FILES].length,
    0,
  );
  expect(reports.at(-1)).toEqual({ bytes: totalBytes, totalBytes, files: 4, totalFiles: 4 });
  const bytes = reports.map((report) => report.bytes);
  expect([...bytes].sort((a, b) => a - b)).toEqual(bytes);
});

test.each([1, 100_000, 304_000])(
  'an error of onProgress rejects the call, after %i bytes',
  async (after) => {
    const error = new TypeError('of the caller');
    const onProgress = ({ bytes }: PullProgress) => {
      if (bytes >= after) throw error;
    };
    await expect(pull(MODEL, { onProgress })).rejects.toBe(error);
  },
);

test('resumes where the connection was cut', async () => {
  hub.misbehaviour = { cut: { afterBytes: 100_000, times: 2 } };
  const folder = await pull(MODEL);
  expect(readFileSync(path.join(folder, 'model.safetensors')).equals(weights)).toBe(true);
  // The connection's end may overtake the last of 100,000 bytes.
  const starts = hub.ranges.map((range) => Number(/^bytes=(\d+)-$/.exec(range ?? '')?.[1] ?? 0));
  expect(starts).toHaveLength(3);
  expect(starts[0]).toBe(0);
  expect(starts[1]).toBeGreaterThan(0);
  expect(starts[2]).toBeGreaterThan(starts[1]);
});

test('resumes what an aborted download left, which rejects with the reason', async () => {
  hub.misbehaviour = { bytesPerMs: 500 };
  const controller = new AbortController();
  const call = pull(MODEL, {
    signal: controller.signal,
    // The other files, which do not trickle, have arrived.
    onProgress: ({ bytes, totalBytes }) => {
      if (bytes > totalBytes - 150_000) controller.abort(new Error('enough'));
    },
  });
  await expect(call).rejects.toThrow('enough');
  expect(existsSync(path.join(repository(), 'refs', 'main'))).toBe(false);
  hub.misbehaviour = {};
  const folder = await pull(MODEL);
  expect(readFileSync(path.join(folder, 'model.safetensors')).equals(weights)).toBe(true);
  expect(hub.ranges.at(-1)).toMatch(/^bytes=\d+-$/);
});

test('an abort ends a download of which nothing more comes, at once', async () => {
  hub.misbehaviour = { stallsAfterBytes: 100_000 };
  const controller = new AbortController();
  const call = pull(MODEL, {
    signal: controller.signal,
    onProgress: ({ bytes, totalBytes }) => {
      if (bytes >= totalBytes - 200_000) controller.abort(new Error('enough'));
    },
  });
  await expect(call).rejects.toThrow('enough');
});

test('an answer that ends early is asked for again from there, even if it was empty', async () => {
  hub.misbehaviour = { empty: { afterBytes: 100_000, times: 1 } };
  const first = pull(MODEL);
  await first;
  expect(hub.ranges).toEqual([undefined, 'bytes=100000-']);
  rmSync(home, { recursive: true });
  hub.misbehaviour = { empty: { afterBytes: 0, times: 2 } };
  const folder = await pull(MODEL);
  expect(readFileSync(path.join(folder, 'model.safetensors')).equals(weights)).toBe(true);
});

test('two calls of a process pull the same model, and download it once', async () => {
  hub.misbehaviour = { bytesPerMs: 1000 };
  const folders = await Promise.all([pull(MODEL), pull(MODEL), pull(MODEL)]);
  expect(new Set(folders).size).toBe(1);
  expect(filesBelow(folders[0])).toEqual(WANTED);
  expect(hub.ranges).toEqual([undefined]);
});

test.each([
  '../config.json',
  '/config.json',
  'a/../../config.json',
  '..',
  'additional_chat_templates/../../x.jinja',
])('a path of the hub that leaves the folder, %s, is not written', async (name) => {
  hub.misbehaviour = { renames: { 'additional_chat_templates/tools.jinja': name } };
  const folder = await pull(MODEL);
  expect(filesBelow(folder)).toEqual(WANTED.slice(1));
  expect(filesBelow(path.join(home, 'hub')).filter((file) => file.includes('jinja'))).toEqual([]);
});

test('starts again at a server that ignores ranges', async () => {
  hub.misbehaviour = { cut: { afterBytes: 100_000, times: 1 }, ignoresRanges: true };
  const folder = await pull(MODEL);
  expect(readFileSync(path.join(folder, 'model.safetensors')).equals(weights)).toBe(true);
});

test('a connection that is cut again and again is HUB_INTERRUPTED, with the bytes', async () => {
  hub.misbehaviour = { cut: { afterBytes: 0, times: 100 } };
  await expect(pull(MODEL)).rejects.toMatchObject({
    code: 'HUB_INTERRUPTED',
    file: 'model.safetensors',
    totalBytes: weights.length,
  });
});

test('other bytes than announced are HUB_FILE_CORRUPT, and are not kept', async () => {
  hub.misbehaviour = { isCorrupt: true };
  await expect(pull(MODEL)).rejects.toMatchObject({
    code: 'HUB_FILE_CORRUPT',
    file: 'model.safetensors',
  });
  const blobs = readdirSync(path.join(repository(), 'blobs'));
  expect(blobs.filter((name) => name.startsWith(sha256(weights)))).toEqual([]);
  hub.misbehaviour = {};
  await pull(MODEL);
});

test.each([
  ['RepoNotFound', 404, 'HUB_NOT_FOUND', /there is no such model/],
  ['RevisionNotFound', 404, 'HUB_NOT_FOUND', /there is no main/],
  ['RepoNotFound', 401, 'HUB_UNAUTHORIZED', /does not exist or is private.*set HF_TOKEN/],
  ['GatedRepo', 401, 'HUB_GATED', /ask for access on http.*\/org\/tiny/],
  ['GatedRepo', 403, 'HUB_GATED', /ask for access/],
])('%s with status %i is %s', async (code, status, expected, message) => {
  hub.misbehaviour = { refusals: [{ status, code }] };
  await expect(pull(MODEL)).rejects.toMatchObject({
    code: expected,
    model: MODEL,
    message: expect.stringMatching(message) as unknown,
  });
});

test('a refused token is said to be refused', async () => {
  process.env.HF_TOKEN = 'old';
  hub.misbehaviour = { refusals: [{ status: 401 }] };
  await expect(pull(MODEL)).rejects.toThrow(/refuses the token/);
  expect(hub.requests[0].authorization).toBe('Bearer old');
});

test('status 429 and 5xx are tried again, after Retry-After', async () => {
  const headers = { 'retry-after': '1' };
  hub.misbehaviour = { refusals: [{ status: 429, headers }, { status: 503 }] };
  const start = performance.now();
  await pull(MODEL);
  expect(performance.now() - start).toBeGreaterThan(1000);
});

test('a hub that cannot be reached is HUB_UNREACHABLE, unless the cache has the model', async () => {
  const folder = await pull(MODEL);
  hub.close();
  expect(await pull(MODEL)).toBe(folder);
  await expect(pull('org/other')).rejects.toMatchObject({ code: 'HUB_UNREACHABLE' });
});

test('HF_HUB_OFFLINE asks for nothing', async () => {
  process.env.HF_HUB_OFFLINE = '1';
  await expect(pull(MODEL)).rejects.toMatchObject({ code: 'HUB_NOT_FOUND' });
  delete process.env.HF_HUB_OFFLINE;
  const folder = await pull(MODEL);
  const numRequests = hub.requests.length;
  process.env.HF_HUB_OFFLINE = '1';
  expect(await pull(MODEL)).toBe(folder);
  expect(hub.requests).toHaveLength(numRequests);
});

test("the token is HF_TOKEN's, or the token file's, and goes to the hub alone", async () => {
  writeFileSync(path.join(home, 'token'), 'from-file\n');
  await pull(MODEL);
  for (const { url, authorization, host } of hub.requests) {
    const isHub = host === new URL(hub.url).host;
    expect(isHub).toBe(!url.startsWith('/blob/'));
    expect(authorization).toBe(isHub ? 'Bearer from-file' : undefined);
  }
});

test.each([
  ['HF_TOKEN', 'hf_one\nhf_two', /^HF_TOKEN is not a token/],
  ['HF_ENDPOINT', 'http://user:hf_one@127.0.0.1', /^HF_ENDPOINT must be/],
  ['HF_ENDPOINT', 'huggingface.co', /^HF_ENDPOINT must be/],
])('%s that cannot be one is refused, and not quoted', async (name, value, message) => {
  process.env[name] = value;
  await expect(pull(MODEL)).rejects.toMatchObject({
    code: 'CONFIG_INVALID',
    message: expect.stringMatching(message) as unknown,
  });
  await expect(pull(MODEL)).rejects.not.toThrow(/hf_one/);
  expect(hub.requests).toEqual([]);
});

test.each([
  [undefined, {}, /^model is undefined/],
  ['org/..', {}, /^model is 'org\/\.\.'/],
  ['org/tiny?x', {}, /^model is/],
  [MODEL, { revision: 5 }, /^revision is 5/],
  [
    'https://huggingface.co/org/tiny/tree/main',
    { revision: 'other' },
    /^revision is 'other', but the address has 'main'/,
  ],
  [MODEL, { revision: 'a//b' }, /^revision is/],
  [MODEL, { revision: '' }, /^revision is/],
])('pull(%j, %j) is refused', async (model, options, message) => {
  await expect(pull(model as never, options as never)).rejects.toMatchObject({
    code: 'CONFIG_INVALID',
    message: expect.stringMatching(message) as unknown,
  });
  expect(hub.requests).toEqual([]);
});

test('HF_HUB_CACHE is the folder of the cache', async () => {
  process.env.HF_HUB_CACHE = path.join(home, 'elsewhere');
  expect(await pull(MODEL)).toBe(
    path.join(repository(process.env.HF_HUB_CACHE), 'snapshots', COMMIT),
  );
});

test('a repository without safetensors is refused before anything is downloaded', async () => {
  hub.close();
  hub = await Hub.start({ 'config.json': FILES['config.json'] });
  process.env.HF_ENDPOINT = hub.url;
  await expect(pull(MODEL)).rejects.toThrow(/no safetensors files/);
  expect(hub.requests).toHaveLength(1);
});

test('a disk with too little space is DISK_FULL before anything is downloaded, with the figures', async () => {
  const statfs = jest.spyOn(fs, 'statfs').mockResolvedValue({ bavail: 10, bsize: 4096 } as never);
  try {
    const neededBytes = WANTED.reduce(
      (sum, name) => sum + FILES[name as keyof typeof FILES].length,
      0,
    );
    await expect(pull(MODEL)).rejects.toMatchObject({
      code: 'DISK_FULL',
      freeBytes: 40_960,
      neededBytes,
    });
    expect(hub.requests).toHaveLength(1);
  } finally {
    statfs.mockRestore();
  }
});

test('two processes pull the same model, and download it once', async () => {
  hub.misbehaviour = { bytesPerMs: 1000 };
  const cli = path.join(ROOT, 'dist', 'cli.js');
  const run = () =>
    promisify(execFile)(process.execPath, [cli, 'pull', MODEL], { env: { ...process.env } });
  const outcomes = await Promise.all([run(), run()]);
  for (const { stdout } of outcomes) {
    expect(stdout).toBe(`${path.join(repository(), 'snapshots', COMMIT)}\n`);
  }
  expect(hub.ranges).toEqual([undefined]);
});

test('a lock that a killed process left is taken once it is old', async () => {
  const folder = path.join(home, 'hub', '.locks', 'models--org--tiny');
  mkdirSync(folder, { recursive: true });
  const lock = path.join(folder, `${sha256(weights)}.uniproc`);
  writeFileSync(lock, '');
  utimesSync(lock, 0, 0);
  await pull(MODEL);
  expect(existsSync(lock)).toBe(false);
});

describe('LLM.create', () => {
  test('takes a name on the hub, and its server names the model by it', async () => {
    hub.close();
    const names = [
      'config.json',
      'generation_config.json',
      'model.safetensors',
      'tokenizer.json',
      'tokenizer_config.json',
    ];
    hub = await Hub.start(Object.fromEntries(names.map((name) => [name, stories(name)])));
    process.env.HF_ENDPOINT = hub.url;
    const reports: PullProgress[] = [];
    const onPull = (progress: PullProgress) => reports.push(progress);
    const llm = await LLM.create({ model: MODEL, revision: 'main', device: 'cpu', onPull });
    try {
      expect(reports.at(-1)?.files).toBe(names.length);
      const listed = await createHandler(llm)(new Request('http://localhost/v1/models'));
      expect(await listed.json()).toMatchObject({ data: [{ id: MODEL }] });
    } finally {
      await llm.shutdown();
    }
  });

  test.each([
    [{ model: 'org/tiny:Q4/K_M' }, /does not exist/],
    [{ model: path.join(ROOT, 'models', 'stories'), revision: 'main' }, /^revision is set/],
    [{ model: MODEL, revision: 5 }, /^revision is 5/],
    [{ model: MODEL, revision: '../main' }, /must be a branch, a tag or a commit/],
    [{ model: MODEL, onPull: 'yes' }, /^onPull is 'yes'/],
  ])('refuses %j', async (args, message) => {
    await expect(LLM.create(args as object)).rejects.toThrow(message);
    expect(hub.requests).toEqual([]);
  });
});

describe('GGUF files', () => {
  const file = Buffer.from(quantizedModel(everyType).file);
  const PARTS = [1, 2, 3].map((part) => `BF16/Tiny-BF16-0000${part}-of-00003.gguf`);
  const NAMES = ['Tiny-Q4_K_M.gguf', 'Tiny-UD-Q4_K_M.gguf', 'tiny-q8_0.gguf', 'mmproj-F16.gguf'];
  const REPOSITORY = ['README.md', 'config.json', ...NAMES, ...PARTS];

  async function serve(names: readonly string[]): Promise<void> {
    hub.close();
    hub = await Hub.start(
      Object.fromEntries(
        names.map((name) => [name, name.endsWith('Q4_K_M.gguf') ? file : Buffer.from(name)]),
      ),
    );
    process.env.HF_ENDPOINT = hub.url;
  }
  const snapshot = (name: string) => path.join(repository(), 'snapshots', COMMIT, name);

  test.each([
    ['Q8_0', 'tiny-q8_0.gguf'],
    ['q8_0', 'tiny-q8_0.gguf'],
    ['Q4_K_M', 'Tiny-Q4_K_M.gguf'],
    ['UD-Q4_K_M', 'Tiny-UD-Q4_K_M.gguf'],
    ['Tiny-Q4_K_M.gguf', 'Tiny-Q4_K_M.gguf'],
    ['BF16', PARTS[0], ...PARTS.slice(1)],
  ])('%s is %s alone', async (tag, first, ...others) => {
    await serve(REPOSITORY);
    expect(await pull(`${MODEL}:${tag}`)).toBe(snapshot(first));
    expect(filesBelow(snapshot(''))).toEqual([first, ...others].sort());
    process.env.HF_HUB_OFFLINE = '1';
    expect(await pull(`${MODEL}:${tag}`)).toBe(snapshot(first));
  });

  test.each([
    ['https://huggingface.co/org/tiny/blob/main/Tiny-Q4_K_M.gguf', 'Tiny-Q4_K_M.gguf'],
    [
      'https://huggingface.co/org/tiny/resolve/main/Tiny-Q4_K_M.gguf?download=true',
      'Tiny-Q4_K_M.gguf',
    ],
    ['https://hf.co/org/tiny/blob/pr%2F1/tiny-q8_0.gguf', 'tiny-q8_0.gguf'],
    [`https://huggingface.co/org/tiny/blob/${COMMIT}/${PARTS[1]}`, PARTS[0]],
  ])('a file is also named by its address: %s', async (address, file_) => {
    await serve(REPOSITORY);
    expect(await pull(address)).toBe(snapshot(file_));
    process.env.HF_HUB_OFFLINE = '1';
    expect(await pull(address)).toBe(snapshot(file_));
  });

  test('the address of a file that is not there is refused', async () => {
    await serve(REPOSITORY);
    const address = 'https://huggingface.co/org/tiny/blob/main/other.gguf';
    await expect(pull(address)).rejects.toMatchObject({
      code: 'HUB_NOT_FOUND',
      message: 'org/tiny: the file other.gguf is missing',
    });
  });

  test.each([
    ['K_M', /2 GGUF files have the name K_M \(Q4_K_M, UD-Q4_K_M\)/],
    ['Q5_K_M', /no GGUF file has the name Q5_K_M; there are Q4_K_M, UD-Q4_K_M, q8_0, BF16/],
    ['F16', /no GGUF file has the name F16/],
  ])('%s is refused', async (tag, message) => {
    await serve(REPOSITORY);
    const error: unknown = await pull(`${MODEL}:${tag}`).catch((reason: unknown) => reason);
    expect(error).toMatchObject({ code: 'HUB_NOT_FOUND' });
    expect((error as Error).message).toMatch(message);
  });

  test('a repository without safetensors needs a name if it has several', async () => {
    await serve(REPOSITORY);
    await expect(pull(MODEL)).rejects.toThrow(
      /has 4 models as GGUF files \(Q4_K_M, .*behind a colon/,
    );
    await serve(['README.md', 'only.gguf']);
    expect(await pull(MODEL)).toBe(snapshot('only.gguf'));
  });

  test('a part that is missing is named', async () => {
    await serve([PARTS[0], PARTS[2]]);
    await expect(pull(`${MODEL}:BF16`)).rejects.toThrow(`the file ${PARTS[1]} is missing`);
    expect(existsSync(snapshot(PARTS[0]))).toBe(false);
  });

  test('LLM.create takes one, with the tokenizer of a folder', async () => {
    await serve(['Tiny-Q4_K_M.gguf']);
    const tokenizer = path.join(ROOT, 'test', 'tokenizer', 'byte-bpe');
    const model = `${MODEL}:Q4_K_M`;
    const llm = await LLM.create({ model, tokenizer, device: 'cpu', kvCacheMemoryBytes: 2 ** 22 });
    try {
      const { encode } = JSON.parse(
        readFileSync(path.join(tokenizer, 'expected.json'), 'utf8'),
      ) as { encode: { text: string; withSpecial: number[] }[] };
      const { text, withSpecial } = encode[1];
      expect(await llm.tokenizer?.encode(text)).toEqual(withSpecial);
      const listed = await createHandler(llm)(new Request('http://localhost/v1/models'));
      expect(await listed.json()).toMatchObject({ data: [{ id: model }] });
    } finally {
      await llm.shutdown();
    }
  });
});

test.each([
  [[], /takes one model, not 0/],
  [['models'], /is not a name on the hub/],
  [['--force', MODEL], /Unknown option/],
])('uniproc pull %j is refused', async (args, message) => {
  const cli = path.join(ROOT, 'dist', 'cli.js');
  const call = promisify(execFile)(process.execPath, [cli, 'pull', ...args]);
  await expect(call).rejects.toMatchObject({
    code: 2,
    stderr: expect.stringMatching(message) as unknown,
  });
});
