import { RequestOutputCollector } from '../../lib/engine/outputCollector';
import { type OutputDelta, PositionLogprobs } from '../../lib/engine/outputs';

const delta = (text: string, tokenIds: number[], index = 0): OutputDelta => ({
  requestId: '0',
  numPromptTokens: 3,
  index,
  text,
  tokenIds,
  finishReason: null,
  stopReason: null,
});

async function readAll(collector: RequestOutputCollector): Promise<OutputDelta[]> {
  const deltas: OutputDelta[] = [];
  for await (const next of collector) deltas.push(next);
  return deltas;
}

test('a fast reader gets every delta', async () => {
  const collector = new RequestOutputCollector(null);
  const read = collector[Symbol.asyncIterator]();
  const first = read.next();
  collector.delta(delta('a', [1]));
  expect(await first).toEqual({ done: false, value: delta('a', [1]) });
  const second = read.next();
  collector.delta(delta('b', [2]));
  expect(await second).toEqual({ done: false, value: delta('b', [2]) });
});

test('unread deltas are merged', async () => {
  const collector = new RequestOutputCollector(null);
  collector.delta(delta('a', [1]));
  collector.delta(delta('b', [2, 3]));
  collector.delta({ ...delta('', [4]), finishReason: 'stop' });
  collector.finished();
  expect(await readAll(collector)).toEqual([
    { ...delta('ab', [1, 2, 3, 4]), finishReason: 'stop' },
  ]);
});

test('several outputs stay separate', async () => {
  const collector = new RequestOutputCollector(null);
  collector.delta(delta('a', [1], 1));
  collector.delta(delta('b', [2], 0));
  collector.delta(delta('c', [3], 1));
  collector.finished();
  expect(await readAll(collector)).toEqual([delta('ac', [1, 3], 1), delta('b', [2], 0)]);
});

test('an error follows the buffered deltas', async () => {
  const collector = new RequestOutputCollector(null);
  collector.delta(delta('a', [1]));
  collector.failed(new Error('lost'));
  const read = collector[Symbol.asyncIterator]();
  expect(await read.next()).toEqual({ done: false, value: delta('a', [1]) });
  await expect(read.next()).rejects.toThrow('lost');
});

test('an immediate error drops unread deltas and ends the stream', async () => {
  const collector = new RequestOutputCollector(null);
  collector.delta(delta('a', [1]));
  collector.failed(new Error('aborted'), true);
  await expect(collector.next()).rejects.toThrow('aborted');
  collector.delta(delta('b', [2]));
  expect(await collector.next()).toEqual({ done: true, value: undefined });
});

test('the call is not made before the first read', async () => {
  const start = jest.fn(() => () => undefined);
  const collector = new RequestOutputCollector(start);
  expect(start).not.toHaveBeenCalled();
  void collector.next();
  void collector.next();
  expect(start).toHaveBeenCalledTimes(1);
  await collector.return();
});

test('leaving during a pending read aborts at once', async () => {
  const abort = jest.fn();
  const collector = new RequestOutputCollector(() => abort);
  const read = collector.next();
  const left = collector.return();
  expect(abort).toHaveBeenCalledTimes(1);
  expect(await read).toEqual({ done: true, value: undefined });
  expect(await left).toEqual({ done: true, value: undefined });
});

test('leaving after the end aborts nothing', async () => {
  const abort = jest.fn();
  const collector = new RequestOutputCollector(() => abort);
  const read = collector.next();
  collector.finished();
  await read;
  await collector.return();
  expect(abort).not.toHaveBeenCalled();
});

test('a call that cannot be made rejects the read', async () => {
  const collector = new RequestOutputCollector(() => {
    throw new Error('refused');
  });
  await expect(collector.next()).rejects.toThrow('refused');
  expect(await collector.next()).toEqual({ done: true, value: undefined });
});

test("merged deltas have all logprobs, and the prompt's from the first", async () => {
  const position = (tokenId: number) =>
    new PositionLogprobs([[tokenId, { logprob: -1, rank: 1, decodedToken: 'x' }]]);
  const collector = new RequestOutputCollector(null);
  collector.delta({
    ...delta('a', [1]),
    logprobs: [position(1)],
    promptLogprobs: [null, position(7)],
  });
  collector.delta({ ...delta('b', [2, 3]), logprobs: [position(2), position(3)] });
  collector.finished();
  expect(await readAll(collector)).toEqual([
    {
      ...delta('ab', [1, 2, 3]),
      logprobs: [1, 2, 3].map(position),
      promptLogprobs: [null, position(7)],
    },
  ]);
});
