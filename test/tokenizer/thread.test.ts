import { execFile } from 'node:child_process';
import path from 'node:path';
import { promisify } from 'node:util';
import { AddonUnavailableError, InvalidRequestError, ShutdownError } from '../../lib/errors';
import { Tokenizer } from '../../lib/tokenizer/tokenizer';
import { byteTokenizer } from '../engine/byteTokenizer';

const FOLDER = path.join(__dirname, 'byte-bpe');
const LOADER = path.join(__dirname, '..', 'executor', 'requireTypescript.js');

/** Runs `script` in a separate process until it exits by itself; returns its output. */
async function processOf(script: string, env: NodeJS.ProcessEnv = {}): Promise<string> {
  const args = ['--require', LOADER, '-e', `const { Tokenizer } = require('uniproc');${script}`];
  const { stdout } = await promisify(execFile)(process.execPath, args, {
    env: { ...process.env, ...env },
    cwd: path.join(__dirname, '..', '..'),
  });
  return stdout.trim();
}

describe("a tokenizer's thread", () => {
  it('resolves concurrent calls with their own results', async () => {
    const tokenizer = await Tokenizer.load(FOLDER);
    const texts = Array.from({ length: 50 }, (_, i) => `tide ${i} `.repeat((i * 7) % 50));
    const all = await Promise.all(texts.map((text) => tokenizer.encode(text)));
    const decoded = await Promise.all(all.map((ids) => tokenizer.decode(ids)));
    expect(decoded).toEqual(texts);
    await tokenizer.close();
  });

  it('ends on close, which is idempotent', async () => {
    const tokenizer = await Tokenizer.load(FOLDER);
    await tokenizer.close();
    await tokenizer.close();
    await expect(tokenizer.encode('a')).rejects.toThrow(ShutdownError);
    await expect(tokenizer.decode([1])).rejects.toThrow(ShutdownError);
  });

  it('supports synchronous methods after close', async () => {
    const tokenizer = await Tokenizer.load(FOLDER);
    const [id] = await tokenizer.encode('tide', { addSpecialTokens: false });
    await tokenizer.close();
    expect(tokenizer.idToToken(id)).not.toBe('');
  });

  it('rejects pending calls on close', async () => {
    const tokenizer = await Tokenizer.load(FOLDER);
    const waiting = Promise.allSettled([tokenizer.encode('a'.repeat(1e6)), tokenizer.encode('b')]);
    await tokenizer.close();
    for (const result of await waiting) {
      expect(result).toMatchObject({ status: 'rejected', reason: { code: 'SHUT_DOWN' } });
    }
  });

  it.each(['', 'await tokenizer.encode("a");', 'void tokenizer.decode([1]).catch(() => {});'])(
    'does not keep the process alive: %s',
    async (calls) => {
      const script = `(async () => {
        const tokenizer = await Tokenizer.load(${JSON.stringify(FOLDER)}); ${calls}
        console.log('done');
      })();`;
      expect(await processOf(script)).toBe('done');
    },
  );

  it('keeps the process alive while a call is pending', async () => {
    const script = `Tokenizer.load(${JSON.stringify(FOLDER)})
      .then((tokenizer) => tokenizer.encode('a'.repeat(1e5)))
      .then((ids) => console.log(ids.length));`;
    expect(Number(await processOf(script))).toBeGreaterThan(0);
  });

  it('ends after its tokenizer is garbage-collected and its calls have settled', async () => {
    const script = `
      const { readdirSync } = require('node:fs');
      const { setFlagsFromString } = require('node:v8');
      setFlagsFromString('--expose-gc');
      const gc = require('node:vm').runInNewContext('gc');
      const numThreads = () => readdirSync('/proc/self/task').length;
      (async () => {
        const decoded = await (async () => {
          const tokenizer = await Tokenizer.load(${JSON.stringify(FOLDER)});
          const ids = await tokenizer.encode('the tide '.repeat(1e4));
          return { text: tokenizer.decode(ids) };
        })();
        const before = numThreads();
        await new Promise((turn) => setImmediate(turn));
        gc();
        const text = await decoded.text;
        while (numThreads() === before) {
          gc();
          await new Promise((turn) => setTimeout(turn, 10));
        }
        console.log(text.length);
      })();`;
    expect(await processOf(script)).toBe('90000');
  });

  it('does not disturb a process that exits during a call', async () => {
    const script = `Tokenizer.load(${JSON.stringify(FOLDER)}).then((tokenizer) => {
      tokenizer.encode('a'.repeat(1e6));
      setImmediate(() => { console.log('exits'); process.exit(0); });
    });`;
    expect(await processOf(script)).toBe('exits');
  });

  it('rejects with instructions if the library cannot be loaded', async () => {
    const script = `Tokenizer.load(${JSON.stringify(FOLDER)}).catch((error) =>
      console.log(JSON.stringify({ name: error.name, message: error.message })));`;
    // The library's variable for another binary.
    const env = { NAPI_RS_NATIVE_LIBRARY_PATH: path.join(__dirname, 'missing.node') };
    const error = JSON.parse(await processOf(script, env)) as Error;
    expect(error.name).toBe(AddonUnavailableError.name);
    expect(error.message).toMatch(/package tokenizers.*cannot be loaded on.*skipTokenizerInit/);
  });
});

describe('a long text', () => {
  let tokenizer: Tokenizer;

  beforeAll(async () => {
    tokenizer = await byteTokenizer();
  });

  afterAll(() => tokenizer.close());

  it('of 400,000 tokens is encoded and decoded', async () => {
    const text = 'abcdefgh'.repeat(50_000);
    const ids = await tokenizer.encode(text);
    expect(ids).toHaveLength(400_000);
    expect(await tokenizer.decode(ids)).toBe(text);
    expect((await tokenizer.encodeBatch([text]))[0]).toEqual(ids);
  });

  it('is encoded without blocking the event loop', async () => {
    let turns = 0;
    let encoding = true;
    const turn = () => {
      turns++;
      if (encoding) setImmediate(turn);
    };
    turn();
    await tokenizer.encode('The tide came in. '.repeat(50_000));
    encoding = false;
    expect(turns).toBeGreaterThan(50);
  });
});

describe('an invalid argument', () => {
  let tokenizer: Tokenizer;

  beforeAll(async () => {
    tokenizer = await byteTokenizer();
  });

  afterAll(() => tokenizer.close());

  it.each([[5], [null], [undefined], [['a']]])('is rejected: text %p', async (text: unknown) => {
    await expect(tokenizer.encode(text as string)).rejects.toThrow(InvalidRequestError);
    await expect(tokenizer.encodeBatch(['a', text as string])).rejects.toThrow(/^texts\[1\] is/);
  });

  it.each([[[0.5]], [[NaN]], [['1']], [[1n]]])('is rejected: token ids %p', async (ids) => {
    const refused = tokenizer.decode(ids as number[]);
    await expect(refused).rejects.toThrow(InvalidRequestError);
    await expect(refused).rejects.toThrow(/^token 0 is/);
  });

  it.each([[-1], [2 ** 31], [2 ** 32], [-(2 ** 32)], [257]])(
    'is ignored: an unknown token id, %p',
    async (id) => {
      expect(await tokenizer.decode([id, 97])).toBe('a');
      const decoder = tokenizer.incrementalDecoder();
      expect(decoder.append([id, 97])).toBe('a');
    },
  );
});
