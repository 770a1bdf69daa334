/** docs/architecture.md against the tree and the table of rooms. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';

// eslint-disable-next-line @typescript-eslint/no-require-imports
const { LIB_ORDER, NATIVE_ROOMS } = require('../../scripts/rooms') as Record<string, string[]>;

const ROOT = path.join(__dirname, '..', '..');
const page = readFileSync(path.join(ROOT, 'docs', 'architecture.md'), 'utf8');

/** The paths that the section 'Rooms' lists, by their indentation. */
function listedPaths(): string[] {
  const [, block] = /## Rooms\n\n```\n(.*?)```/s.exec(page) ?? [];
  const folders: string[] = [];
  return block
    .trimEnd()
    .split('\n')
    .filter((line) => !/^\S+ {2}\S+\//.test(line)) // the last line names several
    .map((line) => {
      const depth = (line.length - line.trimStart().length) / 2;
      const [name] = line.trim().split(' ');
      folders.length = depth;
      folders.push(name);
      return folders.join('');
    });
}

const folders = (room: string) =>
  readdirSync(path.join(ROOT, room), { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map(({ name }) => `${room}/${name}/`);

test('every path that the page lists exists', () => {
  const paths = listedPaths();
  expect(paths.length).toBeGreaterThan(25);
  expect(paths.filter((each) => !existsSync(path.join(ROOT, each)))).toEqual([]);
});

test.each(['lib', 'native'])('the page lists every folder of %s/', (room) => {
  expect(listedPaths()).toEqual(expect.arrayContaining(folders(room)));
});

test('the page gives the order of rooms that lint holds', () => {
  expect(page).toContain(`${LIB_ORDER.join(' → ')}.`);
  expect(page).toContain(`${[...NATIVE_ROOMS].reverse().join(' → ')}.`);
});
