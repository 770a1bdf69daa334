/** Chat templates on their thread: isolation of other calls from slow, greedy and broken templates. */
import path from 'node:path';
import { writeFile } from 'node:fs/promises';
import type { Worker } from 'node:worker_threads';
import {
  CheckpointError,
  InvalidRequestError,
  ShutdownError,
  TokenizerFailedError,
} from '../../lib/errors';
import { ChatRenderer } from '../../lib/tokenizer/chatRenderer';
import { Tokenizer } from '../../lib/tokenizer/tokenizer';
import { byteTokenizer, byteTokenizerFiles } from '../engine/byteTokenizer';
import { folderWith } from '../support/folder';

const MESSAGES = [{ role: 'user', content: 'Hi' }];
/** Exhausts the step budget. */
const ENDLESS =
  '{% for i in range(100000) %}{% for j in range(100000) %}{% set x = i %}{% endfor %}{% endfor %}';
/** Allocates half a gigabyte of small strings. */
const GREEDY =
  '{% set ns = namespace(all=[]) %}' +
  "{% for i in range(100000) %}{% set ns.all = [ns.all, (('ab' * 2000) ~ i)|upper] %}{% endfor %}";

/** A tokenizer's encoding or template thread. */
function workerOf(tokenizer: Tokenizer, of: 'texts' | 'templates'): Worker {
  const { thread, renderer } = tokenizer as unknown as {
    thread: { worker: Worker };
    renderer: { thread: { worker: Worker } };
  };
  return of === 'texts' ? thread.worker : renderer.thread.worker;
}

describe('the chat template thread of a tokenizer', () => {
  let tokenizer: Tokenizer;

  beforeAll(async () => {
    tokenizer = await byteTokenizer();
  });

  afterAll(() => tokenizer.close());

  const render = (chatTemplate: string, options: object = {}) =>
    tokenizer.renderChatTemplate(MESSAGES, { chatTemplate, ...options });

  it('renders messages and options as they were at the call', async () => {
    const messages = [{ role: 'user', content: 'before' }];
    const chatTemplateKwargs = { x: ['before'] };
    const rendered = tokenizer.renderChatTemplate(messages, {
      chatTemplate: '{{ messages[0].content }} {{ x[0] }}',
      chatTemplateKwargs,
    });
    messages[0].content = 'after';
    chatTemplateKwargs.x[0] = 'after';
    expect(await rendered).toBe('before before');
  });

  it('converts numbers, maps, dates and bigints as JSON does', async () => {
    const chatTemplateKwargs = {
      float: new Number(1),
      map: new Map([['a', 1]]),
      date: new Date(0),
      big: 2n ** 70n,
    };
    // As Python's json.dumps and str print 1.0, {'a': 1}, and 2 ** 70.
    expect(await render('{{ float }} {{ map }} {{ date }} {{ big }}', { chatTemplateKwargs })).toBe(
      "1.0 {'a': 1} 1970-01-01T00:00:00.000Z 1180591620717411303424",
    );
  });

  it.each([
    [
      { chatTemplateKwargs: { f: () => {} } },
      'f is a function, which cannot be passed to a chat template',
    ],
    [{ tools: [{ a: [Symbol('s')] }] }, 'tools[0].a[0] is a symbol, which'],
    [{ chatTemplate: 5 }, 'chatTemplate is 5; it must be a string'],
    [{ chatTemplateKwargs: { messages: [] } }, 'chatTemplateKwargs must not contain messages'],
  ])('rejects %p', async (options: object, message) => {
    const refused = render('x', options);
    await expect(refused).rejects.toThrow(InvalidRequestError);
    await expect(refused).rejects.toThrow(message);
  });

  it('rejects an option with a getter that throws', async () => {
    const options = {
      get tools(): never {
        throw new Error('hostile');
      },
    };
    await expect(tokenizer.renderChatTemplate(MESSAGES, options)).rejects.toMatchObject({
      code: 'REQUEST_INVALID',
      message: 'the call: reading it threw Error: hostile',
    });
  });

  it('rejects an endless template, and encodes texts meanwhile', async () => {
    const order: string[] = [];
    const endless = render(ENDLESS).catch((error: unknown) => {
      order.push('template');
      throw error;
    });
    const refused = expect(endless).rejects.toMatchObject({
      code: 'REQUEST_INVALID',
      message: expect.stringContaining(
        'MemoryError in line 1: the template exceeds its budget',
      ) as string,
    });
    await tokenizer.encode('a').then(() => order.push('text'));
    await refused;
    expect(order).toEqual(['text', 'template']);
    expect(await render('{{ 1 }}')).toBe('1');
  });

  it('rejects the running call if the thread dies, and renders the next on a new thread', async () => {
    expect(await render('a')).toBe('a');
    const rendered = render(ENDLESS);
    const other = render('b');
    const rejected = expect(rendered).rejects.toThrow(TokenizerFailedError);
    await workerOf(tokenizer, 'templates').terminate();
    await rejected;
    expect(await other).toBe('b');
    expect(await tokenizer.encode('a')).toEqual([97]);
  });
});

