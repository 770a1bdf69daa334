import { once } from 'node:events';
import { LinePrefixer } from '../../lib/distributed/linePrefixer';

/** The output for these chunks. */
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

it('emits a line when its newline arrives', async () => {
  const lines = new LinePrefixer('> ');
  lines.write('a');
  expect(lines.read()).toBeNull();
  lines.write('b\nc');
  expect(String(lines.read())).toBe('> ab\n');
  lines.end();
  await once(lines, 'readable');
  expect(String(lines.read())).toBe('> c\n');
});

it('joins a line from any number of chunks', async () => {
  const dots = Array<Buffer>(300_000).fill(Buffer.from('.'));
  const whole = await prefixed([...dots, Buffer.from('\n')]);
  expect(whole.toString()).toBe(`> ${'.'.repeat(dots.length)}\n`);
});

it('splits a line above 16 MiB', async () => {
  const pieces = Array<Buffer>(40).fill(Buffer.alloc(MIB, 'x'));
  const lines = (await prefixed([...pieces, Buffer.from('\nnext\n')])).toString().split('\n');
  expect(lines.map((line) => line.length)).toEqual([17 * MIB + 2, 17 * MIB + 2, 6 * MIB + 2, 6, 0]);
  expect(lines[3]).toBe('> next');
  expect(lines.join('').replaceAll('> ', '')).toBe('x'.repeat(40 * MIB) + 'next');
});
