import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';

const ROOT = path.join(__dirname, '..', '..');
const LOADER = path.join(ROOT, 'test', 'executor', 'requireTypescript.js');
const SOURCE = path.join(ROOT, 'test', 'tokenizer', 'byte-bpe');

interface Recorded {
  encode: { text: string; ids: number[]; withSpecial: number[] }[];
  decode: { ids: number[]; text: string; withSpecial: string }[];
}

let folder: string;

/** Runs the script on the folder; returns its output and exit status. */
function textParity(...args: string[]) {
  const script = path.join(ROOT, 'scripts', 'text-parity.js');
  const result = spawnSync(process.execPath, ['--require', LOADER, script, ...args], {
    encoding: 'utf8',
  });
  return { status: result.status, output: result.stdout + result.stderr };
}

/** Creates a tokenizer folder with its expected.json, modified by `change`. */
function layOut(change: (cases: { ids: number[] }[]) => void): void {
  const recorded = JSON.parse(readFileSync(path.join(SOURCE, 'expected.json'), 'utf8')) as Recorded;
  const textOf = new Map(recorded.decode.map((each) => [each.ids.join(), each]));
  const cases = recorded.encode.map(({ text, ids, withSpecial }) => {
    const decoded = textOf.get(withSpecial.join());
    return {
      text,
      ids,
      idsWithSpecial: withSpecial,
      // Remove the first special token from the text.
      decoded: decoded?.withSpecial.replace('<|begin|>', ''),
      decodedWithSpecialSkipped: decoded?.text,
    };
  });
  const randomIds = recorded.decode.map(({ ids, text, withSpecial }) => ({
    ids,
    decoded: withSpecial,
    decodedSkippingSpecial: text,
  }));
  change(cases);
  const inside = path.join(folder, 'tokenizers', 'byte-bpe');
  mkdirSync(inside, { recursive: true });
  cpSync(path.join(SOURCE, 'tokenizer.json'), path.join(inside, 'tokenizer.json'));
  writeFileSync(path.join(inside, 'expected.json'), JSON.stringify({ cases, randomIds }));
}

beforeEach(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'uniproc-parity-'));
});

afterEach(() => rmSync(folder, { recursive: true }));

describe('npm run text-parity', () => {
  it('counts comparisons, and finds no difference', () => {
    layOut(() => undefined);
    const { status, output } = textParity(folder);
    expect(output).toMatch(/^tokenizers\/byte-bpe +\d{3} +0$/m);
    expect(output).toMatch(/^all +\d{3} +0$/m);
    expect(status).toBe(0);
  });

  it('prints a difference, and exits with 1', () => {
    layOut((cases) => cases[6].ids.push(3));
    const { status, output } = textParity(folder);
    expect(output).toMatch(/^all +\d{3} +[1-9]$/m);
    expect(output).toContain('ids of " a"');
    expect(status).toBe(1);
  });

  it('counts a rejected tokenizer as a difference', () => {
    layOut(() => undefined);
    writeFileSync(path.join(folder, 'tokenizers', 'byte-bpe', 'tokenizer.json'), '{}');
    const { status, output } = textParity(folder);
    expect(output).toContain('Model missing');
    expect(status).toBe(1);
  });

  it.each([
    [[], 'usage: '],
    [['/nowhere'], '/nowhere has no tokenizers or templates to compare'],
  ])('says what is wrong with %j', (args, message) => {
    const { status, output } = textParity(...args);
    expect(output).toContain(message);
    expect(status).toBe(2);
  });

  it('times prompts, also without Python', () => {
    const { status, output } = textParity('--times', SOURCE, '--python', '/no/python');
    expect(output).toContain('/no/python could not be timed');
    for (const row of ['load', '13 kB', '100 kB', '1 MB']) expect(output).toContain(row);
    expect(status).toBe(0);
  });
});
