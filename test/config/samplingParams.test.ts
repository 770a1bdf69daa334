import { SamplingParams, type SamplingParamsOptions } from '../../lib/config/samplingParams';
import { InvalidRequestError } from '../../lib/errors';

function complaint(options: unknown): string {
  try {
    new SamplingParams(options as SamplingParamsOptions);
  } catch (error) {
    expect(error).toBeInstanceOf(InvalidRequestError);
    expect(error).toHaveProperty('code', 'REQUEST_INVALID');
    return (error as Error).message;
  }
  throw new Error('no error was thrown');
}

describe('SamplingParams', () => {
  it('has the defaults of vLLM', () => {
    expect(new SamplingParams()).toMatchObject({
      n: 1,
      temperature: 1,
      topP: 1,
      topK: 0,
      minP: 0,
      presencePenalty: 0,
      frequencyPenalty: 0,
      repetitionPenalty: 1,
      logitBias: new Map(),
      allowedTokenIds: null,
      badWords: [],
      seed: null,
      stop: [],
      stopTokenIds: [],
      includeStopStrInOutput: false,
      ignoreEos: false,
      minTokens: 0,
      maxTokens: 16,
      logprobs: null,
      promptLogprobs: null,
      detokenize: true,
      skipSpecialTokens: true,
    });
  });

  it("keeps the user's options", () => {
    const options = {
      n: 3,
      temperature: 0.7,
      topP: 0.9,
      topK: 40,
      minP: 0.05,
      presencePenalty: -2,
      frequencyPenalty: 2,
      repetitionPenalty: 1.1,
      allowedTokenIds: [1, 2],
      badWords: ['no', [3, 4]],
      seed: 7,
      stop: ['\n\n', 'END'],
      stopTokenIds: [9],
      includeStopStrInOutput: true,
      ignoreEos: true,
      minTokens: 4,
      maxTokens: 8,
      logprobs: 0,
      promptLogprobs: 5,
      skipSpecialTokens: false,
    };
    expect(new SamplingParams(options)).toMatchObject(options);
    expect(new SamplingParams({ detokenize: false }).detokenize).toBe(false);
  });

  it('accepts the logit bias as an object or a Map', () => {
    const expected = new Map([
      [5, -100],
      [17, 1.5],
    ]);
    expect(new SamplingParams({ logitBias: { 5: -100, '17': 1.5 } }).logitBias).toEqual(expected);
    expect(new SamplingParams({ logitBias: expected }).logitBias).toEqual(expected);
  });

  it('accepts one stop string as a list of one', () => {
    expect(new SamplingParams({ stop: 'END' }).stop).toEqual(['END']);
  });

  it('reads null as none, and null for maxTokens as no limit', () => {
    const params = new SamplingParams({
      logitBias: null,
      allowedTokenIds: null,
      badWords: null,
      seed: null,
      stop: null,
      stopTokenIds: null,
      maxTokens: null,
      logprobs: null,
      promptLogprobs: null,
    });
    expect(params).toMatchObject({
      logitBias: new Map(),
      allowedTokenIds: null,
      badWords: [],
      seed: null,
      stop: [],
      stopTokenIds: [],
      maxTokens: null,
      logprobs: null,
      promptLogprobs: null,
    });
  });

  it('reads undefined as absent', () => {
    expect(new SamplingParams({ maxTokens: undefined, topP: undefined })).toMatchObject({
      maxTokens: 16,
      topP: 1,
    });
  });

  it.each([[-1], [0]])('reads topK %i as all tokens', (topK) => {
    expect(new SamplingParams({ topK }).topK).toBe(0);
  });

  it('reads seed -1 as none', () => {
    expect(new SamplingParams({ seed: -1 }).seed).toBeNull();
  });

  it('reads a temperature below 1e-5 as greedy', () => {
    expect(new SamplingParams({ temperature: 9e-6 }).temperature).toBe(0);
    expect(new SamplingParams({ temperature: 1e-5 }).temperature).toBe(1e-5);
  });

  it('is immutable and shares nothing with its options', () => {
    const stopTokenIds = [1];
    const params = new SamplingParams({ stopTokenIds });
    stopTokenIds.push(2);
    expect(params.stopTokenIds).toEqual([1]);
    expect(Object.isFrozen(params)).toBe(true);
    expect(Object.isFrozen(params.stopTokenIds)).toBe(true);
  });

  it.each([
    ['n', 0, 'an integer from 1 to 16384'],
    ['n', 1.5, 'an integer from 1 to 16384'],
    ['temperature', -0.1, 'a number of at least 0'],
    ['temperature', Infinity, 'a number of at least 0'],
    ['temperature', NaN, 'a number of at least 0'],
    ['temperature', '1', 'a number of at least 0'],
    ['temperature', null, 'a number of at least 0'],
    ['topP', 0, 'a number above 0 and up to 1'],
    ['topP', 1.01, 'a number above 0 and up to 1'],
    ['topK', -2, 'an integer of at least 1, or 0 or -1'],
    ['topK', 2.5, 'an integer of at least 1, or 0 or -1'],
    ['minP', -0.01, 'a number from 0 to 1'],
    ['minP', 1.01, 'a number from 0 to 1'],
    ['presencePenalty', 2.1, 'a number from -2 to 2'],
    ['presencePenalty', -2.1, 'a number from -2 to 2'],
    ['frequencyPenalty', 2.1, 'a number from -2 to 2'],
    ['frequencyPenalty', -2.1, 'a number from -2 to 2'],
    ['repetitionPenalty', 0, 'a number above 0'],
    ['logitBias', { 5: 100.5 }, 'numbers from -100 to 100'],
    ['logitBias', { 5: '1' }, 'numbers from -100 to 100'],
    ['logitBias', { five: 1 }, 'token ids'],
    ['logitBias', { '-1': 1 }, 'token ids'],
    ['logitBias', new Map([[1.5, 1]]), 'token ids'],
    ['logitBias', [1, 2], 'an object or Map'],
    ['allowedTokenIds', [], 'at least one token id'],
    ['allowedTokenIds', 3, 'at least one token id'],
    ['seed', 0.5, 'an integer'],
    ['seed', 2 ** 60, 'an integer of at most 53 bits'],
    ['seed', '7', 'an integer'],
    ['stop', '', 'a non-empty string'],
    ['stop', 7, 'a non-empty string'],
    ['minTokens', -1, 'an integer of at least 0'],
    ['maxTokens', 0, 'an integer of at least 1'],
    ['maxTokens', 1.5, 'an integer of at least 1'],
    ['logprobs', -1, 'an integer of at least 0'],
    ['logprobs', true, 'an integer of at least 0'],
    ['promptLogprobs', -1, 'an integer of at least 0'],
    ['includeStopStrInOutput', 1, 'true or false'],
    ['ignoreEos', 'yes', 'true or false'],
    ['detokenize', 0, 'true or false'],
    ['skipSpecialTokens', null, 'true or false'],
  ])('refuses %s = %p', (name, value, allowed) => {
    const message = complaint({ [name]: value });
    expect(message).toContain(`${name} is `);
    expect(message).toContain(allowed);
  });

  it('shows the refused value', () => {
    expect(complaint({ topP: 1.5 })).toBe(
      'sampling parameters: topP is 1.5; it must be a number above 0 and up to 1',
    );
  });

  it("names a list's element", () => {
    expect(complaint({ stopTokenIds: [1, -5] })).toBe(
      'sampling parameters: stopTokenIds[1] is -5; stopTokenIds must be a list of token ids',
    );
    expect(complaint({ stop: ['a', ''] })).toContain('stop');
    expect(complaint({ badWords: ['a', [-1]] })).toContain('badWords[1][0] is -1;');
  });

  it('refuses an unknown name and suggests a known one', () => {
    expect(complaint({ max_tokens: 5 })).toBe(
      'sampling parameters: unknown option max_tokens; did you mean maxTokens?',
    );
  });

  it.each([[null], [7], ['greedy'], [[]]])('refuses %p for the options', (options) => {
    expect(complaint(options)).toContain('expected an object');
  });

  it('refuses minTokens above maxTokens, naming both', () => {
    expect(complaint({ minTokens: 20, maxTokens: 10 })).toContain(
      'minTokens is 20; it must be at most maxTokens, 10',
    );
  });

  it('refuses several greedy outputs, which would be equal', () => {
    expect(complaint({ n: 2, temperature: 0 })).toContain('n must be 1');
  });

  it('refuses stop strings without detokenize', () => {
    expect(complaint({ stop: 'x', detokenize: false })).toContain(
      'stop strings require detokenize',
    );
  });
});

