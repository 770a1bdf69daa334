/** structuredOutputs through the engine, with the model in models/. */
import type { ResourceLimits } from 'node:worker_threads';
import Ajv2020 from 'ajv/dist/2020';
import {
  type CreateArgs,
  InvalidRequestError,
  LLM,
  type RequestOutput,
  SamplingParams,
} from '../lib';
import { InputBatch } from '../lib/worker/inputBatch';

const SMALL: CreateArgs = {
  device: 'cpu',
  dtype: 'float32',
  maxModelLen: 512,
  maxNumSeqs: 8,
  kvCacheMemoryBytes: 64 * 2 ** 20,
};

const SCHEMA = {
  type: 'object',
  properties: {
    name: { type: 'string', minLength: 1, maxLength: 12 },
    age: { type: 'integer', minimum: 0, maximum: 120 },
    kind: { enum: ['cat', 'dog', 'catfish'] },
    tags: { type: 'array', items: { type: 'string', pattern: '^[a-z]{1,6}$' }, maxItems: 2 },
  },
  required: ['name', 'age', 'kind'],
  additionalProperties: false,
};
const validate = new Ajv2020().compile(SCHEMA);

const made: LLM[] = [];

async function create(args: CreateArgs = {}): Promise<LLM> {
  const llm = await LLM.create({ ...SMALL, ...args });
  made.push(llm);
  return llm;
}

afterAll(async () => {
  await Promise.all(made.map((llm) => llm.shutdown()));
});

/** The thread that compiles schemas. */
const threadOf = ({ engine }: LLM) =>
  (
    engine.grammars as unknown as {
      compiler: { resourceLimits?: ResourceLimits; kill(error: Error): void };
    }
  ).compiler;

const textsOf = (outputs: readonly RequestOutput[]) =>
  outputs.flatMap(({ outputs: samples }) => samples.map(({ text }) => text));
const prompts = (count: number) => Array.from({ length: count }, (_, i) => `Once upon ${i}`);
const params = (more: object = {}) =>
  new SamplingParams({
    maxTokens: 300,
    temperature: 1.5,
    seed: 3,
    structuredOutputs: { json: SCHEMA, whitespacePattern: ' ?' },
    ...more,
  });

function expectValid(outputs: readonly RequestOutput[]): void {
  for (const { outputs: samples } of outputs) {
    for (const { finishReason, text } of samples) {
      expect(finishReason).toBe('stop');
      expect([text, validate(JSON.parse(text))]).toEqual([text, true]);
    }
  }
}

