import { GREEDY } from '../../support/sampling';
import { Layout, makeBatch, tokensOf } from './batches';
import { backends, openOps } from './binding';
import { Random } from './reference';

describe.each(backends)('prepareInputs, %s', (backend) => {
  const ops = openOps(backend);
  const lengths = [40, 7, 100, 1];
  const random = new Random(1);
  const layout = new Layout(16, lengths, random);
  const tokenIds = lengths.map((length) => Int32Array.from({ length }, () => random.below(1000)));
  const rows = [
    { slot: 2, numComputed: 30, numScheduled: 20 },
    { slot: 3, numComputed: 0, numScheduled: 1 },
    { slot: 0, numComputed: 39, numScheduled: 1 },
  ];

  it('computes the id, position and cache slot of each token', () => {
    const requests = layout.requests(ops, tokenIds, 1000);
    const batch = makeBatch(ops, rows);
    ops.prepareInputs(requests, null, 0, 16, batch);
    const tokens = tokensOf(rows);
    const read = (name: 'tokenIds' | 'positions' | 'cacheSlots') =>
      Array.from(ops.readInts(batch[name], batch.numTokens));
    expect(read('tokenIds')).toEqual(tokens.map((t) => tokenIds[t.slot][t.position]));
    expect(read('positions')).toEqual(tokens.map((t) => t.position));
    expect(read('cacheSlots')).toEqual(tokens.map((t) => layout.cacheSlot(t.slot, t.position)));
  });

  it('first applies block table updates, which persist', () => {
    const requests = layout.requests(ops, tokenIds, 1000);
    const batch = makeBatch(ops, rows);
    // (slot, index in its block table, block)
    const updates = ops.ints([2, 2, 77, 0, 2, 5, 1, 3, 9]);
    ops.prepareInputs(requests, updates, 3, 16, batch);
    const cacheSlots = ops.readInts(batch.cacheSlots, batch.numTokens);
    expect(cacheSlots[2]).toBe(77 * 16); // slot 2, position 32
    expect(cacheSlots[21]).toBe(5 * 16 + 7); // slot 0, position 39
    expect(ops.readRequest(requests, 1).blockTable[3]).toBe(9);
    ops.prepareInputs(requests, null, 0, 16, batch);
    expect(ops.readInts(batch.cacheSlots, batch.numTokens)).toEqual(cacheSlots);
  });

  // One block of threads prepares a small batch, and a thread of many blocks each token of a large one.
  it.each([20, 1500])('computes the cache slots of each group, of %i tokens', (numTokens) => {
    const numGroups = 3;
    const lengths = [numTokens + 5, 40];
    const layouts = Array.from({ length: numGroups }, () => new Layout(16, lengths, random));
    const requests = ops.makeRequests({
      vocabSize: 1000,
      maxNumSeqs: 2,
      maxModelLen: Math.max(...lengths),
      blockSize: 16,
      maxLogprobs: 0,
      numKvCacheGroups: numGroups,
    });
    lengths.forEach((length, slot) => {
      const numBlocks = Math.ceil(length / 16);
      const blockIds = Int32Array.from(
        { length: numBlocks * numGroups },
        (_, at) =>
          layouts[at % numGroups].blockTables[slot].at(Math.floor(at / numGroups)) as number,
      );
      const ids = Int32Array.from({ length }, () => random.below(1000));
      const request = { tokenIds: ids, numPromptTokens: length, blockIds, sampling: GREEDY };
      ops.addRequest(requests, slot, request, layouts[0].numBlocks);
    });
    const rows = [
      { slot: 1, numComputed: 39, numScheduled: 1 },
      { slot: 0, numComputed: 5, numScheduled: numTokens },
    ];
    const cacheSlotStride = numTokens + 9;
    const cacheSlots = ops.zeros(numGroups * cacheSlotStride, 'int32');
    const batch = { ...makeBatch(ops, rows), cacheSlots, cacheSlotStride };
    // Slot 1's block 2 in the last group.
    const updates = ops.ints([2 * 2 + 1, 2, 77]);
    ops.prepareInputs(requests, updates, 1, 16, batch);
    const slots = ops.readInts(cacheSlots, numGroups * cacheSlotStride);
    layouts[2].blockTables[1][2] = 77;
    layouts.forEach((layout, group) => {
      const start = group * cacheSlotStride;
      expect(Array.from(slots.subarray(start, start + batch.numTokens))).toEqual(
        tokensOf(rows).map(({ slot, position }) => layout.cacheSlot(slot, position)),
      );
    });
  });
});
