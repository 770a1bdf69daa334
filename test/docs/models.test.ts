/** docs/models.md is what scripts/models.js writes, and its ranks are those that the library accepts. */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { divisionFault } from '../../lib/model/division';
import { readTransformerConfig } from '../../lib/model/transformerConfig';

// eslint-disable-next-line @typescript-eslint/no-require-imports
const { text } = require('../../scripts/models') as { text: () => string };

const ROOT = path.join(__dirname, '..', '..');
const page = readFileSync(path.join(ROOT, 'docs', 'models.md'), 'utf8');

it('is up to date: npm run docs writes it', () => {
  expect(page).toBe(text());
});

const rows = [...page.matchAll(/^\| `\w+` \| (.+) \| ([\d, ]+) \| `(\S+)` \|$/gm)];

it.each(rows.map(([, , ranks, name]) => [name, ranks]))(
  '%s runs on %s ranks',
  async (name, ranks) => {
    const folder = path.join(ROOT, 'test', 'golden', 'checkpoints', name);
    const { spec } = await readTransformerConfig(folder, true);
    const accepted = [1, 2, 4].filter((size) => divisionFault(spec, size) === null);
    expect(ranks).toBe(accepted.join(', '));
  },
);
