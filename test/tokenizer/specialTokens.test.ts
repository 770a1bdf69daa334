import { readFileSync } from 'node:fs';
import path from 'node:path';
import { CheckpointError } from '../../lib/errors';
import { Tokenizer } from '../../lib/tokenizer/tokenizer';
import { folderWith } from '../support/folder';

/** Recorded from transformers by make_cases.py. */
interface Recorded {
  name: string;
  files: Record<string, object>;
  named: Record<string, string>;
  ids: Record<string, number | undefined>;
  special: number[];
  cases: { text: string; ids: number[]; split: number[]; decoded: string }[];
}

const recorded = JSON.parse(
  readFileSync(path.join(__dirname, 'special.json'), 'utf8'),
) as Recorded[];

describe.each(recorded)('special tokens of $name', ({ files, named, ids, special, cases }) => {
  let tokenizer: Tokenizer;

  beforeAll(async () => {
    tokenizer = await Tokenizer.load(await folderWith(files));
  });

  afterAll(() => tokenizer.close());

  it('have the names and ids of transformers', () => {
    expect(tokenizer.specialTokens).toEqual(named);
    expect(tokenizer.specialTokenIds).toEqual(ids);
    expect(tokenizer.bosTokenId).toBe(ids.bos_token ?? null);
    expect(tokenizer.eosTokenId).toBe(ids.eos_token ?? null);
  });

  it('are skipped as by transformers', () => {
    const all = Array.from({ length: tokenizer.vocabSize }, (_, id) => id);
    expect(all.filter((id) => tokenizer.isSpecial(id))).toEqual(special);
  });

  it.each(cases)('are encoded in $text', async ({ text, ids, decoded }) => {
    expect(await tokenizer.encode(text)).toEqual(ids);
    expect(await tokenizer.decode(ids)).toBe(decoded);
  });

  it.each(cases)('are plain text with splitSpecialTokens: $text', async (each) => {
    expect(await tokenizer.encode(each.text, { splitSpecialTokens: true })).toEqual(each.split);
  });
});

describe('rejects', () => {
  it.each([
    ['tokenizer_config.json', { added_tokens_decoder: { x: '<a>' } }, 'added_tokens_decoder'],
    ['tokenizer_config.json', { added_tokens_decoder: { 1: 7 } }, 'added_tokens_decoder'],
    ['tokenizer_config.json', { extra_special_tokens: 7 }, 'extra_special_tokens is 7'],
    ['special_tokens_map.json', { pad_token: 7 }, 'pad_token is 7'],
    ['added_tokens.json', { '<a>': 'x' }, "the id of '<a>' is 'x'"],
  ])('%s with %j', async (file, content, message) => {
    const folder = await folderWith({
      ...recorded[0].files,
      'tokenizer_config.json': {},
      [file]: content,
    });
    const refused = Tokenizer.load(folder);
    await expect(refused).rejects.toThrow(CheckpointError);
    await expect(refused).rejects.toMatchObject({ file: path.join(folder, file) });
    await expect(refused).rejects.toThrow(message);
  });
});
