/**
 * Values of another realm (a vm context's: its arrays, Maps and objects have constructors of their own)
 * are as good as this one's, in every option; a value whose content is not in its fields is refused.
 */
import vm from 'node:vm';
import {
  type ChatMessage,
  type ChatOptions,
  type EngineArgs,
  LLM,
  type Prompt,
  renderChatTemplate,
  SamplingParams,
  type SamplingParamsOptions,
} from '../lib';
import { createUniprocConfig } from '../lib/config/engineArgs';
import { checkReconfigureRequest } from '../lib/config/reconfigureRequest';
import { checkChatOptions } from '../lib/config/requestOptions';
import { show } from '../lib/config/schema';
import { DataSnapshot } from '../lib/config/snapshot';

const context = vm.createContext({});
/** Of any type: the tests pass values of wrong types too. */
// eslint-disable-next-line @typescript-eslint/no-unnecessary-type-parameters
type Evaluate = <T>(code: string) => T;
/** The value of `code` in another realm, and in this one. */
const foreign = vm.runInContext('(code) => (0, eval)("(" + code + ")")', context) as Evaluate;
const own: Evaluate = (code) => (0, eval)(`(${code})`) as never;

test('the other realm is another one', () => {
  expect(foreign('[]') instanceof Array).toBe(false);
  expect(foreign('new Map()') instanceof Map).toBe(false);
  expect(foreign('({})') instanceof Object).toBe(false);
  expect(foreign('new Error()') instanceof Error).toBe(false);
});

/** Every sampling parameter; TypeScript refuses a table that lacks one. */
const PARAMS: Record<keyof SamplingParamsOptions, string> = {
  n: '2',
  temperature: '0.5',
  topP: '0.5',
  topK: '5',
  minP: '0.1',
  presencePenalty: '1',
  frequencyPenalty: '1',
  repetitionPenalty: '1.5',
  logitBias: 'new Map([[1, 2], [3, 4]])',
  allowedTokenIds: '[1, 2]',
  badWords: '["x", [1, 2]]',
  seed: '7',
  stop: '["a", "b"]',
  stopTokenIds: '[1, 2]',
  includeStopStrInOutput: 'true',
  ignoreEos: 'true',
  minTokens: '3',
  maxTokens: '5',
  logprobs: '1',
  promptLogprobs: '1',
  structuredOutputs: '{ regex: "a|b" }',
  detokenize: 'false',
  skipSpecialTokens: 'false',
};

describe('sampling parameters', () => {
  test.each(Object.entries(PARAMS))('%s: %s', (name, value) => {
    const code = `{ ${name}: ${value} }`;
    const params = new SamplingParams(foreign(code));
    expect(params).toEqual(new SamplingParams(own(code)));
    expect(params).not.toEqual(new SamplingParams());
  });

  test.each(['{ 1: 2, 3: 4 }', 'Object.assign(Object.create(null), { 1: 2, 3: 4 })'])(
    'logitBias may also be %s',
    (code) => {
      const { logitBias } = new SamplingParams({ logitBias: foreign(code) });
      expect([...logitBias]).toEqual([
        [1, 2],
        [3, 4],
      ]);
    },
  );

  test.each(['new Set([1])', 'Int32Array.of(1)', 'new Date()', 'Promise.resolve({ 1: 2 })', '[]'])(
    'logitBias is not %s, in either realm',
    (code) => {
      for (const value of [foreign(code), own(code)]) {
        expect(() => new SamplingParams({ logitBias: value as never })).toThrow(
          /^sampling.*logitBias is/,
        );
      }
    },
  );

  test.each([
    'new Map([["maxTokens", 5]])',
    'Promise.resolve({ maxTokens: 5 })',
    'new Set()',
    '[]',
  ])('are not %s, in either realm', (code) => {
    for (const value of [foreign<object>(code), own<object>(code)]) {
      expect(() => new SamplingParams(value)).toThrow(/expected an object/);
    }
  });
});

