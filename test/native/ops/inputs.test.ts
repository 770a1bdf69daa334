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
});
