/** Several models on a device that does not hold them all: who sleeps, who waits, and for how long. */
import { createHandler, type Handler, type LLM, OutOfMemoryError, Worker } from '../../lib';
import { AwakeModels } from '../../lib/server/awakeModels';
import { stories } from '../support/stories';
import { loadStories, post, readChunks, until } from '../support/server';

/** A worker on a device with room for `size` models. */
class CrampedWorker extends Worker {
  static size = 1;
  static readonly inside = new Set<CrampedWorker>();
  static readonly levels: number[] = [];
  static numRefused = 0;
  /** Of the next wakeUp, behind the weights. */
  static failure: Error | null = null;

  private enter(): void {
    const { inside, size } = CrampedWorker;
    if (inside.size >= size) {
      CrampedWorker.numRefused++;
      throw new OutOfMemoryError(`there is room for ${size} models`);
    }
    inside.add(this);
  }
  override async loadModel(...args: Parameters<Worker['loadModel']>): Promise<void> {
    this.enter();
    await super.loadModel(...args);
  }
  override async sleep(level: 1 | 2): Promise<void> {
    await super.sleep(level);
    CrampedWorker.levels.push(level);
    CrampedWorker.inside.delete(this);
  }
  override async wakeUp(...args: Parameters<Worker['wakeUp']>): Promise<void> {
    this.enter();
    const { failure } = CrampedWorker;
    CrampedWorker.failure = null;
    await super.wakeUp(...(failure === null ? args : [['weights' as const]]));
    if (failure !== null) throw failure;
  }
  override async shutdown(): Promise<void> {
    CrampedWorker.inside.delete(this);
    await super.shutdown();
  }
}

const NAMES = ['a', 'b', 'c'] as const;
type Name = (typeof NAMES)[number];

let models: Record<Name, LLM>;
let handler: Handler;

/** Loads the models one after another, as `uniproc serve` does. */
async function load(size: number, requestTimeoutMs?: number): Promise<void> {
  CrampedWorker.size = size;
  const loaded: LLM[] = [];
  const create = () =>
    loadStories({
      workerCls: CrampedWorker,
      maxModelLen: 512,
      maxQueuedRequests: 2,
      kvCacheMemoryBytes: 2 ** 24,
    });
  while (loaded.length < NAMES.length) {
    loaded.push(await new AwakeModels(loaded).withRoom(create));
  }
  models = Object.fromEntries(NAMES.map((name, i) => [name, loaded[i]])) as Record<Name, LLM>;
  handler = createHandler({ models }, { requestTimeoutMs });
  CrampedWorker.levels.length = CrampedWorker.numRefused = 0;
}

afterEach(() => Promise.all(Object.values(models).map((llm) => llm.shutdown())));

const awake = () => NAMES.filter((name) => !models[name].engine.executor.isSleeping).join('');

const [{ prompt, text }] = stories.prompts;
const greedy = { prompt, temperature: 0, max_tokens: 8 };
const long = { prompt, max_tokens: 400, ignore_eos: true, n: 4, stream: true };

interface Answer {
  choices: { text: string; finish_reason: string | null }[];
}

const ask = (model: Name, body: object = greedy, init: RequestInit = {}) =>
  post(handler, '/v1/completions', { model, ...body }, init);

/** The model's answer must be transformers'. */
async function expectAnswer(response: Response | Promise<Response>): Promise<void> {
  const answered = await response;
  expect(answered.status).toBe(200);
  const [choice] = ((await answered.json()) as Answer).choices;
  expect(choice.text).not.toBe('');
  expect(text.startsWith(choice.text)).toBe(true);
}

test('a request wakes its model, and the least recently used one sleeps', async () => {
  await load(2);
  expect(awake()).toBe('bc');
  await expectAnswer(ask('a'));
  expect(awake()).toBe('ac');
  await expectAnswer(ask('c'));
  await expectAnswer(ask('b'));
  expect(awake()).toBe('bc');
  await expectAnswer(ask('b'));
  await expectAnswer(ask('c'));
  await expectAnswer(ask('a'));
  expect(awake()).toBe('ac');
  // Only then does a CPU give the weights' memory back.
  expect(new Set(CrampedWorker.levels)).toEqual(new Set([2]));
});

test('models that fit stay awake', async () => {
  await load(3);
  for (const name of NAMES) await expectAnswer(ask(name));
  expect(awake()).toBe('abc');
  expect(CrampedWorker.levels).toEqual([]);
});

test('a stream wakes its model as a whole answer does', async () => {
  await load(1);
  const chunks = await readChunks<Answer>(await ask('a', { ...greedy, stream: true }));
  const streamed = chunks.map(({ choices }) => choices[0].text).join('');
  expect(streamed).not.toBe('');
  expect(text.startsWith(streamed)).toBe(true);
});

