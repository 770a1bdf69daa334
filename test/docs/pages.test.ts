/** What the pages of documentation name is there: pages, files, commands, families. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { FAMILIES } from '../../lib/model/registry';

const ROOT = path.resolve(__dirname, '..', '..');
const read = (file: string) => readFileSync(path.join(ROOT, file), 'utf8');
const { scripts } = JSON.parse(read('package.json')) as { scripts: Record<string, string> };

const pages = [
  'CHANGELOG.md',
  'CONTRIBUTING.md',
  ...readdirSync(path.join(ROOT, 'docs')).map((page) => `docs/${page}`),
];

/** As GitHub makes an anchor of a heading. */
const anchorOf = (heading: string) =>
  heading
    .toLowerCase()
    .replace(/[^\p{L}\p{N} _-]/gu, '')
    .replaceAll(' ', '-');

describe.each(pages)('%s', (page) => {
  const text = read(page);

  test('links to pages and headings that are there', () => {
    for (const [, target] of text.matchAll(/\]\((?!https?:)([^)\s]+)\)/g)) {
      const [file, anchor] = target.split('#');
      const full = file === '' ? page : path.join(path.dirname(page), file);
      expect([target, existsSync(path.join(ROOT, full))]).toEqual([target, true]);
      if (!anchor) continue;
      const headings = [...read(full).matchAll(/^#+ (.+)$/gm)].map(([, heading]) => heading);
      expect(headings.map(anchorOf)).toContain(anchor);
    }
  });

  test('names scripts of package.json', () => {
    for (const [, script] of text.matchAll(/npm run ([\w:-]+)/g)) {
      expect(Object.keys(scripts)).toContain(script);
    }
  });
});

describe.each(['CONTRIBUTING.md', 'docs/adding-a-model.md'])('%s', (page) => {
  const text = read(page);

  test('names files that are there', () => {
    const named = [...text.matchAll(/`((?:lib|native|test|scripts|docs|\.ci)\/[\w./-]*)`/g)];
    expect(named.length).toBeGreaterThan(5);
    for (const [, file] of named) {
      expect([file, existsSync(path.join(ROOT, file))]).toEqual([file, true]);
    }
  });
});

describe('docs/adding-a-model.md', () => {
  const page = read('docs/adding-a-model.md');

  test('shows the whole of a family as it stands', () => {
    const [, example] = /```ts\n(.+?)```/s.exec(page) ?? [];
    expect(read('lib/model/families/mistral.ts')).toContain(example);
  });

  test('names parts of the code by their names there', () => {
    const sources = ['lib', 'native', 'test'].flatMap((folder) =>
      readdirSync(path.join(ROOT, folder), { recursive: true, encoding: 'utf8' })
        .filter((file) => /\.(ts|h|cpp|cu|py)$/.test(file) && !file.startsWith('docs/'))
        .map((file) => read(path.join(folder, file))),
    );
    const code = sources.join('\n');
    const names = [
      ...page.replace(/```.*?```/gs, '').matchAll(/`(\w+)(?:::(\w+))?(?:\([\w, ]*\))?`/g),
    ];
    expect(names.length).toBeGreaterThan(30);
    for (const [, name, member = name] of names) {
      expect([name, new RegExp(`\\b${name}\\b`).test(code)]).toEqual([name, true]);
      expect([member, new RegExp(`\\b${member}\\b`).test(code)]).toEqual([member, true]);
    }
  });

  test('has every field of a family', () => {
    const [, body] =
      /export interface Family \{(.+?)^\}/ms.exec(read('lib/model/families/family.ts')) ?? [];
    const fields = [...body.matchAll(/^ {2}(\w+)[(:]/gm)].map(([, name]) => name);
    expect(fields.length).toBeGreaterThan(3);
    for (const field of fields) expect(page).toMatch(new RegExp(`^\\| \`${field}\\b`, 'm'));
  });

  test('has every function that a block must have', () => {
    const [, body] = /^class Block \{(.+?)^\};/ms.exec(read('native/model/blocks/block.h')) ?? [];
    const functions = [...body.matchAll(/virtual \w+ (\w+)\(/g)].map(([, name]) => name);
    expect(functions.length).toBeGreaterThan(2);
    for (const name of functions) expect(page).toMatch(new RegExp(`^\\| \`${name}\\(`, 'm'));
  });
});

test('docs/checkpoints.md names every architecture', () => {
  const page = read('docs/checkpoints.md');
  for (const architecture of FAMILIES.keys()) expect(page).toContain(`\`${architecture}\``);
});

test('the changelog has the form of Keep a Changelog', () => {
  const headings = [...read('CHANGELOG.md').matchAll(/^(#{2,3}) (.+)$/gm)];
  const kinds = ['Added', 'Changed', 'Deprecated', 'Removed', 'Fixed', 'Security'];
  for (const [, level, heading] of headings) {
    if (level === '###') expect(kinds).toContain(heading);
    else expect(heading).toMatch(/^\[Unreleased\]$|^\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d$/);
  }
});
