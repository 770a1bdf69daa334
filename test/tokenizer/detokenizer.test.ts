import { readFileSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import fc from 'fast-check';
import { IncrementalDetokenizer } from '../../lib/tokenizer/detokenizer';
import { Tokenizer } from '../../lib/tokenizer/tokenizer';

const isPrintable = (byte: number) =>
  (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad && byte <= 0xff);
const BYTES = Array.from({ length: 256 }, (_, byte) => byte);
/** Bytes in token order: GPT-2's byte-level alphabet, sorted. */
const ALPHABET = [...BYTES.filter(isPrintable), ...BYTES.filter((byte) => !isPrintable(byte))];
/** The byte-level character of a byte. */
const letterOf = (byte: number) =>
  String.fromCharCode(isPrintable(byte) ? byte : 256 + ALPHABET.indexOf(byte) - 188);

/** Tokens of several bytes that start or end inside characters. */
const PARTS = {
  'start of an emoji': [0xf0, 0x9f, 0x98],
  'end of one, start of the next': [0x80, 0xf0, 0x9f, 0x98],
  'end of one, and text': [0x80, 0x20, 0x6f, 0x6b],
};

const tokensOf = (...bytes: number[]) => bytes.map((byte) => ALPHABET.indexOf(byte));
const tokensOfText = (text: string) => tokensOf(...Buffer.from(text));
/** The platform's UTF-8 decoding. */
const textOf = (bytes: Iterable<number>) =>
  new TextDecoder('utf-8', { ignoreBOM: true }).decode(Uint8Array.from(bytes));

describe('IncrementalDetokenizer', () => {
  let folder: string;
  let tokenizer: Tokenizer;
  let end: number;
  let part: (name: keyof typeof PARTS) => number;

  beforeAll(async () => {
    const file = path.join(__dirname, 'byte-bpe', 'tokenizer.json');
    const json = JSON.parse(readFileSync(file, 'utf8')) as {
      model: { vocab: Record<string, number> };
    };
    const first = 1000;
    Object.values(PARTS).forEach((bytes, i) => {
      json.model.vocab[bytes.map(letterOf).join('')] = first + i;
    });
    folder = await mkdtemp(path.join(tmpdir(), 'uniproc-detokenizer-'));
    await writeFile(path.join(folder, 'tokenizer.json'), JSON.stringify(json));
    tokenizer = await Tokenizer.load(folder);
    [end] = await tokenizer.encode('<|end|>', { addSpecialTokens: false });
    part = (name) => first + Object.keys(PARTS).indexOf(name);
  });

  afterAll(() => rm(folder, { recursive: true }));

  it('buffers a character until its last byte', () => {
    const detokenizer = new IncrementalDetokenizer(tokenizer);
    expect(tokensOfText('é猫😀').map((id) => detokenizer.append([id]))).toEqual([
      '',
      'é',
      '',
      '',
      '猫',
      '',
      '',
      '',
      '😀',
    ]);
    expect(detokenizer.finish()).toBe('');
  });

  it('appends several tokens at once', () => {
    const detokenizer = new IncrementalDetokenizer(tokenizer);
    expect(detokenizer.append(Int32Array.from(tokensOfText('a 猫 b').slice(0, -3)))).toBe('a ');
    expect(detokenizer.append(tokensOfText('a 猫 b').slice(-3))).toBe('猫 b');
  });

  it('returns complete characters of tokens that end inside another', () => {
    const detokenizer = new IncrementalDetokenizer(tokenizer);
    expect(detokenizer.append([part('start of an emoji')])).toBe('');
    expect(detokenizer.append([part('end of one, start of the next')])).toBe('😀');
    expect(detokenizer.append([part('end of one, and text')])).toBe('😀 ok');
    expect(detokenizer.finish()).toBe('');
  });

  it('returns each character of a long run at once', () => {
    const detokenizer = new IncrementalDetokenizer(tokenizer);
    detokenizer.append([part('start of an emoji')]);
    for (let i = 0; i < 100; i++) {
      expect(detokenizer.append([part('end of one, start of the next')])).toBe('😀');
    }
    expect(detokenizer.append([part('end of one, and text')])).toBe('😀 ok');
  });

  it('replaces an incomplete character at the end', () => {
    const detokenizer = new IncrementalDetokenizer(tokenizer);
    expect(detokenizer.append(tokensOf(0x61, 0xf0, 0x9f))).toBe('a');
    expect(detokenizer.finish()).toBe('\ufffd');
    expect(detokenizer.finish()).toBe('');
  });

  it('replaces an incomplete character before other text', () => {
    const detokenizer = new IncrementalDetokenizer(tokenizer);
    expect(detokenizer.append(tokensOf(0xf0, 0x9f))).toBe('');
    expect(detokenizer.append(tokensOf(0x61))).toBe('\ufffda');
  });

  it('does not buffer bytes that cannot become a character', () => {
    const detokenizer = new IncrementalDetokenizer(tokenizer);
    const deltas = tokensOf(...new Array<number>(500).fill(0x98)).map((id) =>
      detokenizer.append([id]),
    );
    expect(deltas).toEqual(new Array(500).fill('\ufffd'));
    expect(detokenizer.finish()).toBe('');
  });

  it('decodes a valid character anywhere in a run of invalid bytes', () => {
    for (let length = 0; length < 40; length++) {
      const detokenizer = new IncrementalDetokenizer(tokenizer);
      const run = new Array<number>(length).fill(0x98);
      const ids = tokensOf(...run, ...Buffer.from('😀é'));
      expect(ids.map((id) => detokenizer.append([id])).join('')).toBe(
        '\ufffd'.repeat(length) + '😀é',
      );
    }
  });

  it('looks up tokens of complete characters', () => {
    const decode = jest.spyOn(tokenizer, 'decode');
    const ids = tokensOfText('plain text');
    expect(new IncrementalDetokenizer(tokenizer).append(ids)).toBe('plain text');
    decode.mockClear();
    expect(new IncrementalDetokenizer(tokenizer).append(ids)).toBe('plain text');
    expect(decode).not.toHaveBeenCalled();
    decode.mockRestore();
  });

  it('omits special tokens, also inside a character', () => {
    const detokenizer = new IncrementalDetokenizer(tokenizer);
    const [first, ...others] = tokensOfText('猫');
    expect(detokenizer.append([end, first, end, ...others, end])).toBe('猫');
  });

  it('includes special tokens with skipSpecialTokens false', () => {
    const detokenizer = new IncrementalDetokenizer(tokenizer, false);
    const [first] = tokensOfText('猫');
    expect(detokenizer.append([...tokensOfText('a'), end, first, end])).toBe(
      'a<|end|>\ufffd<|end|>',
    );
  });

  it('decodes any bytes as the platform does', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 60 }), (bytes) => {
        const detokenizer = new IncrementalDetokenizer(tokenizer);
        const deltas = tokensOf(...bytes).map((id) => detokenizer.append([id]));
        expect(deltas.join('') + detokenizer.finish()).toBe(textOf(bytes));
      }),
      { numRuns: 500 },
    );
  });

  it('returns only final text, and every character without delay', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary', maxLength: 20 }), (text) => {
        fc.pre(!text.includes('\ufffd'));
        const detokenizer = new IncrementalDetokenizer(tokenizer);
        let given = '';
        for (const character of text) {
          const ids = tokensOfText(character);
          const deltas = ids.map((id) => detokenizer.append([id]));
          expect(deltas.slice(0, -1).join('')).toBe('');
          given += deltas[deltas.length - 1];
        }
        expect(given).toBe(text);
      }),
      { numRuns: 500 },
    );
  });
});
