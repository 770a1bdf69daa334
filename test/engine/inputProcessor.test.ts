import path from 'node:path';
import { createUniprocConfig } from '../../lib/config/engineArgs';
import { SamplingParams, type SamplingParamsOptions } from '../../lib/config/samplingParams';
import type { UniprocConfig } from '../../lib/config/uniprocConfig';
import { type EngineInput, InputProcessor, type Prompt } from '../../lib/engine/inputProcessor';
import { InvalidRequestError } from '../../lib/errors';
import { Tokenizer } from '../../lib/tokenizer/tokenizer';
import { byteTokenizer } from './byteTokenizer';

/** 320 tokens, 512 positions, token 2 ends a sequence. */
const CHECKPOINT = path.join(__dirname, '..', 'golden', 'checkpoints', 'llama2');

const STORIES = path.join(__dirname, '..', '..', 'models', 'stories');

let config: UniprocConfig;
let processor: InputProcessor;

beforeAll(async () => {
  config = await createUniprocConfig({
    model: CHECKPOINT,
    maxModelLen: 16,
    skipTokenizerInit: true,
  });
  processor = new InputProcessor(config, null);
});

function processOne(prompt: unknown, options: SamplingParamsOptions = {}): EngineInput {
  return processor.process([prompt as Prompt], new SamplingParams(options))[0];
}

describe('a prompt of token ids', () => {
  test.each([[[5, 6, 7]], [Int32Array.of(5, 6, 7)]])('may be %p', (promptTokenIds) => {
    const input = processOne({ promptTokenIds });
    expect(input).toMatchObject({ prompt: null, promptTokenIds: Int32Array.of(5, 6, 7) });
  });

  test('may say what it stands for', () => {
    expect(processOne({ promptTokenIds: [5], prompt: 'a' }).prompt).toBe('a');
  });

  test('may leave room for one token, and must', () => {
    const tokens = (length: number) => ({ promptTokenIds: new Array<number>(length).fill(3) });
    expect(processOne(tokens(15)).promptTokenIds).toHaveLength(15);
    expect(() => processOne(tokens(16))).toThrow(/16 tokens.*maxModelLen 16.*15/);
  });

  test.each([
    [[], /empty/],
    [[1, 2.5], /token 1 is 2\.5.*0 to 319/],
    [[320], /token 0 is 320.*0 to 319/],
    [[-1], /token 0 is -1/],
    [[NaN], /token 0 is NaN/],
    [['5'], /token 0 is '5'/],
    [[5n], /token 0 is 5n/],
    [Int32Array.of(0, 320), /token 1 is 320/],
    [7, /it is { promptTokenIds: 7 }/],
    ['a', /it is { promptTokenIds: 'a' }/],
    [null, /it is { promptTokenIds: null }/],
  ])('may not be %p', (promptTokenIds, complaint) => {
    const attempt = () => processOne({ promptTokenIds });
    expect(attempt).toThrow(InvalidRequestError);
    expect(attempt).toThrow(complaint);
  });
});

test.each([[5], [null], [undefined], [[5, 6]], [{}], [{ prompt: 5 }]])(
  'a prompt may not be %p',
  (prompt) => {
    expect(() => processOne(prompt)).toThrow(InvalidRequestError);
  },
);

test('the message says which prompt it is', () => {
  const prompts = [{ promptTokenIds: [1] }, { promptTokenIds: [] }];
  expect(() => processor.process(prompts, new SamplingParams())).toThrow(/^prompt 1: it is empty$/);
});

