import { RequestOutputCollector } from '../../lib/engine/outputCollector';
import { type OutputDelta, PositionLogprobs } from '../../lib/engine/outputs';

const delta = (text: string, tokenIds: number[], index = 0): OutputDelta => ({
  index,
  text,
  tokenIds,
  finishReason: null,
});

async function readAll(collector: RequestOutputCollector): Promise<OutputDelta[]> {
  const deltas: OutputDelta[] = [];
  for await (const next of collector) deltas.push(next);
  return deltas;
}

test('a reader that keeps up gets every delta', async () => {
  const collector = new RequestOutputCollector(null);
  const read = collector[Symbol.asyncIterator]();
  const first = read.next();
  collector.delta(delta('a', [1]));
  expect(await first).toEqual({ done: false, value: delta('a', [1]) });
  const second = read.next();
  collector.delta(delta('b', [2]));
  expect(await second).toEqual({ done: false, value: delta('b', [2]) });
});

test('what a slow reader has not taken is one delta', async () => {
  const collector = new RequestOutputCollector(null);
  collector.delta(delta('a', [1]));
  collector.delta(delta('b', [2, 3]));
  collector.delta({ ...delta('', [4]), finishReason: 'stop' });
  collector.finished();
  expect(await readAll(collector)).toEqual([
    { index: 0, text: 'ab', tokenIds: [1, 2, 3, 4], finishReason: 'stop' },
  ]);
});

test('several outputs stay apart', async () => {
  const collector = new RequestOutputCollector(null);
  collector.delta(delta('a', [1], 1));
  collector.delta(delta('b', [2], 0));
  collector.delta(delta('c', [3], 1));
  collector.finished();
  expect(await readAll(collector)).toEqual([delta('ac', [1, 3], 1), delta('b', [2], 0)]);
});

test('an error comes after what came before it', async () => {
  const collector = new RequestOutputCollector(null);
  collector.delta(delta('a', [1]));
  collector.failed(new Error('lost'));
  const read = collector[Symbol.asyncIterator]();
  expect(await read.next()).toEqual({ done: false, value: delta('a', [1]) });
  await expect(read.next()).rejects.toThrow('lost');
});

test('an error at once comes before what was not read, and ends the stream', async () => {
  const collector = new RequestOutputCollector(null);
  collector.delta(delta('a', [1]));
  collector.failed(new Error('given up'), true);
  await expect(collector.next()).rejects.toThrow('given up');
  collector.delta(delta('b', [2]));
  expect(await collector.next()).toEqual({ done: true, value: undefined });
});

test('nothing is started before the first read', async () => {
  const start = jest.fn(() => () => undefined);
  const collector = new RequestOutputCollector(start);
  expect(start).not.toHaveBeenCalled();
  void collector.next();
  void collector.next();
  expect(start).toHaveBeenCalledTimes(1);
  await collector.return();
});

test('leaving while a read is under way gives up at once', async () => {
  const abort = jest.fn();
  const collector = new RequestOutputCollector(() => abort);
  const read = collector.next();
  const left = collector.return();
  expect(abort).toHaveBeenCalledTimes(1);
  expect(await read).toEqual({ done: true, value: undefined });
  expect(await left).toEqual({ done: true, value: undefined });
});

test('leaving after the end gives nothing up', async () => {
  const abort = jest.fn();
  const collector = new RequestOutputCollector(() => abort);
  const read = collector.next();
  collector.finished();
  await read;
  await collector.return();
  expect(abort).not.toHaveBeenCalled();
});

test('what cannot be started rejects the read', async () => {
  const collector = new RequestOutputCollector(() => {
    throw new Error('refused');
  });
  await expect(collector.next()).rejects.toThrow('refused');
  expect(await collector.next()).toEqual({ done: true, value: undefined });
});

test('merged deltas have the logprobs of all, and those of the prompt from the first', async () => {
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
