/** Chat templates on a thread of their own: what one of them cannot do to other calls. */
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
/** Takes all steps that a template may take. */
const ENDLESS =
  '{% for i in range(100000) %}{% for j in range(100000) %}{% set x = i %}{% endfor %}{% endfor %}';
/** Keeps half a gigabyte in small strings. */
const GREEDY =
  '{% set ns = namespace(all=[]) %}' +
  "{% for i in range(100000) %}{% set ns.all = [ns.all, (('ab' * 2000) ~ i)|upper] %}{% endfor %}";

/** The thread behind a tokenizer's texts, or the templates that calls bring. */
function workerOf(tokenizer: Tokenizer, of: 'texts' | 'templates'): Worker {
  const { thread, ownRenderer } = tokenizer as unknown as {
    thread: { worker: Worker };
    ownRenderer: { thread: { worker: Worker } };
  };
  return of === 'texts' ? thread.worker : ownRenderer.thread.worker;
}

describe("a tokenizer's chat template", () => {
  let tokenizer: Tokenizer;

  beforeAll(async () => {
    tokenizer = await byteTokenizer();
  });

  afterAll(() => tokenizer.close());

  const render = (chatTemplate: string, options: object = {}) =>
    tokenizer.renderChatTemplate(MESSAGES, { chatTemplate, ...options });

  it('is given what the messages and options were at the call', async () => {
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

  it('is given numbers, maps, dates and bigints as JSON has them', async () => {
    const chatTemplateKwargs = {
      float: new Number(1),
      map: new Map([['a', 1]]),
      date: new Date(0),
      big: 2n ** 70n,
    };
    // As json.dumps and Python's str print 1.0, {'a': 1}, and 2 ** 70.
    expect(await render('{{ float }} {{ map }} {{ date }} {{ big }}', { chatTemplateKwargs })).toBe(
      "1.0 {'a': 1} 1970-01-01T00:00:00.000Z 1180591620717411303424",
    );
  });

  it.each([
    [{ chatTemplateKwargs: { f: () => {} } }, 'f is a function, which no chat template can read'],
    [{ tools: [{ a: [Symbol('s')] }] }, 'tools[0].a[0] is a symbol, which'],
    [{ chatTemplate: 5 }, 'chatTemplate is 5; it must be a string'],
    [{ chatTemplateKwargs: { messages: [] } }, 'chatTemplateKwargs has messages'],
  ])('refuses %p', async (options: object, message) => {
    const refused = render('x', options);
    await expect(refused).rejects.toThrow(InvalidRequestError);
    await expect(refused).rejects.toThrow(message);
  });

  it('refuses what throws when it is read', async () => {
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

  it('that never ends is refused, and lets texts be encoded meanwhile', async () => {
    const order: string[] = [];
    const endless = render(ENDLESS).catch((error: unknown) => {
      order.push('template');
      throw error;
    });
    const refused = expect(endless).rejects.toMatchObject({
      code: 'REQUEST_INVALID',
      message: expect.stringContaining('MemoryError: the template takes more than') as string,
    });
    await tokenizer.encode('a').then(() => order.push('text'));
    await refused;
    expect(order).toEqual(['text', 'template']);
    expect(await render('{{ 1 }}')).toBe('1');
  });

  it('that dies with its thread rejects, and the next has another thread', async () => {
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

test("a checkpoint's template does not wait for those that calls bring", async () => {
  const chatTemplate = '{{ messages[0].content }}';
  const tokenizer = await Tokenizer.load(await folderWith(byteTokenizerFiles()), { chatTemplate });
  const render = (options?: object) => tokenizer.renderChatTemplate(MESSAGES, options);
  await render();
  const order: string[] = [];
  const brought = Array.from({ length: 4 }, () =>
    render({ chatTemplate: ENDLESS }).catch(() => order.push('brought')),
  );
  await render().then((text) => order.push(text));
  await Promise.all(brought);
  expect(order).toEqual(['Hi', 'brought', 'brought', 'brought', 'brought']);
  await tokenizer.close();
});

describe("the thread that encodes a tokenizer's texts", () => {
  it('rejects what it had when it dies, and the next text has another', async () => {
    const tokenizer = await Tokenizer.load(path.join(__dirname, 'byte-bpe'));
    const ids = await tokenizer.encode('The tide');
    const long = expect(tokenizer.encode('a'.repeat(1e6))).rejects.toThrow(TokenizerFailedError);
    await workerOf(tokenizer, 'texts').terminate();
    await long;
    expect(await tokenizer.encode('The tide')).toEqual(ids);
    expect(await tokenizer.decode(ids)).toBe('The tide');
    await tokenizer.close();
  });

  it('is not started for a file that was changed', async () => {
    const folder = await folderWith(byteTokenizerFiles());
    const tokenizer = await Tokenizer.load(folder);
    await workerOf(tokenizer, 'texts').terminate();
    await writeFile(path.join(folder, 'tokenizer.json'), '{"model": {}}');
    await expect(tokenizer.encode('a')).rejects.toThrow(CheckpointError);
    await expect(tokenizer.encode('a')).rejects.toThrow(/tokenizer\.json: it was changed/);
    await tokenizer.close();
  });
});

describe('a renderer', () => {
  const setUp = () => ({
    templates: [],
    own: null,
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

  it('gives the texts in order, up to the first that fails', async () => {
    const chatTemplate =
      "{% if messages[0].x == 70 %}{{ raise_exception('70') }}{% endif %}{{ messages[0].x }}";
    const conversations = Array.from({ length: 100 }, (_, x) => [{ role: 'user', x }]);
    const rendered = await create().render(conversations, { chatTemplate });
    expect(rendered.slice(0, 70)).toEqual(Array.from({ length: 70 }, (_, x) => part(String(x))));
    expect(rendered).toHaveLength(71);
    expect(rendered[70]).toMatchObject({ failure: { code: 'REQUEST_INVALID' } });
  });

  it('lets requests take turns', async () => {
    const renderer = create();
    const order: string[] = [];
    // Half of the steps that a template may take, several times.
    const slow =
      '{% for i in range(100000) %}{% for j in range(5) %}{% set x = 1 %}{% endfor %}{% endfor %}';
    await Promise.all([
      renderer.render(many(6), { chatTemplate: slow }).then(() => order.push('many')),
      renderer.render(many(1), { chatTemplate: 'b' }).then(() => order.push('one')),
    ]);
    expect(order).toEqual(['one', 'many']);
  });

  it('renders nothing more of what is not wanted', async () => {
    const renderer = create();
    let isWanted = true;
    const rendered = renderer.render(many(1000), { chatTemplate: 'a' }, () => isWanted);
    const next = renderer.render(many(1), { chatTemplate: 'b' });
    void next.then(() => (isWanted = false));
    expect(await next).toEqual([part('b')]);
    expect((await rendered).length).toBeLessThan(1000);
  });

  it('gives up a template that takes too long, and goes on with the next', async () => {
    const limits = { milliseconds: 1 };
    const renderer = create(limits);
    const rendered = renderer.render(many(1), { chatTemplate: ENDLESS });
    await expect(rendered).rejects.toMatchObject({
      code: 'REQUEST_INVALID',
      message: 'the chat template takes more than 1 ms; it was given up',
    });
    limits.milliseconds = 60_000;
    expect(await renderer.render(many(1), { chatTemplate: 'b' })).toEqual([part('b')]);
  });

  it('refuses a template that takes too much memory, and goes on with the next', async () => {
    const renderer = create({ heapMegabytes: 200 });
    const greedy = renderer.render(many(1), { chatTemplate: GREEDY });
    const next = renderer.render(many(1), { chatTemplate: 'b' });
    await expect(greedy).rejects.toMatchObject({
      code: 'REQUEST_INVALID',
      message: 'the chat template takes more than 200 MB of memory',
    });
    expect(await next).toEqual([part('b')]);
  });

  it('rejects what waits when it is closed', async () => {
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

  it('answers what waits before it is closed for want of others', async () => {
    const renderer = create();
    const rendered = renderer.render(many(100), { chatTemplate: 'a' });
    renderer.closeWhenIdle();
    expect(await rendered).toHaveLength(100);
    await expect(renderer.render(many(1), {})).rejects.toThrow(ShutdownError);
  });
});