describe('sampling parameters', () => {
  test.each<[SamplingParamsOptions, RegExp]>([
    [{ logprobs: 21 }, /logprobs is 21.*20/],
    [{ promptLogprobs: 21 }, /promptLogprobs is 21.*20/],
    [{ logitBias: { 5: 1, 320: 1 } }, /logitBias.*320.*0 to 319/],
    [{ allowedTokenIds: [319, 320] }, /allowedTokenIds.*320/],
    [{ stopTokenIds: [400] }, /stopTokenIds.*400/],
    [{ badWords: [[1], [2, 320]] }, /badWords.*320/],
  ])('%p are beyond the model', (options, complaint) => {
    const attempt = () => processOne({ promptTokenIds: [1] }, options);
    expect(attempt).toThrow(InvalidRequestError);
    expect(attempt).toThrow(complaint);
  });

  test.each<[SamplingParamsOptions]>([[{ stop: 'x' }], [{ badWords: ['x'] }]])(
    '%p need a tokenizer',
    (options) => {
      expect(() => processOne({ promptTokenIds: [1] }, options)).toThrow(/skipTokenizerInit/);
    },
  );

  test('are made with the class', () => {
    const plain = { temperature: 0 } as unknown as SamplingParams;
    expect(() => processor.process([{ promptTokenIds: [1] }], plain)).toThrow(/new SamplingParams/);
  });

  test('may be one for all prompts, or one for each', () => {
    const prompts = [{ promptTokenIds: [1] }, { promptTokenIds: [2] }];
    const [a, b] = [new SamplingParams(), new SamplingParams()];
    const paramsOf = (params: SamplingParams | SamplingParams[]) =>
      processor.process(prompts, params).map(({ samplingParams }) => samplingParams);
    expect(paramsOf(a)).toEqual([a, a]);
    expect(paramsOf([a, b])[1]).toBe(b);
    expect(() => paramsOf([a])).toThrow(/2 prompts but 1/);
  });

  test("default to the model's own", () => {
    const model = { ...config.model, generation: { temperature: 0.25, topK: 7 } };
    const [input] = new InputProcessor({ ...config, model }, null).process(
      [{ promptTokenIds: [1] }],
      undefined,
    );
    expect(input.samplingParams).toMatchObject({ temperature: 0.25, topK: 7, maxTokens: 16 });
  });
});

describe('tokens that end an output', () => {
  test("are the parameters' and the model's", () => {
    const input = processOne({ promptTokenIds: [1] }, { stopTokenIds: [9, 2] });
    expect([...input.stopTokenIds].sort()).toEqual([2, 9]);
  });

  test("are not the model's with ignoreEos", () => {
    const options = { stopTokenIds: [9], ignoreEos: true };
    expect(processOne({ promptTokenIds: [1] }, options).stopTokenIds).toEqual([9]);
  });
});

test('bad words that are token ids pass as they are', () => {
  const input = processOne({ promptTokenIds: [1] }, { badWords: [[4, 5], [6]] });
  expect(input.badWordsTokenIds).toEqual([[4, 5], [6]]);
});

describe('with a tokenizer', () => {
  let textProcessor: InputProcessor;

  beforeAll(async () => {
    textProcessor = new InputProcessor(config, await byteTokenizer());
  });

  const processText = (prompt: Prompt, options: SamplingParamsOptions = {}) =>
    textProcessor.process([prompt], new SamplingParams(options))[0];

  test.each<[Prompt]>([['abc'], [{ prompt: 'abc' }]])('a prompt may be %p', (prompt) => {
    const input = processText(prompt);
    expect(input).toMatchObject({ prompt: 'abc', promptTokenIds: Int32Array.of(97, 98, 99) });
  });

  test('text without a token is empty', () => {
    expect(() => processText('')).toThrow(/empty/);
  });

  test('stop strings may be asked for', () => {
    expect(processText('abc', { stop: 'x' }).samplingParams.stop).toEqual(['x']);
  });

  test('a bad word has one spelling where a space is a token of its own', () => {
    const { badWordsTokenIds } = processText('abc', { badWords: ['bc', [1, 2]] });
    expect(badWordsTokenIds).toEqual([
      [98, 99],
      [1, 2],
    ]);
  });

  test('a bad word has two where a space is part of the token that follows', async () => {
    const tokenizer = await Tokenizer.load(STORIES);
    const spellings = ['dog', ' dog'].map((text) => [
      ...tokenizer.encode(text, { addSpecialTokens: false }),
    ]);
    expect(spellings.map(({ length }) => length)).toEqual([2, 1]);
    const params = new SamplingParams({ badWords: [' dog'] });
    const [input] = new InputProcessor(config, tokenizer).process(
      [{ promptTokenIds: [1] }],
      params,
    );
    expect(input.badWordsTokenIds).toEqual(spellings);
  });

  test('a bad word of spaces alone is none', () => {
    expect(() => processText('abc', { badWords: ['  '] })).toThrow(/badWords has/);
  });

  test('a conversation that cannot be put into words is named', () => {
    const chats = [[{ role: 'user', content: 'Hello' }]];
    expect(() => textProcessor.renderChats(chats)).toThrow(/^conversation 0: .*chat template/);
  });
});

test('text needs a tokenizer', () => {
  expect(() => processOne('Once upon a time')).toThrow(/skipTokenizerInit/);
  expect(() => processor.renderChats([[{ role: 'user', content: 'Hello' }]])).toThrow(
    /skipTokenizerInit/,
  );
});
