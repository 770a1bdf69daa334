import type { NativeRequest, NativeSampling } from '../../../lib/native';
import { GREEDY } from '../../support/sampling';
import { backends, openOps } from './binding';
import { Random } from './reference';

const limits = { vocabSize: 1000, maxNumSeqs: 1, maxModelLen: 8, blockSize: 16, maxLogprobs: 0 };

describe.each(backends)('the request table, %s', (backend) => {
  const ops = openOps(backend);

  it('has the last request of each slot after rapid updates', () => {
    const random = new Random(4);
    const numSlots = 40;
    const maxModelLen = 20_000;
    const requests = ops.makeRequests({ ...limits, maxNumSeqs: numSlots, maxModelLen });
    const last: NativeRequest[] = [];
    for (let i = 0; i < 600; ++i) {
      const length = 1 + random.below(i % 50 === 0 ? maxModelLen : 30);
      const request = {
        tokenIds: Int32Array.from({ length }, () => random.below(limits.vocabSize)),
        numPromptTokens: length,
        blockIds: Int32Array.from({ length: Math.ceil(length / 16) }, () => random.below(5000)),
        sampling: GREEDY,
      };
      const slot = random.below(numSlots);
      ops.addRequest(requests, slot, request, 5000);
      last[slot] = request;
    }
    expect(last.filter(Boolean)).toHaveLength(numSlots);
    last.forEach(({ tokenIds, blockIds }, slot) => {
      const read = ops.readRequest(requests, slot);
      expect(read.tokenIds).toEqual(tokenIds);
      expect(read.blockTable.subarray(0, blockIds.length)).toEqual(blockIds);
    });
  });

  it('stores a request of many megabytes', () => {
    const length = 3_000_001;
    const requests = ops.makeRequests({ ...limits, maxModelLen: length });
    const numBlocks = Math.ceil(length / 16);
    const tokenIds = Int32Array.from({ length }, (_, i) => (i * 7919) % limits.vocabSize);
    const request = {
      tokenIds,
      numPromptTokens: length,
      blockIds: Int32Array.from({ length: numBlocks }, (_, i) => numBlocks - 1 - i),
      sampling: { ...GREEDY, stopTokenIds: new Int32Array(200_000) },
    };
    ops.addRequest(requests, 0, request, numBlocks);
    const read = ops.readRequest(requests, 0);
    // Far faster than toEqual.
    expect(Buffer.compare(Buffer.from(read.tokenIds.buffer), Buffer.from(tokenIds.buffer))).toBe(0);
    expect(read.blockTable.subarray(0, numBlocks)).toEqual(request.blockIds);
  });

  /** Samples ten ascending logits greedily for each request in turn, all in one slot. */
  function sampleInTurn(samplings: Partial<NativeSampling>[]): number[] {
    const requests = ops.makeRequests({ ...limits, vocabSize: 10 });
    const results = samplings.map((sampling) => {
      const request = {
        tokenIds: Int32Array.of(0),
        numPromptTokens: 1,
        blockIds: new Int32Array(),
        sampling: { ...GREEDY, ...sampling },
      };
      ops.addRequest(requests, 0, request, 0);
      const sampled = ops.zeros(1, 'int32');
      const logits = ops.floats(Array.from({ length: 10 }, (_, i) => i));
      ops.sample(logits, 1, 10, ops.ints([0]), requests, null, sampled, null);
      return sampled;
    });
    return results.map((sampled) => ops.readInts(sampled, 1)[0]);
  }

  it('uses the lists of the current request in a slot, shorter or longer than the previous ones', () => {
    const allowed = (...ids: number[]) => ({ allowedTokenIds: Int32Array.from(ids) });
    const many = { allowedTokenIds: Int32Array.from({ length: 3000 }, (_, i) => i % 8) };
    const biased = {
      logitBiasTokenIds: Int32Array.of(5, 2),
      logitBiases: Float32Array.of(2, 100),
      ...allowed(2, 5, 6),
      badWordsTokenIds: Int32Array.of(2),
      badWordsEnds: Int32Array.of(1),
    };
    const samplings = [allowed(3), many, {}, biased, allowed(1, 4), many];
    expect(sampleInTurn(samplings)).toEqual([3, 7, 9, 5, 4, 7]);
  });

  it('allocates no memory for lists of any length', () => {
    const requests = ops.makeRequests({ ...limits, vocabSize: 10 });
    const { allocated } = ops.memory();
    const bytesWith = (count: number) => {
      const request = {
        tokenIds: Int32Array.of(0),
        numPromptTokens: 1,
        blockIds: new Int32Array(),
        sampling: { ...GREEDY, stopTokenIds: new Int32Array(count) },
      };
      ops.addRequest(requests, 0, request, 0);
      return ops.memory().allocated - allocated;
    };
    expect([0, 3, 1024, 1025, 7, 2048, 5000, 1500].map(bytesWith)).toEqual(new Array(8).fill(0));
  });
});