describe('options of calls', () => {
  const signal = new AbortController().signal;
  const OPTIONS: Record<Exclude<keyof ChatOptions, 'signal'>, string> = {
    timeoutMs: '50',
    priority: '1',
    cacheSalt: '"a"',
    progress: 'true',
    addSpecialTokens: 'true',
    splitSpecialTokens: 'true',
    truncatePromptTokens: '5',
    tools: '[{ type: "function", function: { name: "f", parameters: { type: "object" } } }]',
    documents: '[{ title: "a", text: "b" }]',
    chatTemplate: '"x"',
    chatTemplateKwargs: '{ a: [1, { b: 2 }] }',
    addGenerationPrompt: 'true',
    continueFinalMessage: '"content"',
    toolChoice: '{ type: "function", function: { name: "f" } }',
    parallelToolCalls: 'false',
    reasoning: 'false',
    toolCallParser: '"hermes"',
    reasoningParser: '"none"',
  };

  test.each(Object.entries(OPTIONS))('%s: %s', (name, value) => {
    const code = `{ ${name}: ${value} }`;
    expect(checkChatOptions(foreign(code))).toEqual(own(code));
  });

  test('a signal of this realm in an object of the other', () => {
    const options = foreign<(signal: AbortSignal) => object>('(signal) => ({ signal })')(signal);
    expect(checkChatOptions(options)).toEqual({ signal });
  });

  test.each(['new Map([["timeoutMs", 5]])', 'new Set()', 'Promise.resolve()', '[]', 'new Error()'])(
    'are not %s',
    (code) => {
      expect(() => checkChatOptions(foreign(code))).toThrow(/^options: expected an object, not /);
      expect(() => checkChatOptions(own(code))).toThrow(/^options: expected an object, not /);
    },
  );

  test('a signal in place of the options is refused, not ignored', () => {
    expect(() => checkChatOptions(signal)).toThrow(/expected an object, not AbortSignal/);
  });
});

describe('engine arguments', () => {
  const ARGS: Omit<
    Record<keyof EngineArgs, string>,
    'model' | 'workerCls' | 'workerExtensionCls' | 'distributedTimeout'
  > = {
    device: '"cpu"',
    dtype: '"float32"',
    maxModelLen: '64',
    blockSize: '8',
    kvCacheDtype: '"fp8"',
    memoryUtilization: '0.5',
    kvCacheMemoryBytes: '1e6',
    maxNumSeqs: '3',
    maxNumBatchedTokens: '99',
    longPrefillTokenThreshold: '5',
    schedulingPolicy: '"priority"',
    enablePrefixCaching: 'false',
    maxQueuedRequests: '7',
    limits: '{ maxN: 4 }',
    asyncScheduling: 'false',
    enforceEager: 'true',
    loadFormat: '"dummy"',
    quantization: '"fp8"',
    seed: '3',
    tensorParallelSize: '1',
    distributedTimeoutMs: '1000',
    disableCustomAllReduce: 'true',
    distributedExecutorBackend: '{ module: "x", export: "y" }',
    eosTokenIds: '[1, 2]',
    tokenizer: '"models/stories"',
    skipTokenizerInit: 'true',
    languageModelOnly: 'true',
  };

  test.each(Object.entries(ARGS))('%s: %s', async (name, value) => {
    const code = `{ ${name}: ${value} }`;
    expect(await createUniprocConfig(foreign(code))).toEqual(await createUniprocConfig(own(code)));
  });

  test.each(['workerCls', 'workerExtensionCls'])(
    '%s may be a class or a reference',
    async (name) => {
      const reference = foreign<EngineArgs>(`{ ${name}: { module: "x", export: "y" } }`);
      await expect(createUniprocConfig(reference)).resolves.toBeDefined();
      await expect(createUniprocConfig(foreign(`{ ${name}: class {} }`))).resolves.toBeDefined();
    },
  );

  test.each(['new Map([["maxN", 4]])', '[]', 'new Set()'])('limits are not %s', async (code) => {
    await expect(createUniprocConfig({ limits: foreign(code) })).rejects.toThrow(
      /limits: expected an object/,
    );
  });

  test.each(['new Map([["device", "cpu"]])', 'Promise.resolve({})', 'new Set()'])(
    'are not %s',
    async (code) => {
      for (const args of [foreign<object>(code), own<object>(code)]) {
        await expect(LLM.create(args)).rejects.toThrow(
          /LLM.create takes an object of options, not/,
        );
        await expect(createUniprocConfig(args)).rejects.toThrow(/expected an object/);
      }
    },
  );

  test('a request to reconfigure the ranks', () => {
    const code = `{ newDataParallelSize: 2, newDataParallelRank: 0, newDataParallelRankLocal: -1,
      newDataParallelMasterIp: "a", newDataParallelMasterPort: 5 }`;
    expect(checkReconfigureRequest(foreign(code))).toEqual(own(code));
  });
});

