import path from 'node:path';
import { createUniprocConfig } from '../../lib/config/engineArgs';
import { SamplingParams, type SamplingParamsOptions } from '../../lib/config/samplingParams';
import type { UniprocConfig } from '../../lib/config/uniprocConfig';
import type { EngineInput } from '../../lib/engine/callInputs';
import { InputProcessor, type Prompt } from '../../lib/engine/inputProcessor';
import { InvalidRequestError } from '../../lib/errors';
import type { ChatMessage } from '../../lib/tokenizer/chatTemplate';
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

type Params = Parameters<InputProcessor['takePrompts']>[1];

/** Encodes a call's prompts as the engine does. */
async function process(
  by: InputProcessor,
  prompts: readonly Prompt[],
  params: Params,
): Promise<readonly EngineInput[]> {
  return by.takePrompts(prompts, params).encode(() => true);
}

async function renderChats(by: InputProcessor, chats: readonly ChatMessage[][]): Promise<unknown> {
  return by.takeChats(chats, undefined).encode(() => true);
}

async function processOne(
  prompt: unknown,
  options: SamplingParamsOptions = {},
): Promise<EngineInput> {
  return (await process(processor, [prompt as Prompt], new SamplingParams(options)))[0];
}

describe('a prompt of token ids', () => {
  test.each([[[5, 6, 7]], [Int32Array.of(5, 6, 7)]])('may be %p', async (promptTokenIds) => {
    const input = await processOne({ promptTokenIds });
    expect(input).toMatchObject({ prompt: null, promptTokenIds: Int32Array.of(5, 6, 7) });
  });

  test('may include its text', async () => {
    expect((await processOne({ promptTokenIds: [5], prompt: 'a' })).prompt).toBe('a');
  });

  test('must leave room for one generated token', async () => {
    const tokens = (length: number) => ({ promptTokenIds: new Array<number>(length).fill(3) });
    expect((await processOne(tokens(15))).promptTokenIds).toHaveLength(15);
    await expect(processOne(tokens(16))).rejects.toThrow(/16 tokens.*maxModelLen 16.*15/);
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
  ])('may not be %p', async (promptTokenIds, complaint) => {
    const attempt = () => processOne({ promptTokenIds });
    await expect(attempt()).rejects.toThrow(InvalidRequestError);
    await expect(attempt()).rejects.toThrow(complaint);
  });
});

test.each([[5], [null], [undefined], [Buffer.from('text')], [{}], [{ prompt: 5 }]])(
  'a prompt may not be %p',
  async (prompt) => {
    await expect(processOne(prompt)).rejects.toThrow(InvalidRequestError);
  },
);

test('the message names the prompt', async () => {
  const prompts = [{ promptTokenIds: [1] }, { promptTokenIds: [] }];
  await expect(process(processor, prompts, new SamplingParams())).rejects.toThrow(
    /^prompt 1: it is empty$/,
  );
});

describe('sampling parameters', () => {
  test.each<[SamplingParamsOptions, RegExp]>([
    [{ logprobs: 21 }, /logprobs is 21.*20/],
    [{ promptLogprobs: 21 }, /promptLogprobs is 21.*20/],
    [{ logitBias: { 5: 1, 320: 1 } }, /logitBias.*320.*0 to 319/],
    [{ allowedTokenIds: [319, 320] }, /allowedTokenIds.*320/],
    [{ stopTokenIds: [400] }, /stopTokenIds.*400/],
    [{ badWords: [[1], [2, 320]] }, /badWords.*320/],
  ])('%p are beyond the model', async (options, complaint) => {
    const attempt = () => processOne({ promptTokenIds: [1] }, options);
    await expect(attempt()).rejects.toThrow(InvalidRequestError);
    await expect(attempt()).rejects.toThrow(complaint);
  });

  test.each<[SamplingParamsOptions]>([[{ stop: 'x' }], [{ badWords: ['x'] }]])(
    '%p need a tokenizer',
    async (options) => {
      await expect(processOne({ promptTokenIds: [1] }, options)).rejects.toThrow(
        /skipTokenizerInit/,
      );
    },
  );

  test.each([
    ['greedy'],
    [7],
    [new Set([1])],
    [Promise.resolve({})],
    [new AbortController().signal],
  ])('may not be %p', async (params) => {
    await expect(process(processor, [{ promptTokenIds: [1] }], params as never)).rejects.toThrow(
      /^prompt 0: sampling parameters: expected an object or a SamplingParams/,
    );
  });

  test('may be one for all prompts or one for each', async () => {
    const prompts = [{ promptTokenIds: [1] }, { promptTokenIds: [2] }];
    const [a, b] = [new SamplingParams(), new SamplingParams()];
    const paramsOf = async (params: SamplingParams | SamplingParams[]) =>
      (await process(processor, prompts, params)).map(({ samplingParams }) => samplingParams);
    expect(await paramsOf(a)).toEqual([a, a]);
    expect((await paramsOf([a, b]))[1]).toBe(b);
    await expect(paramsOf([a])).rejects.toThrow(/2 prompts but 1/);
  });

  test("default to the model's own", async () => {
    const model = { ...config.model, generation: { temperature: 0.25, topK: 7 } };
    const [input] = await process(
      new InputProcessor({ ...config, model }, null),
      [{ promptTokenIds: [1] }],
      undefined,
    );
    expect(input.samplingParams).toMatchObject({ temperature: 0.25, topK: 7, maxTokens: 16 });
  });
});

