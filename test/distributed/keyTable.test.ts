import { KeyTable } from '../../lib/distributed/keyTable';

it('a value holds no memory beyond its own bytes', () => {
  const table = new KeyTable();
  const pooled = Buffer.from('42');
  expect(pooled.buffer.byteLength).toBeGreaterThan(2);
  table.set('key', pooled);
  expect(table.get('key')?.toString()).toBe('42');
  expect(table.get('key')?.buffer.byteLength).toBe(2);
});
