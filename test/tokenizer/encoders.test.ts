import { readFileSync } from 'node:fs';
import path from 'node:path';
import { Tokenizer } from '../../lib/tokenizer/tokenizer';
import { folderWith } from '../support/folder';

/** Recorded from Python's tokenizers by make_cases.py. */
interface Recorded {
  name: string;
  tokenizer: object;
  cases: { text: string; ids: number[]; withSpecial: number[]; decoded: string; kept: string }[];
}

const recorded = JSON.parse(
  readFileSync(path.join(__dirname, 'encoders.json'), 'utf8'),
) as Recorded[];

describe.each(recorded)('a tokenizer with $name', ({ tokenizer: file, cases }) => {
  let tokenizer: Tokenizer;

  beforeAll(async () => {
    tokenizer = await Tokenizer.load(await folderWith({ 'tokenizer.json': file }));
  });

  afterAll(() => tokenizer.close());

  it.each(cases)('encodes $text', async ({ text, ids, withSpecial }) => {
    expect(await tokenizer.encode(text, { addSpecialTokens: false })).toEqual(ids);
    expect(await tokenizer.encode(text)).toEqual(withSpecial);
  });

  it('encodes all texts as a batch', async () => {
    const texts = cases.map(({ text }) => text);
    expect(await tokenizer.encodeBatch(texts)).toEqual(cases.map(({ withSpecial }) => withSpecial));
  });

  it.each(cases)('decodes to $kept', async ({ withSpecial, decoded, kept }) => {
    expect(await tokenizer.decode(withSpecial)).toBe(decoded);
    expect(await tokenizer.decode(withSpecial, { skipSpecialTokens: false })).toBe(kept);
  });

  it.each(cases)('decodes to $kept token by token', ({ withSpecial, kept }) => {
    const decoder = tokenizer.incrementalDecoder({ skipSpecialTokens: false });
    const deltas = withSpecial.map((id) => decoder.append([id]));
    expect(deltas.join('') + decoder.finish()).toBe(kept);
  });

  it('has a minNumTokens of at most the number of tokens', () => {
    const tooMany = cases.filter(({ text, ids }) => tokenizer.minNumTokens(text) > ids.length);
    expect(tooMany).toEqual([]);
  });
});
