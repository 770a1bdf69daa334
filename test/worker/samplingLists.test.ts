import { SamplingParams } from '../../lib/config/samplingParams';
import { samplingLists } from '../../lib/worker/samplingLists';

test('requests with the same parameters share their converted lists', () => {
  const badWordsTokenIds = Object.freeze([[1, 2], [3]]);
  const samplingParams = new SamplingParams({ logitBias: { 5: 0.5 }, allowedTokenIds: [5, 6] });
  const data = { samplingParams, badWordsTokenIds, stopTokenIds: Object.freeze([7]) };
  const lists = samplingLists(data);
  expect(lists).toEqual({
    badWordsTokenIds: Int32Array.of(1, 2, 3),
    badWordsEnds: Int32Array.of(2, 3),
    logitBiasTokenIds: Int32Array.of(5),
    logitBiases: Float32Array.of(0.5),
    allowedTokenIds: Int32Array.of(5, 6),
    stopTokenIds: Int32Array.of(7),
  });
  const again = samplingLists({ ...data });
  for (const name of Object.keys(lists) as (keyof typeof lists)[]) {
    expect(again[name]).toBe(lists[name]);
  }
});

test('mutable lists are converted again', () => {
  const stopTokenIds = [7];
  const data = { samplingParams: new SamplingParams(), badWordsTokenIds: [], stopTokenIds };
  samplingLists(data);
  stopTokenIds[0] = 8;
  expect(samplingLists(data).stopTokenIds).toEqual(Int32Array.of(8));
});