describe('data of conversations', () => {
  const copyOf = (value: unknown) => new DataSnapshot(1000, 20).copy(value);

  test.each([
    '{ a: [1, "x", null, true, { b: 2n }] }',
    'new Map([["a", new Map([[1, [2]]])]])',
    '[new Date(0)]',
    'new Number(1.5)',
    'Object.assign(Object.create(null), { a: 1 })',
  ])('%s is copied', (code) => {
    expect(copyOf(foreign(code))).toEqual(copyOf(own(code)));
  });

  test.each<[string, unknown]>([
    ['new String("x")', 'x'],
    ['new Boolean(false)', false],
    ['Int32Array.of(1, 2)', [1, 2]],
    ['Float64Array.of(1.5)', [1.5]],
    ['new Map([["a", 1]])', new Map([['a', 1]])],
  ])('%s is %p', (code, expected) => {
    for (const value of [foreign(code), own(code)]) expect(copyOf(value)).toEqual(expected);
  });

  test.each(['new Set([1])', 'new Error("x")', 'Promise.resolve(1)', '/x/', 'new ArrayBuffer(2)'])(
    '%s is refused, not copied as {}',
    (code) => {
      for (const value of [foreign(code), own(code)]) {
        expect(() => copyOf({ value })).toThrow(
          /has (a [^AEIO]|an [AEIO])\w+, whose content is not in its fields/,
        );
      }
    },
  );

  test('a template sees a Map, a typed array and a Number object of the other realm', () => {
    const template = '{{ messages[0].content | tojson }}';
    const render = (code: string) =>
      renderChatTemplate(template, [foreign(`{ content: ${code} }`)]);
    expect(render('new Map([["a", new Number(1)]])')).toBe('{"a": 1.0}');
    expect(render('Int32Array.of(1, 2)')).toBe('[1, 2]');
    expect(render('new Date(0)')).toBe('"1970-01-01T00:00:00.000Z"');
    expect(() => render('new Set([1])')).toThrow(/messages\[0\].content is a Set/);
    expect(() => render('new Error("x")')).toThrow(/messages\[0\].content is a Error/);
  });
});

test("an error of the other realm is shown as this realm's", () => {
  expect(show(foreign('new TypeError("x")'))).toBe('TypeError: x');
});

