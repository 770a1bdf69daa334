/** NODE_DEBUG=uniproc, in processes of their own. */
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import ts from 'typescript';
import type { StartupRecord } from '../lib/engine/startupRecord';
import { ROOT, runNode } from './executor/support';
import { allEnded } from './support/ranks';
import { startLLMs } from './support/tensorParallel';

/** The lines that the log wrote, without the process's number. */
function logged(stderr: string): string[] {
  return stderr
    .split('\n')
    .filter((line) => line.startsWith('UNIPROC '))
    .map((line) => line.replace(/^UNIPROC \d+: /, ''));
}

/** Expects a line that begins with each text, in this order, whatever stands between them. */
function expectInOrder(lines: readonly string[], beginnings: readonly string[]): void {
  let from = 0;
  for (const beginning of beginnings) {
    const at = lines.findIndex((line, i) => i >= from && line.startsWith(beginning));
    if (at < 0)
      throw new Error(`no line "${beginning}" from line ${from} on:\n${lines.join('\n')}`);
    from = at + 1;
  }
}

describe('the log of one process', () => {
  const SECRET = 'the-word-that-no-log-may-hold';
  const program = `
    const { LLM, SamplingParams } = require('uniproc');
    (async () => {
      const refused = (promise) => promise.then(
        () => { throw new Error('it was not refused'); },
        (error) => error.code,
      );
      const secret = ${JSON.stringify(SECRET)};
      const llm = await LLM.create({ device: 'cpu', maxQueuedRequests: 1, maxNumSeqs: 1 });
      await llm.generate(secret, new SamplingParams({ maxTokens: 2, stop: [secret] }));
      const codes = [
        await refused(llm.generate([{ [secret]: secret }])),
        await refused(llm.generate(secret, { maxTokens: secret })),
        await refused(llm.generate([secret, secret, secret])),
        await refused(llm.chat([{ role: secret, text: secret }])),
        await refused(llm.stream({ [secret]: secret }).next()),
        await refused(llm.generate(secret, undefined, { cacheSalt: [secret] })),
      ];
      await llm.engine.executor.sleep(1);
      codes.push(await refused(llm.generate(secret)));
      await llm.engine.executor.wakeUp(['weights']);
      await llm.engine.executor.wakeUp();
      const pending = refused(llm.generate(secret, new SamplingParams({ maxTokens: 500, ignoreEos: true })));
      await llm.shutdown();
      codes.push(await pending);
      console.log(codes.join(' '));
    })();`;
  let on: Awaited<ReturnType<typeof runNode>>;
  let off: Awaited<ReturnType<typeof runNode>>;

  beforeAll(async () => {
    on = await runNode(program, { NODE_DEBUG: 'uniproc' });
    off = await runNode(program, { NODE_DEBUG: '' });
  });

  test('tells the start, refused calls, sleep and wake-up, and the shutdown, in their order', () => {
    expect(on.stdout).toBe(
      'REQUEST_INVALID REQUEST_INVALID QUEUE_FULL REQUEST_INVALID REQUEST_INVALID REQUEST_INVALID ' +
        'INVALID_STATE SHUT_DOWN\n',
    );
    expectInOrder(logged(on.stderr), [
      `start: model ${path.join(ROOT, 'models', 'stories')}, device cpu, dtype bfloat16`,
      'start: device cpu is open: ',
      'start: UniProcExecutor has loaded the model',
      'start: [',
      'start: the KV cache is allocated',
      'start: the model is warm',
      'start: the KV cache holds ',
      'started: {',
      'a call is refused: REQUEST_INVALID',
      'a call is refused: REQUEST_INVALID',
      'a call is refused: QUEUE_FULL',
      'the call of 1 requests from 1 on ends: REQUEST_INVALID',
      'a stream is refused: REQUEST_INVALID',
      'a call is refused: REQUEST_INVALID',
      'sleep: weights and kv_cache are asleep, level 1',
      'a call is refused: INVALID_STATE',
      'wakeUp: ["weights"] are awake',
      'wakeUp: ["kv_cache"] are awake',
      'shutdown: 1 requests are unfinished',
      'the engine stops: SHUT_DOWN',
      'the call of 1 requests from ',
      'shutdown: done',
    ]);
    // The tokenizer loads beside the weights.
    expectInOrder(logged(on.stderr), ['start: the tokenizer is loaded', 'started: {']);
  });

  test('tells what the KV cache holds', () => {
    const lines = logged(on.stderr);
    const started = lines.find((line) => line.startsWith('started: {')) ?? '';
    const record = JSON.parse(started.slice('started: '.length)) as StartupRecord;
    // One request of the 1,024 positions of the model: 64 blocks of 16 tokens.
    expect(record).toMatchObject({
      numKvTokens: 1024,
      maxModelLen: 1024,
      maxFullLengthRequests: 1,
    });
    expect(lines).toContain(
      'start: the KV cache holds 1024 tokens, 1 requests of 1024 tokens at once',
    );
  });

  test('tells each refused call once', () => {
    const refused = logged(on.stderr).filter((line) => line.includes('refused'));
    const ended = logged(on.stderr).filter((line) => line.startsWith('the call of'));
    expect([refused.length, ended.length]).toEqual([6, 2]);
  });

  test('has nothing of what callers wrote', () => {
    expect(on.stderr).not.toContain(SECRET);
  });

  test('is not there without NODE_DEBUG', () => {
    expect(off).toEqual({ code: 0, stdout: on.stdout, stderr: '' });
  });
});