describe('the encoding thread of a tokenizer', () => {
  it('rejects pending calls if it dies, and a new thread serves the next', async () => {
    const tokenizer = await Tokenizer.load(path.join(__dirname, 'byte-bpe'));
    const ids = await tokenizer.encode('The tide');
    const long = expect(tokenizer.encode('a'.repeat(1e6))).rejects.toThrow(TokenizerFailedError);
    await workerOf(tokenizer, 'texts').terminate();
    await long;
    expect(await tokenizer.encode('The tide')).toEqual(ids);
    expect(await tokenizer.decode(ids)).toBe('The tide');
    await tokenizer.close();
  });

  it('is not restarted for a changed file', async () => {
    const folder = await folderWith(byteTokenizerFiles());
    const tokenizer = await Tokenizer.load(folder);
    await workerOf(tokenizer, 'texts').terminate();
    await writeFile(path.join(folder, 'tokenizer.json'), '{"model": {}}');
    await expect(tokenizer.encode('a')).rejects.toThrow(CheckpointError);
    await expect(tokenizer.encode('a')).rejects.toThrow(
      /tokenizer\.json: it changed after it was loaded/,
    );
    await tokenizer.close();
  });
});

describe('ChatRenderer', () => {
  const setUp = () => ({
    templates: [],
    userTemplate: null,
    specialTokens: {},
    specialTexts: [],
    bound: null,
  });
  const open: ChatRenderer[] = [];
  afterEach(() => Promise.all(open.splice(0).map((renderer) => renderer.close())));

  const create = (limits = {}) => {
    const renderer = new ChatRenderer(setUp, limits);
    open.push(renderer);
    return renderer;
  };
  const part = (text: string) => ({ parts: [{ text, isPlain: false }] });
  const many = (count: number) => Array.from({ length: count }, () => MESSAGES);

  it('renders conversations in order, up to the first failure', async () => {
    const chatTemplate =
      "{% if messages[0].x == 70 %}{{ raise_exception('70') }}{% endif %}{{ messages[0].x }}";
    const conversations = Array.from({ length: 100 }, (_, x) => [{ role: 'user', x }]);
    const rendered = await create().render(conversations, { chatTemplate });
    expect(rendered.slice(0, 70)).toEqual(Array.from({ length: 70 }, (_, x) => part(String(x))));
    expect(rendered).toHaveLength(71);
    expect(rendered[70]).toMatchObject({ failure: { code: 'REQUEST_INVALID' } });
  });

  it('serves requests round robin', async () => {
    const renderer = create();
    const order: string[] = [];
    // Each uses half of the step budget.
    const slow =
      '{% for i in range(100000) %}{% for j in range(5) %}{% set x = 1 %}{% endfor %}{% endfor %}';
    await Promise.all([
      renderer.render(many(6), { chatTemplate: slow }).then(() => order.push('many')),
      renderer.render(many(1), { chatTemplate: 'b' }).then(() => order.push('one')),
    ]);
    expect(order).toEqual(['one', 'many']);
  });

  it('stops rendering a request that is no longer wanted', async () => {
    const renderer = create();
    let isWanted = true;
    const rendered = renderer.render(many(1000), { chatTemplate: 'a' }, () => isWanted);
    const next = renderer.render(many(1), { chatTemplate: 'b' });
    void next.then(() => (isWanted = false));
    expect(await next).toEqual([part('b')]);
    expect((await rendered).length).toBeLessThan(1000);
  });

  it('stops a template that takes too long, and renders the next', async () => {
    const limits = { milliseconds: 1 };
    const renderer = create(limits);
    const rendered = renderer.render(many(1), { chatTemplate: ENDLESS });
    await expect(rendered).rejects.toMatchObject({
      code: 'REQUEST_INVALID',
      message: 'the chat template did not finish within 1 ms and was stopped',
    });
    limits.milliseconds = 60_000;
    expect(await renderer.render(many(1), { chatTemplate: 'b' })).toEqual([part('b')]);
  });

  it('rejects a template that takes too much memory, and renders the next', async () => {
    const renderer = create({ heapMegabytes: 200 });
    const greedy = renderer.render(many(1), { chatTemplate: GREEDY });
    const next = renderer.render(many(1), { chatTemplate: 'b' });
    await expect(greedy).rejects.toMatchObject({
      code: 'REQUEST_INVALID',
      message: 'the chat template exceeded its limit of 200 MB of memory',
    });
    expect(await next).toEqual([part('b')]);
  });

  it('rejects pending requests on close', async () => {
    const renderer = create();
    const waiting = Promise.allSettled([
      renderer.render(many(2), { chatTemplate: ENDLESS }),
      renderer.render(many(1), { chatTemplate: 'b' }),
    ]);
    await renderer.close();
    for (const outcome of await waiting) {
      expect(outcome).toMatchObject({ reason: expect.any(ShutdownError) as Error });
    }
  });

  it('completes pending requests before closeWhenIdle closes it', async () => {
    const renderer = create();
    const rendered = renderer.render(many(100), { chatTemplate: 'a' });
    renderer.closeWhenIdle();
    expect(await rendered).toHaveLength(100);
    await expect(renderer.render(many(1), {})).rejects.toThrow(ShutdownError);
  });
});
