/** `uniproc chat` and `uniproc inspect`. */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFile } from 'node:fs/promises';
import path from 'node:path';
import { PassThrough } from 'node:stream';
import { promisify } from 'node:util';
import { LLM } from '../lib';
import { chat } from '../lib/chatCommand';
import { inspectModel } from '../lib/inspectCommand';
import { until } from './executor/support';
import { folderWith } from './support/folder';
import { ggufOf } from './support/ggufModel';
import { tokenizerMetadata } from './support/ggufTokenizer';
import { stories } from './support/stories';

const run = promisify(execFile);
const ROOT = path.join(__dirname, '..');
const CLI = path.join(ROOT, 'dist', 'cli.js');
const STORIES = path.join(ROOT, 'models', 'stories');
const golden = (name: string) => path.join(__dirname, 'golden', 'checkpoints', name);

/** What a terminal does not show. */
// eslint-disable-next-line no-control-regex -- escape sequences of a terminal
const ESCAPES = /\x1b\[[\d;]*[A-Za-z]/g;

describe('uniproc chat', () => {
  let llm: LLM;
  beforeAll(async () => {
    llm = await LLM.create({ device: 'cpu', dtype: 'float32' });
  });
  afterAll(() => llm.shutdown());

  /** A conversation in a terminal; `calls` are the messages of each call. */
  function open() {
    const input = new PassThrough();
    const output = new PassThrough();
    const calls: string[][] = [];
    let text = '';
    output.on('data', (data) => (text += String(data).replace(ESCAPES, '')));
    const chatStream: LLM['chatStream'] = (messages, _, options) => {
      calls.push(messages.map(({ content }) => content as string));
      return llm.chatStream(messages, { temperature: 0, ignoreEos: true, maxTokens: 100 }, options);
    };
    const talker = { engine: llm.engine, chatStream };
    const done = chat(talker, { input, output, isTerminal: true });
    const says = async (what: string) => {
      await until(() => text.includes(what));
      text = text.slice(text.indexOf(what) + what.length);
    };
    return { input, output, calls, says, done };
  }

  test('answers in turn, forgets on request, and leaves', async () => {
    const { input, calls, says, done } = open();
    await says('stories: /reset forgets the conversation');
    input.write('Once upon a time\n');
    await until(() => calls.length === 1);
    await says('\n> ');
    input.write('And then?\n');
    await until(() => calls.length === 2);
    expect(calls[1]).toEqual(['Once upon a time', expect.stringMatching(/\w+ \w+/), 'And then?']);
    await says('\n> ');
    input.write('/reset\n');
    await says('the conversation is empty');
    input.write('One day\n');
    await until(() => calls.length === 3);
    expect(calls[2]).toEqual(['One day']);
    input.write('/exit\n');
    await done;
  });

  test('ends an answer, but not the program, by Ctrl-C', async () => {
    const { input, calls, says, done } = open();
    await says('> ');
    input.write('Once upon a time\n');
    await until(() => calls.length === 1);
    input.write('\x03');
    await says('\n> ');
    expect(llm.engine.numUnfinishedRequests).toBe(0);
    expect(llm.stats().numFinishedReqs.abort).toBe(1);
    input.write('\x03'); // nothing is generated: it explains
    await says('/exit leaves');
    input.write('And then?\n');
    await until(() => calls.length === 2);
    expect(calls[1]).toHaveLength(3);
    await says('\n> ');
    input.end();
    await done;
  });

  test('leaves after the answer by Ctrl-D, without reading on', async () => {
    const { input, calls, done } = open();
    input.write('Once upon a time\n');
    await until(() => calls.length === 1);
    input.write('\x04');
    await done;
    expect(input.isPaused()).toBe(true);
  });

  test.each([
    ['EPIPE', false],
    ['ENOSPC', true],
  ])('ends the answer and itself when the output fails: %s', async (code, rejects) => {
    const { input, output, calls, done } = open();
    input.write('Once upon a time\nAnd then?\n');
    await until(() => calls.length === 1);
    const error = Object.assign(new Error(`write ${code}`), { code });
    output.destroy(error);
    await (rejects ? expect(done).rejects.toBe(error) : done);
    expect(calls).toHaveLength(1);
    expect(llm.engine.numUnfinishedRequests).toBe(0);
  });

  test('writes no control characters of an answer', async () => {
    const output = new PassThrough();
    const input = new PassThrough();
    const chatStream = async function* () {
      await Promise.resolve();
      yield { text: 'a\x1b]0;title\x07b\x9bc\r\tд\n' };
    } as unknown as LLM['chatStream'];
    const done = chat({ engine: llm.engine, chatStream }, { input, output, isTerminal: false });
    input.end('One day\n');
    await done;
    expect(String(output.read())).toBe('a]0;titlebc\tд\n\n');
  });

  test('says why a message is refused, and goes on without it', async () => {
    const { input, calls, says, done } = open();
    input.write(`${'a word '.repeat(1000)}\n`);
    await says('maxModelLen');
    input.write('One day\n');
    await until(() => calls.length === 2);
    expect(calls[1]).toEqual(['One day']);
    input.end();
    await done;
  });

  test('answers the lines of a pipe with the answers alone', async () => {
    const child = spawn(process.execPath, [CLI, 'chat', '--device', 'cpu', '--dtype', 'float32']);
    let text = '';
    child.stdout.on('data', (data) => (text += String(data)));
    child.stdin.end(`${(stories.chat.messages as { content: string }[])[0].content}\n`);
    expect(await once(child, 'exit')).toEqual([0, null]);
    expect(text.length).toBeGreaterThan(10);
    expect(text).not.toContain('> ');
    expect(text.endsWith('\n')).toBe(true);
  });
});

describe('uniproc inspect', () => {
  const linesOf = async (args: string[]): Promise<Record<string, string>> => {
    const text = await inspectModel([...args, '--device', 'cpu']);
    return Object.fromEntries(
      text
        .trimEnd()
        .split('\n')
        .map((line) => [line.slice(0, 14).trim(), line.slice(15)]),
    );
  };

  test('prints what a model is and needs', async () => {
    const { stdout } = await run(process.execPath, [CLI, 'inspect', STORIES, '--dtype', 'float32']);
    expect(stdout).toBe(await inspectModel([STORIES, '--dtype', 'float32']));
    const lines = await linesOf([STORIES, '--dtype', 'float32', '--max-model-len', '128']);
    expect(lines.architecture).toBe('LlamaForCausalLM (llama)');
    expect(lines.task).toBe('generates');
    const llm = await LLM.create({ device: 'cpu', dtype: 'float32', maxModelLen: 128 });
    const { weightBytes, kvCacheBytes, numKvTokens } = llm.startup;
    await llm.shutdown();
    expect(lines.weights).toContain(
      `${((weightBytes ?? 0) / 2 ** 20).toFixed(1)} MiB in memory: float32`,
    );
    const perToken = kvCacheBytes / numKvTokens;
    expect(lines['KV cache']).toContain(`${(perToken / 1024).toFixed(1)} KiB for each token`);
    expect(lines['KV cache']).toContain('for 128 tokens');
    expect(lines.tokenizer).toMatch(/^BPE of [\d,]+, \d+ added$/);
    expect(lines['chat template']).toMatch(/^default \(/);
  });

  test.each([
    ['qwen3-fp8', 'quantization', 'fp8'],
    ['qwen3-fp8', 'weights', 'float8_e4m3 '],
    ['qwen3-moe', 'experts', 'for each token'],
    ['mistral', 'windows', ''],
    ['llama2', 'tokenizer', 'none'],
  ])('prints of %s its %s', async (name, label, text) => {
    expect((await linesOf([golden(name)]))[label]).toContain(text);
  });

  test('prints the memory of the layers that have keys and values of their own', async () => {
    const lines = await linesOf([golden('gemma4-e'), '--dtype', 'bfloat16', '--block-size', '16']);
    expect(lines.layers).toBe('5 of 48, 4 heads and 1 of keys and values, of 16');
    // Of 5 layers 3 have: two of one head of 16 and one of 32; keys and values of 2 bytes each.
    expect(lines['KV cache']).toMatch(/^256 bytes for each token/);
  });

  test('prints of a GGUF file what its metadata say', async () => {
    const file = path.join(await folderWith({}), 'small.gguf');
    const whole = tokenizerMetadata(path.join(__dirname, 'tokenizer', 'byte-bpe'), 'llama-bpe');
    // The small model's vocabulary ends below the ids of named tokens.
    const tokenizer = Object.fromEntries(
      Object.entries(whole).filter(([key]) => !key.endsWith('_token_id')),
    );
    await writeFile(file, ggufOf(golden('qwen3'), 'qwen3', tokenizer));
    const lines = await linesOf([file]);
    expect(lines).toMatchObject({ model: file, quantization: 'gguf' });
    expect(lines.files).toMatch(/^\d+ tensors in 1: /);
    expect(lines.tokenizer).toMatch(/^BPE of \d+, \d+ added$/);
    expect(lines['chat template']).toContain('(small.gguf)');
  });

  test.each([
    [[], /takes one model, not 0/],
    [['/nowhere'], /\/nowhere/],
    [[STORIES, '--max-model-length', '3'], /did you mean --max-model-len/],
  ])('refuses %j', async (args, message) => {
    await expect(inspectModel(args)).rejects.toThrow(message);
  });
});
