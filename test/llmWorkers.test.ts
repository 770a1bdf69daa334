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

test('sleep refuses a level that is none', async () => {
  await expect(llm.sleep(3 as never)).rejects.toMatchObject({ code: 'INVALID_STATE' });
});

test('collectiveRpc calls a method by name, with arguments, and a function of the worker that runs it', async () => {
  expect(await llm.collectiveRpc<number>('count', { args: [3] })).toEqual([3]);
  expect(await llm.collectiveRpc('count', { args: [3], kwargs: { twice: true } })).toEqual([6]);
  expect(await llm.collectiveRpc(isCounting)).toEqual([true]);
});

test('collectiveRpc rejects with typed errors, and the engine continues', async () => {
  await expect(llm.collectiveRpc('nothing')).rejects.toMatchObject({ code: 'UNKNOWN_METHOD' });
  await expect(llm.collectiveRpc('hang', { timeoutMs: 1 })).rejects.toMatchObject({
    code: 'RPC_TIMEOUT',
    timeoutMs: 1,
  });
  expect(await tokens()).toHaveLength(4);
});
