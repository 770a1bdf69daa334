/** Calls as a newcomer writes them: plain objects for parameters, lists of token ids for prompts. */
import { LLM, type Params, type Prompt, SamplingParams } from '../lib';
import { stories } from './support/stories';

let llm: LLM;

beforeAll(async () => {
  llm = await LLM.create({ device: 'cpu', dtype: 'float32', maxModelLen: 256 });
});
afterAll(() => llm.shutdown());

const IDS = [5, 600, 7];
const GREEDY = { temperature: 0, maxTokens: 4 };

const outputsOf = async (prompts: Prompt | readonly Prompt[], params: Params | Params[] = GREEDY) =>
  (await llm.generate(prompts, params)).map(({ outputs }) => outputs[0].tokenIds);

let expected: number[];
beforeAll(async () => {
  [expected] = await outputsOf({ promptTokenIds: IDS }, new SamplingParams(GREEDY));
});

describe('parameters as a plain object', () => {
  test('are those of the class', async () => {
    expect(await outputsOf({ promptTokenIds: IDS }, GREEDY)).toEqual([expected]);
    const [{ outputs }] = await llm.generate('x', { maxTokens: 5, ignoreEos: true });
    expect(outputs[0].tokenIds).toHaveLength(5);
  });

  test('may be in a list, beside the class', async () => {
    const lists = await outputsOf(
      ['x', { promptTokenIds: IDS }, 'y'],
      [{ maxTokens: 2, ignoreEos: true }, new SamplingParams(GREEDY), { ...GREEDY, maxTokens: 3 }],
    );
    expect(lists.map(({ length }) => length)).toEqual([2, 4, 3]);
    expect(lists[1]).toEqual(expected);
  });

  test('stream', async () => {
    const tokenIds: number[] = [];
    for await (const delta of llm.stream(IDS, GREEDY)) tokenIds.push(...delta.tokenIds);
    expect(tokenIds).toEqual(expected);
  });

  test('chat', async () => {
    const [{ outputs }] = await llm.chat(stories.chat.messages, { temperature: 0, maxTokens: 3 });
    expect(outputs[0].tokenIds).toEqual(stories.chat.tokenIds.slice(0, 3));
  });

  test('are validated as by the class', async () => {
    const message = 'sampling parameters: temperature is -1; it must be a number of at least 0';
    expect(() => new SamplingParams({ temperature: -1 })).toThrow(message);
    await expect(llm.generate('x', { temperature: -1 })).rejects.toThrow(`prompt 0: ${message}`);
    await expect(llm.generate(['x', 'y'], [{}, { temperature: -1 }])).rejects.toThrow(
      `prompt 1: ${message}`,
    );
    await expect(llm.stream('x', { temperature: -1 }).next()).rejects.toThrow(message);
  });

  test('are read once, at the call', async () => {
    let numReads = 0;
    const params: { maxTokens: number; temperature: number; stopTokenIds: number[] } = {
      get maxTokens() {
        numReads++;
        return 4;
      },
      temperature: 0,
      stopTokenIds: [],
    };
    const call = outputsOf([IDS, IDS, 'x'], params);
    params.temperature = -1;
    params.stopTokenIds.push(expected[0]);
    expect(numReads).toBe(1);
    expect((await call).slice(0, 2)).toEqual([expected, expected]);
  });
});

describe('token ids as a prompt', () => {
  test.each<[string, Prompt]>([
    ['a list', IDS],
    ['an Int32Array', Int32Array.from(IDS)],
    ['a Uint32Array', Uint32Array.from(IDS)],
    ['a Uint16Array', Uint16Array.from(IDS)],
    ['a BigInt64Array', BigInt64Array.from(IDS.map(BigInt))],
  ])('%s is one prompt', async (_, prompt) => {
    expect(await outputsOf(prompt)).toEqual([expected]);
    expect(await outputsOf([prompt])).toEqual([expected]);
  });

  test('lists in a list are several prompts, also beside text', async () => {
    const all = await outputsOf([IDS, Int32Array.from(IDS), 'x', { promptTokenIds: IDS }]);
    expect([all[0], all[1], all[3]]).toEqual([expected, expected, expected]);
  });

  test.each<[unknown, RegExp]>([
    [[[]], /^prompt 0: it is empty$/],
    [new Int32Array(0), /^prompt 0: it is empty$/],
    [[5, 'x'], /^prompt 0: its token 1 is 'x'/],
    [[5, [6]], /^prompt 0: its token 1 is \[ 6 \]/],
    [['x', 5], /^prompt 1: it is 5; a prompt is a string, a list of token ids, /],
    [[NaN], /^prompt 0: its token 0 is NaN/],
    [[5n], /^prompt 0: its token 0 is 5n.*BigInt64Array/],
    [Float32Array.of(5), /Float32Array.*integers/],
    [Buffer.from('x'), /^prompt 0: it is a Buffer, .*toString/],
    [new Set(['x']), /^prompt 0: it is Set\(1\)/],
  ])('%p is refused', async (prompts, message) => {
    const call = llm.generate(prompts as Prompt, GREEDY);
    await expect(call).rejects.toMatchObject({ code: 'REQUEST_INVALID' });
    await expect(call).rejects.toThrow(message);
  });

  test('a stream takes one prompt', async () => {
    await expect(llm.stream(['x', 'y'] as never, GREEDY).next()).rejects.toThrow(
      /its token 0 is 'x'.*a list is one prompt's token ids/,
    );
  });
});

describe('the length of an answer', () => {
  test("a chat ends with the model's turn", async () => {
    const { messages, tokenIds } = stories.chat;
    expect(tokenIds.length).toBeGreaterThan(16);
    for (const params of [{ temperature: 0 }, new SamplingParams({ temperature: 0 })]) {
      const [{ outputs }] = await llm.chat(messages, params);
      expect(outputs[0]).toMatchObject({ tokenIds, finishReason: 'stop' });
    }
    const streamed: number[] = [];
    for await (const delta of llm.chatStream(messages, { temperature: 0 })) {
      streamed.push(...delta.tokenIds);
    }
    expect(streamed).toEqual(tokenIds);
  });

  test('a chat of several samples fills the context', async () => {
    const [output] = await llm.chat(stories.chat.messages, { n: 2, ignoreEos: true });
    const lengths = output.outputs.map(({ tokenIds }) => tokenIds.length);
    expect(lengths).toEqual([1, 1].map(() => 256 - output.promptTokenIds.length));
    expect(output.outputs[0].finishReason).toBe('length');
  });

  test('a conversation that leaves no room is refused by its place in the call', async () => {
    const { messages } = stories.chat;
    const long = [{ role: 'user', content: 'and '.repeat(300) }];
    await expect(llm.chat([messages, long], GREEDY)).rejects.toMatchObject({
      code: 'REQUEST_INVALID',
      message: expect.stringMatching(
        /^conversation 1: it has \d+ tokens; with maxModelLen 256 /,
      ) as string,
    });
  });

  test('minTokens of a chat may exceed 16', async () => {
    const [{ outputs }] = await llm.chat(stories.chat.messages, { minTokens: 100 });
    expect(outputs[0].tokenIds.length).toBeGreaterThan(100);
  });

  test('maxTokens of the caller counts', async () => {
    const [{ outputs }] = await llm.chat(stories.chat.messages, { maxTokens: 16, ignoreEos: true });
    expect(outputs[0].tokenIds).toHaveLength(16);
  });

  test('a text gets 16 tokens', async () => {
    const [{ outputs }] = await llm.generate('x', { ignoreEos: true });
    expect(outputs[0].tokenIds).toHaveLength(16);
  });
});