describe('SamplingParams for the device', () => {
  it.each([
    ['temperature', 1e39, 'which is Infinity in float32'],
    ['topP', 1e-46, 'which is 0 in float32'],
    ['minTokens', 2 ** 31, 'at most 2147483647'],
    ['topK', 2 ** 31, 'at most 2147483647'],
    ['repetitionPenalty', 1e-46, 'from 1e-20'],
    ['stopTokenIds', [2 ** 31], 'stopTokenIds[0] is 2147483648'],
    ['logitBias', { '1e2': 1 }, 'token ids'],
  ])('refuse %s = %p', (name, value, allowed) => {
    expect(complaint({ [name]: value })).toContain(allowed);
  });

  it("copy and freeze the caller's nested lists and Maps", () => {
    const word = [1, 2];
    const bias = new Map([[5, 1]]);
    const params = new SamplingParams({ badWords: [word], logitBias: bias });
    word.push(2 ** 40);
    bias.set(6, NaN);
    (params.logitBias as Map<number, number>).set(7, 1e9);
    expect(params.badWords).toEqual([[1, 2]]);
    expect(Object.isFrozen(params.badWords[0])).toBe(true);
    expect(params.logitBias).toEqual(new Map([[5, 1]]));
  });

  it('read each option once', () => {
    let reads = 0;
    const options = {
      get topP() {
        return reads++ === 0 ? 0.5 : 7;
      },
    };
    expect(new SamplingParams(options).topP).toBe(0.5);
    expect(reads).toBe(1);
  });
});

describe('SamplingParams.fromDefaults', () => {
  const defaults = { temperature: 0.6, topP: 0.95, maxTokens: 100 };

  it("uses the model's defaults for options that the user did not set", () => {
    expect(SamplingParams.fromDefaults(defaults, { topP: 0.5, topK: 3 })).toMatchObject({
      temperature: 0.6,
      topP: 0.5,
      topK: 3,
      maxTokens: 100,
    });
  });

  it('distinguishes a set value from an equal default', () => {
    const params = new SamplingParams({ temperature: 1, maxTokens: null, topP: undefined });
    expect(SamplingParams.fromDefaults(defaults, params)).toMatchObject({
      temperature: 1,
      maxTokens: null,
      topP: 0.95,
    });
  });

  it('uses all of them when the user set nothing', () => {
    expect(SamplingParams.fromDefaults(defaults)).toMatchObject(defaults);
  });

  it("validates the user's options", () => {
    expect(() => SamplingParams.fromDefaults(defaults, { topP: 2 })).toThrow(InvalidRequestError);
  });
});
