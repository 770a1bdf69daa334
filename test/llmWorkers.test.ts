/** What LLM offers of its engine and workers: health, sleep, calls of worker methods. */
import { InvalidStateError, LLM, ShutdownError, Worker, type WorkerWrapper } from '../lib';

class CountingWorker extends Worker {
  count(by: number, { twice }: { twice?: boolean } = {}): number {
    return twice === true ? 2 * by : by;
  }
  hang(): Promise<void> {
    return new Promise(() => undefined);
  }
  override async checkHealth(): Promise<void> {
    if (CountingWorker.fault !== null) throw CountingWorker.fault;
    await super.checkHealth();
  }
  static fault: Error | null = null;
}

const isCounting = ({ worker }: WorkerWrapper) => worker instanceof CountingWorker;
const GREEDY = { temperature: 0, maxTokens: 4 };
let llm: LLM;

beforeEach(async () => {
  CountingWorker.fault = null;
  llm = await LLM.create({
    device: 'cpu',
    dtype: 'float32',
    maxModelLen: 128,
    workerCls: CountingWorker,
  });
});
afterEach(() => llm.shutdown());

const tokens = async () => (await llm.generate('Once', GREEDY))[0].outputs[0].tokenIds;

test('checkHealth resolves, and rejects with the error of the worker', async () => {
  await expect(llm.checkHealth()).resolves.toBeUndefined();
  CountingWorker.fault = new Error('the fan stopped');
  await expect(llm.checkHealth()).rejects.toBe(CountingWorker.fault);
});

test('checkHealth rejects once the engine has stopped', async () => {
  await llm.shutdown();
  await expect(llm.checkHealth()).rejects.toBeInstanceOf(ShutdownError);
});

test.each([[1], [2]] as const)('sleep(%p) refuses calls until wakeUp', async (level) => {
  const before = await tokens();
  await llm.sleep(level);
  await expect(tokens()).rejects.toBeInstanceOf(InvalidStateError);
  await llm.wakeUp();
  expect(await tokens()).toEqual(before);
});

test('wakeUp takes tags: it is awake once none is asleep', async () => {
  await llm.sleep();
  await llm.wakeUp(['weights']);
  await expect(tokens()).rejects.toBeInstanceOf(InvalidStateError);
  await llm.wakeUp(['kv_cache']);
  expect(await tokens()).toHaveLength(4);
});

test('sleep is refused while a request runs, which continues', async () => {
  const stream = llm.stream('Once', { maxTokens: 60, ignoreEos: true });
  await stream.next();
  await expect(llm.sleep()).rejects.toMatchObject({ code: 'INVALID_STATE' });
  let usage = stream.usage;
  for await (const delta of stream) usage = delta.usage ?? usage;
  expect(usage?.numOutputTokens).toBe(60);
  await llm.sleep();
});

test('sleep is refused while a call is being encoded, which continues', async () => {
  const call = tokens();
  await expect(llm.sleep()).rejects.toMatchObject({
    code: 'INVALID_STATE',
    message: 'sleep was called with 1 requests unfinished; finish or abort them first',
  });
  expect(await call).toHaveLength(4);
  await llm.sleep();
});

test('sleep is possible right after a request was aborted or its reader left', async () => {
  const endless = { maxTokens: 100, ignoreEos: true };
  const stream = llm.stream('Once', endless);
  await stream.next();
  await stream.return();
  await llm.sleep();
  await llm.wakeUp();
  const controller = new AbortController();
  const aborted = llm.stream('Once', endless, { signal: controller.signal });
  await aborted.next();
  controller.abort();
  await expect(aborted.next()).rejects.toMatchObject({ code: 'ABORT_ERR' });
  await llm.sleep();
  await llm.wakeUp();
  expect(await tokens()).toHaveLength(4);
});

test('sleep and wakeUp refuse what is no level and no list, and show it', async () => {
  for (const level of [3, '1'] as never[]) {
    await expect(llm.sleep(level)).rejects.toMatchObject({
      code: 'INVALID_STATE',
      message: `sleep level must be 1 or 2, not ${level === 3 ? '3' : "'1'"}`,
    });
  }
  await expect(llm.wakeUp('weights' as never)).rejects.toMatchObject({
    code: 'INVALID_STATE',
    message: "wakeUp takes a list of tags, not 'weights'",
  });
});

test.each<[object | null, string]>([
  [{ timeoutMS: 1 }, 'unknown option timeoutMS; did you mean timeoutMs?'],
  [{ nonBlock: true }, 'unknown option nonBlock; the options are timeoutMs, args, kwargs'],
  [{ args: 3 }, 'args is 3; it must be a list of arguments'],
  [{ args: 'ab' }, "args is 'ab'; it must be a list of arguments"],
  [{ kwargs: 'x' }, "kwargs is 'x'; it must be an object"],
  [{ timeoutMs: '5' }, "timeoutMs is '5'; it must be milliseconds, a number of at least 0"],
  [{ timeoutMs: 1, timeout: 2 }, 'timeoutMs is 1, but timeout, its old name, is 2'],
  [null, 'expected an object, not null'],
])('collectiveRpc refuses the options %j', async (options, message) => {
  await expect(llm.collectiveRpc('count', options as never)).rejects.toMatchObject({
    code: 'CONFIG_INVALID',
    message: `collectiveRpc: ${message}`,
  });
});

test('collectiveRpc calls a method by name, with arguments, and a function of the worker that runs it', async () => {
  expect(await llm.collectiveRpc<number>('count', { args: [3] })).toEqual([3]);
  expect(await llm.collectiveRpc('count', { args: [3], kwargs: { twice: true } })).toEqual([6]);
  expect(await llm.collectiveRpc(isCounting)).toEqual([true]);
});

test('collectiveRpc refuses a method that is neither a name nor a function', async () => {
  for (const method of [undefined, null, {}, Symbol('count')] as never[]) {
    await expect(llm.collectiveRpc(method)).rejects.toMatchObject({
      code: 'CONFIG_INVALID',
      message: expect.stringMatching(/^collectiveRpc: method is .*; it must be the name/) as string,
    });
  }
});

test('collectiveRpc rejects with typed errors, and the engine continues', async () => {
  await expect(llm.collectiveRpc('nothing')).rejects.toMatchObject({ code: 'UNKNOWN_METHOD' });
  await expect(llm.collectiveRpc('hang', { timeoutMs: 1 })).rejects.toMatchObject({
    code: 'RPC_TIMEOUT',
    timeoutMs: 1,
  });
  expect(await tokens()).toHaveLength(4);
});