test('a start that fails is told with its code', async () => {
  const program = `require('uniproc').LLM.create({ model: '/nowhere' }).catch(() => {});`;
  const { stderr } = await runNode(program, { NODE_DEBUG: 'uniproc' });
  expect(logged(stderr)).toEqual(['start: failed: CHECKPOINT_INVALID']);
});

test('ranks tell who joins and who leaves', async () => {
  const program = `
    const llm = await createLLM();
    await llm.generate('Once', new SamplingParams({ maxTokens: 2 }));
    if (rank === 1) return llm.shutdown();
    await failed(llm);
    await llm.shutdown();`;
  const ranks = await startLLMs(program, 2, { env: { NODE_DEBUG: 'uniproc' } });
  // Rank 0 goes on until the test ends, which kills it.
  await allEnded([ranks[1]]);
  const [first, second] = ranks;
  expectInOrder(logged(second.stderr), [
    'rank 1 of 2: joins at 127.0.0.1, port ',
    'rank 1 of 2: all have joined',
    'started: {',
    'rank 1 of 2: leaves',
  ]);
  const heard = 'rank 0 of 2: rank 1 has left';
  while (!first.stderr.includes(heard)) {
    await new Promise<void>((resolve) => first.child.stderr?.once('data', () => resolve()));
  }
  expectInOrder(logged(first.stderr), [
    'rank 0 of 2: joins at 127.0.0.1, port ',
    'rank 0 of 2: all have joined',
    'started: {',
    heard,
  ]);
});

test('nothing is formatted while the log is off', async () => {
  const program = `
    const { log } = require('./lib/log.ts');
    const value = new Proxy({}, { get() { throw new Error('it was read'); } });
    for (let i = 0; i < 3; i++) log('%s %j %o', value, value, value);`;
  expect(await runNode(program, { NODE_DEBUG: 'http' })).toEqual({
    code: 0,
    stdout: '',
    stderr: '',
  });
});

describe('a call of log', () => {
  const files = readdirSync(path.join(ROOT, 'lib'), { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.ts'))
    .map((file) => path.join('lib', file));
  /** Each call in lib/, as [place, arguments]. */
  const calls = files.flatMap((file) => {
    const source = ts.createSourceFile(
      file,
      readFileSync(path.join(ROOT, file), 'utf8'),
      ts.ScriptTarget.Latest,
      true,
    );
    const found: [string, ts.Expression[]][] = [];
    const visit = (node: ts.Node): void => {
      if (ts.isCallExpression(node) && node.expression.getText() === 'log') {
        const { line } = source.getLineAndCharacterOfPosition(node.getStart());
        found.push([`${file}:${line + 1}`, [...node.arguments]]);
      }
      ts.forEachChild(node, visit);
    };
    visit(source);
    return found;
  });

  test('is found', () => {
    expect(calls.length).toBeGreaterThan(10);
  });

  test.each(calls)('in %s makes no string', (_, [format, ...values]) => {
    expect(ts.isStringLiteral(format)).toBe(true);
    for (const value of values) {
      // Names, fields of objects, and the code of an error, which is a field too.
      expect(value.getText()).toMatch(/^(codeOf\()?[\w.]+\)?$/);
    }
  });
});
