import { readFileSync } from 'node:fs';
import path from 'node:path';
import { IncrementalDetokenizer } from '../../lib/tokenizer/detokenizer';
import { StreamDecoder } from '../../lib/tokenizer/streamDecoder';
import { TokenTable } from '../../lib/tokenizer/tokenTable';
import { packVocabulary, Vocabulary } from '../../lib/tokenizer/vocabulary';

/** Recorded from Python's tokenizers by make_cases.py; null if that library panics. */
interface Recorded {
  vocab: string[];
  special: string[];
  lists: number[][];
  decoders: Record<
    string,
    { decoder: unknown; kept: (string | null)[]; skipped: (string | null)[] }
  >;
}

const recorded = JSON.parse(
  readFileSync(path.join(__dirname, 'decoders.json'), 'utf8'),
) as Recorded;

const vocabulary = new Vocabulary(
  packVocabulary(
    new Map(recorded.vocab.map((token, id) => [id, token])),
    new Set(recorded.special),
  ),
);

describe.each(Object.entries(recorded.decoders))('decoder %s', (_, { decoder, kept, skipped }) => {
  const tokens = new TokenTable(vocabulary, new StreamDecoder(decoder));

  /** Decodes token by token. */
  const decode = (ids: number[], skipSpecialTokens: boolean, continues = false) => {
    const detokenizer = new IncrementalDetokenizer({ tokens }, skipSpecialTokens, { continues });
    return ids.map((id) => detokenizer.append([id])).join('') + detokenizer.finish();
  };

  it.each([
    ['kept', false, kept],
    ['skipped', true, skipped],
  ])("equals the library's decoding token by token, special tokens %s", (_, skip, texts) => {
    const differences = recorded.lists
      .map((ids, i) => ({ ids, actual: decode(ids, skip), expected: texts[i] }))
      .filter(({ actual, expected }) => expected !== null && actual !== expected);
    expect(differences).toEqual([]);
  });

  it('returns the same text for single tokens and for all at once', () => {
    for (const ids of recorded.lists) {
      const detokenizer = new IncrementalDetokenizer({ tokens }, false, { continues: false });
      expect(detokenizer.append(ids) + detokenizer.finish()).toBe(decode(ids, false));
    }
  });
});

describe('a continuation of a text', () => {
  const continuation = (name: string, ...tokens: string[]) => {
    const { decoder } = recorded.decoders[name];
    const table = new TokenTable(vocabulary, new StreamDecoder(decoder));
    const detokenizer = new IncrementalDetokenizer({ tokens: table });
    const ids = tokens.map((token) => recorded.vocab.indexOf(token));
    return detokenizer.append(ids) + detokenizer.finish();
  };

  it.each([
    ['as Llama 2', ['▁a', '▁a'], ' a a'],
    ['as llm-jp', ['▁a'], ' a'],
    ['Metaspace always', ['▁a'], ' a'],
    ['WordPiece', ['a', '##b'], ' ab'],
    ['WordPiece', ['##b'], 'b'],
    ['none', ['a', 'b'], ' a b'],
    ['CTC', ['a', 'a', 'b'], 'ab'],
    ['Fuse, ByteLevel', ['a'], 'a'],
  ])('keeps its first space: %s of %j', (name, tokens, text) => {
    expect(continuation(name, ...tokens)).toBe(text);
  });
});