describe.each([true, false])('asyncScheduling: %s', (asyncScheduling) => {
  let llm: LLM;

  beforeAll(async () => {
    llm = await create({ asyncScheduling });
  });

  test('200 sampled answers parse and validate', async () => {
    const list = prompts(200).map((_, i) => params({ seed: i }));
    expectValid(await llm.generate(prompts(200), list));
  });

  test('without a schema no answer parses', async () => {
    const outputs = await llm.generate(prompts(20), { maxTokens: 40, seed: 1 });
    for (const text of textsOf(outputs)) expect(() => JSON.parse(text) as unknown).toThrow();
  });

  test('requests without a grammar have the same tokens beside requests with one', async () => {
    const plain = { maxTokens: 30, seed: 5 };
    const alone = await llm.generate(prompts(4), plain);
    const mixed = await llm.generate(
      prompts(8),
      prompts(8).map((_, i) => (i < 4 ? plain : params({ seed: i }))),
    );
    expect(textsOf(mixed.slice(0, 4))).toEqual(textsOf(alone));
    expectValid(mixed.slice(4));
  });

  test('a request has the same text alone and in a batch', async () => {
    const batch = await llm.generate(prompts(8), params());
    const [alone] = await llm.generate(prompts(1), params());
    expect(alone.outputs[0].text).toBe(batch[0].outputs[0].text);
  });

  test('regex, choice, grammar and jsonObject', async () => {
    const run = async (structuredOutputs: object) =>
      textsOf(await llm.generate(prompts(6), { maxTokens: 200, seed: 4, structuredOutputs }));
    for (const text of await run({ regex: '\\d{3}-[a-f]{1,8}!' }))
      expect(text).toMatch(/^\d{3}-[a-f]{1,8}!$/);
    for (const text of await run({ choice: ['yes', 'no', 'may be'] })) {
      expect(['yes', 'no', 'may be']).toContain(text);
    }
    const grammar = 'root ::= "(" root ")" | [a-c]{1,5}';
    for (const text of await run({ grammar })) expect(text).toMatch(/^\(*[a-c]{1,5}\)*$/);
    const [output] = await llm.generate(prompts(1), {
      maxTokens: 400,
      temperature: 0.5,
      seed: 2,
      structuredOutputs: { jsonObject: true, whitespacePattern: '' },
    });
    const { finishReason, text } = output.outputs[0];
    expect(text).toMatch(/^\{/);
    if (finishReason === 'stop') expect(() => JSON.parse(text) as unknown).not.toThrow();
  });

  test('n, logprobs and a stream', async () => {
    const outputs = await llm.generate(prompts(2), params({ n: 3, logprobs: 2 }));
    expectValid(outputs);
    for (const { outputs: samples } of outputs) {
      expect(samples).toHaveLength(3);
      for (const { logprobs, tokenIds } of samples) expect(logprobs).toHaveLength(tokenIds.length);
    }
    let text = '';
    for await (const delta of llm.stream('Once', params())) text += delta.text;
    expect(validate(JSON.parse(text))).toBe(true);
  });

  test('a stop string ends the text before the grammar does', async () => {
    const [{ outputs }] = await llm.generate(
      prompts(1),
      params({ structuredOutputs: { regex: '[ab]{3}stop[ab]{30}' }, stop: 'stop' }),
    );
    expect(outputs[0].text).toMatch(/^[ab]{3}$/);
    expect(outputs[0].finishReason).toBe('stop');
  });

  test('minTokens keeps a text that may end going', async () => {
    const structuredOutputs = { regex: 'a*' };
    const [{ outputs }] = await llm.generate(
      prompts(1),
      params({ structuredOutputs, minTokens: 12, maxTokens: 40 }),
    );
    expect(outputs[0].tokenIds.length).toBeGreaterThan(12);
    expect(outputs[0].text).toMatch(/^a+$/);
  });

  test('the length ends a text that the grammar does not', async () => {
    const [{ outputs }] = await llm.generate(
      prompts(1),
      params({ structuredOutputs: { regex: 'a+' }, maxTokens: 3, stopTokenIds: [] }),
    );
    expect(outputs[0].text).toMatch(/^a+$/);
  });
});

describe('parameters that contradict the grammar', () => {
  let llm: LLM;

  beforeAll(async () => {
    llm = await create();
  });

  test.each([
    ['minTokens', { structuredOutputs: { choice: ['a'] }, minTokens: 20, maxTokens: 40 }],
    ['allowedTokenIds', { structuredOutputs: { regex: '[0-9]{4}' }, allowedTokenIds: [300, 301] }],
  ])('%s fails that request alone', async (_, contradiction) => {
    const failing = llm.generate(prompts(1), params(contradiction));
    const other = llm.generate(prompts(3), params());
    await expect(failing).rejects.toMatchObject({
      code: 'REQUEST_INVALID',
    });
    expectValid(await other);
  });

  test('a schema that is not supported is refused by its path, and others go on', async () => {
    const refused = llm.generate('a', {
      structuredOutputs: { json: { properties: { a: { not: {} } } } },
    });
    await expect(refused).rejects.toThrow(InvalidRequestError);
    await expect(refused).rejects.toThrow('#/properties/a/not');
    expectValid(await llm.generate(prompts(2), params()));
  });

  test('a step whose only request the worker refuses fails that request alone', async () => {
    const prepare = jest.spyOn(InputBatch.prototype, 'prepare').mockImplementationOnce((step) => {
      const [{ reqId }] = step.scheduledNewReqs;
      throw new InvalidRequestError('refused', { requestId: reqId });
    });
    await expect(llm.generate(prompts(1), params())).rejects.toThrow('refused');
    prepare.mockRestore();
    expectValid(await llm.generate(prompts(2), params()));
  });

  test('a schema that exhausts the memory of its thread is refused, and others go on', async () => {
    const { resourceLimits } = threadOf(llm);
    if (resourceLimits === undefined) throw new Error('the heap has no limit');
    const { maxOldGenerationSizeMb } = resourceLimits;
    // A new thread, with less than any grammar of this size takes.
    threadOf(llm).kill(new Error('not used'));
    resourceLimits.maxOldGenerationSizeMb = 16;
    const choice = Array.from({ length: 60_000 }, (_, i) => `${i} ${i}`);
    const large = llm.generate('a', { structuredOutputs: { choice } });
    await expect(large).rejects.toMatchObject({ code: 'REQUEST_INVALID' });
    await expect(large).rejects.toThrow(/took more than 1024 MB to compile/);
    resourceLimits.maxOldGenerationSizeMb = maxOldGenerationSizeMb;
    expectValid(
      await llm.generate(prompts(2), params({ structuredOutputs: { json: { ...SCHEMA } } })),
    );
  });

  test('a token that ends the text is required', async () => {
    const run = llm.generate('a', { structuredOutputs: { regex: 'a' }, ignoreEos: true });
    await expect(run).rejects.toThrow(/needs a token that ends the text: ignoreEos is true/);
  });

  test('an aborted request leaves the others', async () => {
    const abort = new AbortController();
    const long = llm.generate(
      'a',
      params({ structuredOutputs: { regex: 'a{1000}' }, maxTokens: 400 }),
      {
        signal: abort.signal,
      },
    );
    const others = llm.generate(prompts(4), params());
    setTimeout(() => abort.abort(), 20);
    await expect(long).rejects.toMatchObject({ code: 'ABORT_ERR' });
    expectValid(await others);
  });

  test('a structuralTag with a special token that the vocabulary lacks is refused', async () => {
    const structuralTag = { format: { type: 'token', token: '<none>' } } as const;
    const refused = llm.generate('Hi', { structuredOutputs: { structuralTag } });
    await expect(refused).rejects.toThrow(/the vocabulary has no special token '<none>'/);
  });

  test('an equal schema is compiled once', async () => {
    const json = { type: 'string', maxLength: 3 };
    await llm.generate('a', { structuredOutputs: { json }, maxTokens: 20 });
    const { grammars } = llm.engine;
    const compiled = () => {
      const { structuredOutputs } = new SamplingParams({ structuredOutputs: { json } });
      return structuredOutputs && grammars?.compile(structuredOutputs);
    };
    const first = await compiled();
    const second = await compiled();
    expect(first).toHaveProperty('id');
    expect(second).toBe(first);
  });
});

test('a schema that no call wants any more is not compiled, unless another call comes', async () => {
  const { grammars } = (await create()).engine;
  const outputs = (regex: string) => {
    const { structuredOutputs } = new SamplingParams({ structuredOutputs: { regex } });
    if (grammars === null || structuredOutputs === null) throw new Error('no grammars');
    return { grammars, structuredOutputs };
  };
  const compile = (regex: string, isWanted: () => boolean) =>
    outputs(regex).grammars.compile(outputs(regex).structuredOutputs, isWanted);
  const [ended, shared, other] = await Promise.allSettled([
    compile('a', () => false),
    compile('b', () => false),
    compile('b', () => true),
  ]);
  expect(ended.status).toBe('rejected');
  expect([shared.status, other.status]).toEqual(['fulfilled', 'fulfilled']);
  expect(await compile('a', () => true)).toHaveProperty('id');
});

test('preempted requests continue their texts', async () => {
  const llm = await create({
    maxModelLen: 256,
    blockSize: 16,
    kvCacheMemoryBytes: 1_800_000,
    maxNumSeqs: 8,
  });
  const outputs = await llm.generate(prompts(12), params({ maxTokens: 200 }));
  expect(llm.stats().numPreemptions).toBeGreaterThan(0);
  const roomy = await create({ maxModelLen: 256 });
  expect(textsOf(outputs)).toEqual(
    textsOf(await roomy.generate(prompts(12), params({ maxTokens: 200 }))),
  );
});

describe('the option', () => {
  test.each([
    [{}, /it has none; it must have exactly one of/],
    [{ regex: 'a', choice: ['a'] }, /it has regex, choice/],
    [{ regex: 3 }, /regex is 3; it must be a string/],
    [{ choice: [] }, /a list of at least one string/],
    [{ choice: ['a', ''] }, /choice\[1\]/],
    [{ json: 3 }, /it must be a JSON schema/],
    [{ json: '{"type":' }, /json is not JSON/],
    [{ regexp: 'a' }, /regexp.*did you mean regex/],
    [{ regex: 'a', whitespacePattern: ' ' }, /whitespacePattern is for json/],
    ['a', /it must be an object/],
    [{ json: { default: () => 1 } }, /has a function/],
    [{ json: '{"const":1e400}' }, /json\.const is Infinity, which JSON cannot write/],
    [{ json: { enum: [1, NaN] } }, /json\.enum\[1\] is NaN/],
    [{ json: { const: Object(NaN) as object } }, /json\.const is NaN/],
    [{ json: { properties: new Map() } }, /json\.properties is Map/],
    [
      { json: { properties: { 'a b': { minimum: 1n } } } },
      /json\.properties\['a b'\]\.minimum is 1n/,
    ],
    [
      { structuralTag: { format: { type: 'json_schema', json_schema: { enum: [2n] } } } },
      /structuralTag\.format\.json_schema\.enum\[0\] is 2n, which JSON cannot write/,
    ],
    [{ structuralTag: { format: { type: 3n } } }, /structuralTag: format\.type: it must be/],
    [{ choice: ['a', '\ud800'] }, /choice\[1\] has half of a surrogate pair/],
    [{ regex: '\udc00' }, /regex has half of a surrogate pair/],
  ])('%p is refused', (structuredOutputs, message) => {
    const make = () => new SamplingParams({ structuredOutputs: structuredOutputs as object });
    expect(make).toThrow(InvalidRequestError);
    expect(make).toThrow(message);
  });

  test('is a frozen copy of what the caller may change', () => {
    const json = { type: 'object', properties: { a: { type: 'string' } } };
    const { structuredOutputs } = new SamplingParams({ structuredOutputs: { json } });
    json.type = 'array';
    expect(structuredOutputs?.json).toBe('{"type":"object","properties":{"a":{"type":"string"}}}');
    expect(Object.isFrozen(structuredOutputs)).toBe(true);
  });
});