describe('tokens that end an output', () => {
  test("are the parameters' stop tokens and the model's EOS", async () => {
    const input = await processOne({ promptTokenIds: [1] }, { stopTokenIds: [9, 2] });
    expect([...input.stopTokenIds].sort()).toEqual([2, 9]);
  });

  test("exclude the model's EOS with ignoreEos", async () => {
    const options = { stopTokenIds: [9], ignoreEos: true };
    expect((await processOne({ promptTokenIds: [1] }, options)).stopTokenIds).toEqual([9]);
  });
});

test('bad words that are token ids pass as they are', async () => {
  const input = await processOne({ promptTokenIds: [1] }, { badWords: [[4, 5], [6]] });
  expect(input.badWordsTokenIds).toEqual([[4, 5], [6]]);
});

describe('with a tokenizer', () => {
  let textProcessor: InputProcessor;

  beforeAll(async () => {
    textProcessor = new InputProcessor(config, await byteTokenizer());
  });

  const processText = async (prompt: Prompt, options: SamplingParamsOptions = {}) =>
    (await process(textProcessor, [prompt], new SamplingParams(options)))[0];

  test.each<[Prompt]>([['abc'], [{ prompt: 'abc' }]])('a prompt may be %p', async (prompt) => {
    const input = await processText(prompt);
    expect(input).toMatchObject({ prompt: 'abc', promptTokenIds: Int32Array.of(97, 98, 99) });
  });

  test('text that encodes to no token is refused as empty', async () => {
    await expect(processText('')).rejects.toThrow(/empty/);
  });

  test('stop strings are accepted', async () => {
    expect((await processText('abc', { stop: 'x' })).samplingParams.stop).toEqual(['x']);
  });

  test('a bad word has one spelling if a space is a token of its own', async () => {
    const { badWordsTokenIds } = await processText('abc', { badWords: ['bc', [1, 2]] });
    expect(badWordsTokenIds).toEqual([
      [98, 99],
      [1, 2],
    ]);
  });

  test('a bad word has two spellings if a space is part of the next token', async () => {
    const config = await createUniprocConfig({ model: STORIES });
    const tokenizer = await Tokenizer.load(STORIES);
    const spellings = await tokenizer.encodeBatch(['dog', ' dog'], { addSpecialTokens: false });
    expect(spellings.map(({ length }) => length)).toEqual([2, 1]);
    const params = new SamplingParams({ badWords: [' dog'] });
    const [input] = await process(
      new InputProcessor(config, tokenizer),
      [{ promptTokenIds: [1] }],
      params,
    );
    expect(input.badWordsTokenIds).toEqual(spellings);
  });

  test('a bad word of spaces alone is refused', async () => {
    await expect(processText('abc', { badWords: ['  '] })).rejects.toThrow(/badWords has/);
  });

  test('a conversation that cannot be rendered is named', async () => {
    const chats = [[{ role: 'user', content: 'Hello' }]];
    await expect(renderChats(textProcessor, chats)).rejects.toThrow(
      /^conversation 0: .*chat template/,
    );
  });
});

test('text needs a tokenizer', async () => {
  await expect(processOne('Once upon a time')).rejects.toThrow(/skipTokenizerInit/);
  await expect(renderChats(processor, [[{ role: 'user', content: 'Hello' }]])).rejects.toThrow(
    /skipTokenizerInit/,
  );
});
