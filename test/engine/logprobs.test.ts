/** The text that tokens add, with a byte-fallback vocabulary. */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { LogprobsDecoder } from '../../lib/engine/logprobs';
import { Tokenizer } from '../../lib/tokenizer/tokenizer';
import type { LogprobsLists } from '../../lib/contract/modelRunnerOutput';

const folder = path.join(__dirname, '..', 'tokenizer', 'sentencepiece');
let tokenizer: Tokenizer;
let vocabulary: Map<string, number>;

beforeAll(async () => {
  tokenizer = await Tokenizer.load(folder);
  const { model } = JSON.parse(readFileSync(path.join(folder, 'tokenizer.json'), 'utf8')) as {
    model: { vocab: Record<string, number> | [string, number][] };
  };
  vocabulary = new Map(
    Array.isArray(model.vocab)
      ? model.vocab.map(([token], id) => [token, id])
      : Object.entries(model.vocab),
  );
});

afterAll(() => tokenizer.close());

const byteToken = (byte: number) =>
  vocabulary.get(`<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`) as number;

/** Text and bytes of each token in turn. */
function describeAll(tokenIds: number[]) {
  const decoder = new LogprobsDecoder('0', tokenizer);
  return tokenIds.map((tokenId) => {
    const row: LogprobsLists = {
      width: 1,
      tokenIds: Int32Array.of(tokenId),
      logprobs: Float32Array.of(-1),
      ranks: Int32Array.of(1),
    };
    const { decodedToken, bytes } = [...decoder.next(row, 0, 0).values()][0];
    return [decodedToken, bytes];
  });
}

test('bytes of a character have no text until the last, which has the character', () => {
  expect(describeAll([...Buffer.from('😀é')].map(byteToken))).toEqual([
    ['', [0xf0]],
    ['', [0x9f]],
    ['', [0x98]],
    ['😀', [0x80]],
    ['', [0xc3]],
    ['é', [0xa9]],
  ]);
});

test('a byte that is a whole character has its text', () => {
  expect(describeAll([0x0a, 0x61].map(byteToken))).toEqual([
    ['\n', undefined],
    ['a', undefined],
  ]);
});

test('an incomplete character is replaced at the next token', () => {
  const letter = [...vocabulary].find(([token]) => token === '▁a')?.[1] as number;
  expect(describeAll([byteToken(0xe2), byteToken(0x82), letter])).toEqual([
    ['', [0xe2]],
    ['', [0x82]],
    // transformers decodes each byte of a broken run as U+FFFD.
    ['\ufffd\ufffd a', undefined],
  ]);
});