describe('calls', () => {
  const GREEDY = { temperature: 0, maxTokens: 4 };
  let llm: LLM;
  let expected: number[];
  const tokensOf = async (prompts: Prompt | readonly Prompt[], params: unknown = GREEDY) =>
    (await llm.generate(prompts, params as SamplingParams)).map(
      ({ outputs }) => outputs[0].tokenIds,
    );

  beforeAll(async () => {
    llm = await LLM.create(foreign('{ device: "cpu", dtype: "float32", maxModelLen: 128 }'));
    [expected] = await tokensOf({ promptTokenIds: [5, 600, 7] });
  });
  afterAll(() => llm.shutdown());

  test.each([
    '[5, 600, 7]',
    'Int32Array.of(5, 600, 7)',
    'BigInt64Array.of(5n, 600n, 7n)',
    '{ promptTokenIds: [5, 600, 7] }',
    '[Uint32Array.of(5, 600, 7)]',
    '[{ promptTokenIds: Int32Array.of(5, 600, 7) }]',
  ])('the prompt %s', async (code) => {
    expect(await tokensOf(foreign(code))).toEqual([expected]);
  });

  test('parameters, alone and in a list', async () => {
    const code = '{ temperature: 0, maxTokens: 4 }';
    expect(await tokensOf([5, 600, 7], foreign(code))).toEqual([expected]);
    expect(await tokensOf([[5, 600, 7]], foreign(`[${code}]`))).toEqual([expected]);
  });

  test('a conversation and its tools', async () => {
    const messages = '[{ role: "user", content: [{ type: "text", text: "Hello" }] }]';
    const tools = foreign<object[]>('[{ type: "function", function: { name: "f" } }]');
    const options = { tools, chatTemplate: '{{ messages | tojson }}{{ tools | tojson }}' };
    const promptOf = async (chat: ChatMessage[], params: object) =>
      (await llm.chat(chat, params, options))[0].promptTokenIds;
    expect(await promptOf(foreign(messages), GREEDY)).toEqual(
      await promptOf(own(messages), GREEDY),
    );
  });

  test('SamplingParams of another copy of this package', async () => {
    let Other!: typeof SamplingParams;
    jest.isolateModules(() => {
      type Module = typeof import('../lib/config/samplingParams');
      Other = jest.requireActual<Module>('../lib/config/samplingParams').SamplingParams;
    });
    expect(Other).not.toBe(SamplingParams);
    const params = new Other({ ...GREEDY, logitBias: { [expected[0]]: -100 } });
    const [biased] = await tokensOf([5, 600, 7], params);
    expect(biased).toEqual(
      (await tokensOf([5, 600, 7], { ...GREEDY, logitBias: { [expected[0]]: -100 } }))[0],
    );
    expect(biased[0]).not.toBe(expected[0]);
    // It tells which options the user set: maxTokens is a chat's, not the class's 16.
    const [{ outputs }] = await llm.chat(
      [{ role: 'user', content: 'Hello' }],
      new Other({ ignoreEos: true }),
    );
    expect(outputs[0].tokenIds.length).toBeGreaterThan(16);
  });

  test('SamplingParams that a worker received', async () => {
    const params = new SamplingParams({ ...GREEDY, stop: ['zzz'] });
    expect(await tokensOf([5, 600, 7], structuredClone(params))).toEqual([expected]);
  });

  test('an object with only the prototype of SamplingParams is refused', async () => {
    const fake = Object.create(SamplingParams.prototype) as SamplingParams;
    await expect(llm.generate('x', fake)).rejects.toMatchObject({ code: 'REQUEST_INVALID' });
  });

  describe('a signal of another platform', () => {
    /** As jsdom's and other polyfills': no brand of Node's, methods of its own. */
    class OtherSignal {
      aborted = false;
      reason: unknown = undefined;
      readonly listeners = new Set<() => void>();
      addEventListener(_: 'abort', listener: () => void): void {
        this.listeners.add(listener);
      }
      removeEventListener(_: 'abort', listener: () => void): void {
        this.listeners.delete(listener);
      }
      abort(reason?: unknown): void {
        this.aborted = true;
        this.reason = reason;
        for (const listener of [...this.listeners]) listener();
      }
    }
    const endless = { maxTokens: 100, ignoreEos: true };

    test('ends its call, and has no listener afterwards', async () => {
      const signal = new OtherSignal();
      const call = llm.generate('x', endless, { signal: signal as unknown as AbortSignal });
      expect(signal.listeners.size).toBe(1);
      signal.abort();
      await expect(call).rejects.toMatchObject({ name: 'AbortError' });
      expect(signal.listeners.size).toBe(0);
      const late = llm.generate('x', endless, { signal: signal as unknown as AbortSignal });
      await expect(late).rejects.toMatchObject({ name: 'AbortError' });
    });

    test('ends a start', async () => {
      const signal = new OtherSignal();
      const reason = new Error('enough');
      signal.abort(reason);
      const start = LLM.create({ device: 'cpu', signal: signal as unknown as AbortSignal });
      await expect(start).rejects.toBe(reason);
    });

    test('that never aborts leaves no listener', async () => {
      const signal = new OtherSignal();
      await llm.generate('x', GREEDY, { signal: signal as unknown as AbortSignal });
      expect(signal.listeners.size).toBe(0);
    });
  });
});
