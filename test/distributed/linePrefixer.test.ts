import { once } from 'node:events';
import { LinePrefixer } from '../../lib/distributed/linePrefixer';

/** All that comes out when these pieces go in. */
async function prefixed(pieces: Iterable<Buffer>): Promise<Buffer> {
  const lines = new LinePrefixer('> ');
  const out: Buffer[] = [];
  lines.on('data', (chunk: Buffer) => out.push(chunk));
  for (const piece of pieces) if (!lines.write(piece)) await once(lines, 'drain');
  lines.end();
  await once(lines, 'end');
  return Buffer.concat(out);
}

const MIB = 2 ** 20;

it('gives a line on once its end is there', async () => {
  const lines = new LinePrefixer('> ');
  lines.write('a');
  expect(lines.read()).toBeNull();
  lines.write('b\nc');
  expect(String(lines.read())).toBe('> ab\n');
  lines.end();
  await once(lines, 'readable');
  expect(String(lines.read())).toBe('> c\n');
});

it('takes a line in any number of pieces', async () => {
  const dots = Array<Buffer>(300_000).fill(Buffer.from('.'));
  const whole = await prefixed([...dots, Buffer.from('\n')]);
  expect(whole.toString()).toBe(`> ${'.'.repeat(dots.length)}\n`);
});

it('breaks a line above 16 MiB', async () => {
  const pieces = Array<Buffer>(40).fill(Buffer.alloc(MIB, 'x'));
  const lines = (await prefixed([...pieces, Buffer.from('\nnext\n')])).toString().split('\n');
  expect(lines.map((line) => line.length)).toEqual([17 * MIB + 2, 17 * MIB + 2, 6 * MIB + 2, 6, 0]);
  expect(lines[3]).toBe('> next');
  expect(lines.join('').replaceAll('> ', '')).toBe('x'.repeat(40 * MIB) + 'next');
});
