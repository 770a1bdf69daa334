/** `uniproc serve`: its arguments, the commands and the program of docs/server.md, and its end by a signal. */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';
import { engineArgsSchema } from '../../lib/config/engineArgs';
import { parseServeArguments, USAGE } from '../../lib/server/serveArguments';
import { Hub, MODEL } from '../support/hub';

const run = promisify(execFile);
const ROOT = path.resolve(__dirname, '..', '..');
const CLI = path.join(ROOT, 'dist', 'cli.js');
const page = readFileSync(path.join(ROOT, 'docs', 'server.md'), 'utf8');
const blocks = (language: string) =>
  [...page.matchAll(new RegExp('```' + language + '\\n(.*?)```', 'gs'))].map(([, text]) => text);
const stories = (name: string) => readFileSync(path.join(ROOT, 'models', 'stories', name));

interface Serving {
  child: ChildProcess;
  /** The line that says what is served where. */
  line: string;
  url: string;
  exited: Promise<unknown[]>;
}

const running = new Set<ChildProcess>();
afterAll(() => {
  for (const child of running) child.kill('SIGKILL');
});

async function serve(args: readonly string[], env: Record<string, string> = {}): Promise<Serving> {
  const child = spawn(process.execPath, [CLI, 'serve', ...args, '--device', 'cpu'], {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  running.add(child);
  const exited = once(child, 'exit');
  void exited.then(() => running.delete(child));
  let text = '';
  for await (const data of child.stdout) {
    text += String(data);
    if (text.includes('\n')) break;
  }
  const [line] = text.split('\n');
  return { child, line, url: /http:\S+/.exec(line)?.[0] ?? '', exited };
}

async function stop({ child, exited }: Serving): Promise<void> {
  child.kill('SIGTERM');
  expect(await exited).toEqual([0, null]);
}

describe('docs/server.md', () => {
  const [first, second] = blocks('sh').map((block) => block.trim().split('\n'));

  test('serves a model of the hub by its command', async () => {
    const names = ['config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json'];
    const hub = await Hub.start(Object.fromEntries(names.map((name) => [name, stories(name)])));
    const home = mkdtempSync(path.join(tmpdir(), 'uniproc-serve-'));
    try {
      expect(first).toEqual(['npx uniproc serve Qwen/Qwen3-8B --max-model-len 8192']);
      const args = first[0]
        .replace('npx uniproc serve ', '')
        .replace('Qwen/Qwen3-8B', MODEL)
        .replace('8192', '512')
        .split(' ');
      const env = { HF_ENDPOINT: hub.url, HF_HOME: home };
      const serving = await serve([...args, '--port', '0'], env);
      expect(serving.line).toMatch(/^serving org\/tiny on http:\/\/127\.0\.0\.1:\d+$/);
      const models = await fetch(`${serving.url}/v1/models`);
      expect(await models.json()).toMatchObject({ data: [{ id: MODEL, max_model_len: 512 }] });
      await stop(serving);
    } finally {
      hub.close();
      rmSync(home, { recursive: true });
    }
  });

  test('answers its curl commands', async () => {
    const [command, ...curls] = second;
    expect(command).toBe('npx uniproc serve --port 8000');
    const serving = await serve(['--port', '0']);
    const answers: string[] = [];
    for (const curl of curls) {
      const own = curl.replace('http://127.0.0.1:8000', serving.url).replace('curl', 'curl -sS');
      answers.push((await run('sh', ['-c', own])).stdout);
    }
    const [chat, stream, models, metrics] = answers;
    expect(JSON.parse(chat)).toMatchObject({ object: 'chat.completion' });
    expect(stream.endsWith('data: [DONE]\n\n')).toBe(true);
    expect(JSON.parse(models)).toMatchObject({ data: [{ id: 'stories' }] });
    for (const [, name] of page.matchAll(/`(vllm:\w+)`/g)) expect(metrics).toContain(name);
    await stop(serving);
  });

  test('its program runs as written', async () => {
    const [program] = blocks('js');
    const code = program
      .replace("require('uniproc')", `require(${JSON.stringify(ROOT)})`)
      .replace('path/to/checkpoint', path.join(ROOT, 'models', 'stories'));
    const check = `
      require('node:assert').strictEqual(response.status, 200);
      const { port } = server.address();
      const listed = await fetch(\`http://localhost:\${port}/v1/models\`, {
        headers: { authorization: 'Bearer secret' },
      });
      console.log(listed.status);
      server.close();
      server.closeAllConnections();
      await llm.shutdown();`;
    const { stdout } = await run(process.execPath, ['-e', `(async () => {${code}${check}})()`]);
    expect(stdout).toBe('200\n');
  });

  test('has every option of the command, and its defaults', () => {
    for (const [, option] of USAGE.matchAll(/^ {2}(--[a-z-]+)/gm)) {
      if (option !== '--help') expect(page).toContain(`\`${option}\``);
    }
    const parsed = parseServeArguments([], {});
    expect(parsed).toMatchObject({
      handler: { apiKeys: [], allowedOrigins: [], maxBodyBytes: 4194304 },
      server: {
        host: '127.0.0.1',
        port: 8000,
        maxConnections: 4096,
        headerTimeoutMs: 30_000,
        idleTimeoutMs: 65_000,
        writeTimeoutMs: 60_000,
      },
      drainTimeoutMs: 30_000,
    });
    expect(parsed?.handler).not.toHaveProperty('requestTimeoutMs');
  });
});

describe('arguments', () => {
  test('have every option of the engine that is a number, a text or a flag', () => {
    const parsed = parseServeArguments([
      ...['--max-model-len', '512', '--dtype', 'float32', '--memory-utilization', '0.5'],
      ...['--enforce-eager', '--no-enable-prefix-caching', 'models/stories'],
    ]);
    expect(parsed?.models).toEqual(['models/stories']);
    expect(parsed?.engine).toEqual({
      maxModelLen: 512,
      dtype: 'float32',
      memoryUtilization: 0.5,
      enforceEager: true,
      enablePrefixCaching: false,
    });
    for (const name of Object.keys(engineArgsSchema.shape)) {
      if (
        /^(limits|workerCls|workerExtensionCls|distributedExecutorBackend|eosTokenIds|model)$/.test(
          name,
        )
      )
        continue;
      const flag = `--${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
      expect(
        parseServeArguments([`${flag}=1`.replace(/=1$/, isFlag(name) ? '' : '=1')])?.engine,
      ).toEqual({
        [name]: isFlag(name) ? true : (expect.anything() as unknown),
      });
    }
  });

  const isFlag = (name: string) =>
    engineArgsSchema.shape[name as 'enforceEager'].description === 'true or false';

  test('take keys and names several times, and the key of the environment', () => {
    const parsed = parseServeArguments([
      ...[
        '--api-key',
        'a',
        '--api-key',
        'b',
        '--served-model-name',
        'x',
        '--served-model-name',
        'y',
      ],
    ]);
    expect(parsed?.handler.apiKeys).toEqual(['a', 'b']);
    expect(parsed?.names).toEqual([['x', 'y']]);
    const fromEnvironment = parseServeArguments([], { UNIPROC_API_KEY: 'c' });
    expect(fromEnvironment?.handler.apiKeys).toEqual(['c']);
    const two = parseServeArguments([
      'm',
      'n',
      '--served-model-name',
      'x',
      '--served-model-name',
      'y',
    ]);
    expect(two?.names).toEqual([['x'], ['y']]);
  });

  test.each([
    [['--port', '70000'], '--port is 70000; it must be an integer from 0 to 65535'],
    [['--port', '1.5'], '--port is 1.5; it must be an integer from 0 to 65535'],
    [['--drain-timeout', 'soon'], /^--drain-timeout is soon; it must be a number from/],
    [
      ['--max-model-length', '5'],
      'unknown option --max-model-length; did you mean --max-model-len?',
    ],
    [['m', 'n', '--served-model-name', 'x'], /given 1 times for 2 models/],
    [['--host'], /--host <value>' argument missing/],
  ])('%j are refused', (args, message) => {
    expect(() => parseServeArguments(args)).toThrow(message);
  });
});

test('several models, each under its name, the first for a request without one', async () => {
  const folder = path.join(ROOT, 'models', 'stories');
  const names = ['--served-model-name', 'small', '--served-model-name', 'large'];
  const cache = ['--kv-cache-memory-bytes', String(2 ** 24)];
  const serving = await serve([folder, folder, ...names, ...cache, '--port', '0']);
  expect(serving.line).toMatch(/^serving small, large on /);
  for (const [model, answered] of [
    ['large', 'large'],
    ['small', 'small'],
    [undefined, 'small'],
  ]) {
    const response = await fetch(`${serving.url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ model, prompt: 'Once', max_tokens: 1 }),
    });
    expect(await response.json()).toMatchObject({ model: answered, usage: { total_tokens: 3 } });
  }
  await stop(serving);
});

test('two models of the same name are refused, and an address in use', async () => {
  const folder = path.join(ROOT, 'models', 'stories');
  const two = run(process.execPath, [CLI, 'serve', '--device', 'cpu', folder, folder]);
  await expect(two).rejects.toMatchObject({
    code: 2,
    stderr: expect.stringContaining('two models have the name stories') as unknown,
  });
  const serving = await serve(['--port', '0']);
  const { port } = new URL(serving.url);
  const again = run(process.execPath, [CLI, 'serve', '--device', 'cpu', '--port', port]);
  await expect(again).rejects.toMatchObject({
    code: 2,
    stderr: expect.stringContaining('EADDRINUSE') as unknown,
  });
  await stop(serving);
});

test('SIGTERM lets a running stream end, then the process exits with 0', async () => {
  const serving = await serve(['--port', '0']);
  const response = await fetch(`${serving.url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ prompt: 'Once', max_tokens: 900, ignore_eos: true, stream: true }),
  });
  serving.child.kill('SIGTERM');
  const text = await response.text();
  expect(text).toContain('"finish_reason":"length"');
  expect(text.endsWith('data: [DONE]\n\n')).toBe(true);
  expect(await serving.exited).toEqual([0, null]);
});

test('--drain-timeout cuts what still runs, and the process exits with 0', async () => {
  const serving = await serve(['--port', '0', '--drain-timeout', '0.05']);
  const response = await fetch(`${serving.url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({
      prompt: 'Once',
      n: 32,
      max_tokens: 900,
      ignore_eos: true,
      stream: true,
    }),
  });
  serving.child.kill('SIGTERM');
  expect(await response.text()).toContain('the server is shutting down');
  expect(await serving.exited).toEqual([0, null]);
});