/** A stream of c, and a request for another model, for which c is to sleep. */
async function streamBefore(model: Name): Promise<{ stream: Response; other: Promise<Response> }> {
  const stream = await ask('c', long);
  const other = ask(model);
  await until(() => CrampedWorker.numRefused === 1);
  return { stream, other };
}

test('a model with a running request ends it before it sleeps; later requests for it wait', async () => {
  await load(1);
  const { stream, other } = await streamBefore('b');
  const order: string[] = [];
  const inOrder = async (name: Name, response: Promise<Response>) => {
    await expectAnswer(response);
    order.push(name);
  };
  const later = inOrder('c', ask('c'));
  await inOrder('b', other);
  await later;
  expect(order).toEqual(['b', 'c']);
  expect(awake()).toBe('c');
  const chunks = await readChunks<Answer>(stream);
  const reasons = chunks.flatMap(({ choices }) => choices.map((each) => each.finish_reason));
  expect(reasons.filter((reason) => reason === 'length')).toHaveLength(4);
});

test('an idle model sleeps before one that runs a request, whichever was used last', async () => {
  await load(2);
  const stream = await ask('b', long);
  await expectAnswer(ask('c'));
  await expectAnswer(ask('a'));
  expect(awake()).toBe('ab');
  await stream.body?.cancel();
});

test('requests for a model that waits are limited in number, and end with their client', async () => {
  await load(1);
  const { stream, other } = await streamBefore('a');
  const controller = new AbortController();
  const gone = ask('a', greedy, { signal: controller.signal });
  const refused = await ask('a');
  expect([refused.status, refused.headers.get('retry-after')]).toEqual([503, '1']);
  controller.abort();
  expect((await gone).status).toBe(499);
  await stream.body?.cancel();
  await expectAnswer(other);
});

test('once all that waited for a model have left, the others stay awake', async () => {
  await load(1);
  const controller = new AbortController();
  const stream = await ask('c', long);
  const gone = ask('a', greedy, { signal: controller.signal });
  await until(() => CrampedWorker.numRefused === 1);
  const later = ask('c');
  // Its turn has not come.
  const second = ask('b', greedy, { signal: controller.signal });
  controller.abort();
  expect([(await gone).status, (await second).status]).toEqual([499, 499]);
  await expectAnswer(later);
  expect(models.c.engine.numUnfinishedRequests).toBe(4);
  await stream.body?.cancel();
  // Behind their turns.
  await until(() => models.c.engine.numUnfinishedRequests === 0);
  await models.c.sleep(2);
  await expectAnswer(ask('c'));
  expect(CrampedWorker.numRefused).toBe(1);
});

test('of two models that are asked for at once, each answers before it sleeps', async () => {
  await load(1);
  await Promise.all([expectAnswer(ask('a')), expectAnswer(ask('b'))]);
  expect(awake()).toBe('b');
  expect(CrampedWorker.levels).toHaveLength(2);
});

test('a model that fails to wake keeps no memory, and the next request tries again', async () => {
  await load(1);
  CrampedWorker.failure = new Error('the file has gone');
  expect((await ask('a')).status).toBe(500);
  expect(awake()).toBe('');
  await expectAnswer(ask('b'));
  await expectAnswer(ask('a'));
});

test('the wait for a model is limited as a generation is', async () => {
  await load(1, 30);
  const running = models.c.generate(prompt, { maxTokens: 400, ignoreEos: true, n: 4 });
  const late = await ask('a');
  expect(late.status).toBe(504);
  expect(await late.json()).toMatchObject({
    error: { message: 'the model was not awake within 30 ms' },
  });
  await running;
  expect(awake()).toBe('c'); // Nobody waits for the other any longer.
});

test('where no other model is left to sleep, the answer is 503 and says why', async () => {
  await load(1);
  await models.c.sleep(2);
  CrampedWorker.size = 0;
  const response = await ask('a');
  expect(response.status).toBe(503);
  expect(await response.json()).toMatchObject({ error: { message: 'there is room for 0 models' } });
});

test('what needs no memory wakes no model, and a sleeping one is healthy', async () => {
  await load(1);
  expect((await post(handler, '/tokenize', { model: 'a', prompt })).status).toBe(200);
  for (const path of ['/health', '/metrics', '/v1/models']) {
    expect((await handler(new Request(`http://localhost${path}`))).status).toBe(200);
  }
  expect(awake()).toBe('c');
});

test('the only model of a handler, put to sleep by its program, is not woken', async () => {
  await load(3);
  const single = createHandler(models.a);
  await models.a.sleep();
  expect((await post(single, '/v1/completions', greedy)).status).toBe(503);
  expect(awake()).toBe('bc');
});
