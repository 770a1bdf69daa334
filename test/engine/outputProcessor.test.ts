import { EventEmitter } from 'node:events';
import path from 'node:path';
import { SamplingParams, type SamplingParamsOptions } from '../../lib/config/samplingParams';
import { Call } from '../../lib/engine/call';
import { EngineMetrics } from '../../lib/engine/metrics';
import type { OutputReceiver } from '../../lib/engine/outputCollector';
import { OutputProcessor, ParentRequest } from '../../lib/engine/outputProcessor';
import type { EngineCoreOutputs, OutputDelta, RequestOutput } from '../../lib/engine/outputs';
import { Request } from '../../lib/engine/request';
import { Tokenizer } from '../../lib/tokenizer/tokenizer';
import type { LogprobsLists } from '../../lib/worker/outputs';
import { byteTokenizer, EOS_TOKEN_ID } from './byteTokenizer';

let tokenizer: Tokenizer;

beforeAll(async () => {
  tokenizer = await byteTokenizer();
});

const bytes = (text: string) => [...Buffer.from(text)];

/** What the caller of a request hears. */
class Listener implements OutputReceiver {
  readonly deltas: OutputDelta[] = [];
  output: RequestOutput | null = null;
  error: unknown = null;

  delta(delta: OutputDelta): void {
    this.deltas.push(delta);
  }
  finished(output: RequestOutput): void {
    this.output = output;
  }
  failed(error: unknown): void {
    this.error = error;
  }
}

class Harness {
  readonly processor: OutputProcessor;
  readonly listener = new Listener();

  /** `generated` was generated before, on other ranks. */
  constructor(
    options: SamplingParamsOptions = {},
    withTokenizer: Tokenizer | null = tokenizer,
    generated = '',
  ) {
    this.processor = new OutputProcessor(withTokenizer, new EngineMetrics(new EventEmitter()));
    const samplingParams = new SamplingParams({ maxTokens: null, ...options });
    const promptTokenIds = Int32Array.from(bytes('Hi'));
    const parent = new ParentRequest(
      '0',
      'Hi',
      promptTokenIds,
      samplingParams,
      this.listener,
      new Call(1),
    );
    for (let index = 0; index < samplingParams.n; index++) {
      const request = new Request({
        requestId: String(index),
        promptTokenIds,
        samplingParams,
        stopTokenIds: [],
        badWordsTokenIds: [],
        seed: 0n,
        maxModelLen: 1024,
      });
      for (const tokenId of bytes(generated)) request.appendOutputToken(tokenId);
      this.processor.addRequest(request, parent, index, 0);
    }
  }

  /** A step that brings one request these tokens; the ids that it stopped. */
  step(
    tokenIds: number[],
    {
      requestId = '0',
      finishReason = null,
      logprobs = null,
      promptLogprobs = null,
    }: {
      requestId?: string;
      finishReason?: 'stop' | 'length' | null;
      logprobs?: LogprobsLists | null;
      promptLogprobs?: LogprobsLists | null;
    } = {},
  ): readonly string[] {
    // Another request's token comes first in the step.
    const step: EngineCoreOutputs = {
      outputs: [{ requestId, start: 1, end: 1 + tokenIds.length, promptLogprobs, finishReason }],
      length: 1,
      sampledTokenIds: Int32Array.from([77, ...tokenIds]),
      logprobs,
    };
    return this.processor.processOutputs(step, 0);
  }

  /** A step for each token, the last one with the reason; the ids that any step stopped. */
  steps(tokenIds: number[], finishReason: 'stop' | 'length' | null = null): string[] {
    return tokenIds.flatMap((tokenId, i) => [
      ...this.step([tokenId], { finishReason: i === tokenIds.length - 1 ? finishReason : null }),
    ]);
  }

  get texts(): string[] {
    return this.listener.deltas.map(({ text }) => text);
  }

  get output() {
    return this.listener.output?.outputs[0];
  }
}

describe('text', () => {
  test('is given as it comes, and whole in the end', () => {
    const harness = new Harness();
    expect(harness.steps(bytes('abc'), 'length')).toEqual([]);
    expect(harness.listener.deltas).toEqual([
      { index: 0, text: 'a', tokenIds: [97], finishReason: null },
      { index: 0, text: 'b', tokenIds: [98], finishReason: null },
      { index: 0, text: 'c', tokenIds: [99], finishReason: 'length' },
    ]);
    expect(harness.listener.output).toEqual({
      requestId: '0',
      prompt: 'Hi',
      promptTokenIds: bytes('Hi'),
      promptLogprobs: null,
      outputs: [
        { index: 0, text: 'abc', tokenIds: bytes('abc'), finishReason: 'length', logprobs: null },
      ],
    });
  });

  test('never has half a character', () => {
    const harness = new Harness();
    harness.steps(bytes('aé€😀b'), 'length');
    expect(harness.texts).toEqual(['a', '', 'é', '', '', '€', '', '', '', '😀', 'b']);
    expect(harness.output?.text).toBe('aé€😀b');
  });

  test('does not have the stop token, which is among the tokens', () => {
    const harness = new Harness({ skipSpecialTokens: false });
    harness.steps([...bytes('ab'), 99], 'stop');
    expect(harness.output).toMatchObject({ text: 'ab', tokenIds: bytes('abc') });
  });

  test('leaves special tokens out unless told not to', () => {
    for (const skipSpecialTokens of [true, false]) {
      const harness = new Harness({ skipSpecialTokens });
      harness.steps([97, EOS_TOKEN_ID, 98], 'length');
      expect(harness.output?.text).toBe(skipSpecialTokens ? 'ab' : 'a<eos>b');
    }
  });

  test.each([
    ['with detokenize false', { detokenize: false }],
    ['without a tokenizer', {}],
  ])('is empty %s', (name, options) => {
    const harness = new Harness(options, name.startsWith('with ') ? tokenizer : null);
    harness.steps(bytes('abc'), 'length');
    expect(harness.output).toMatchObject({ text: '', tokenIds: bytes('abc') });
  });
});

describe('a stop string', () => {
  test('over several tokens ends the request, which the caller has to be told', () => {
    const harness = new Harness({ stop: ['END'] });
    expect(harness.steps(bytes('the EN'))).toEqual([]);
    expect(harness.output).toBeUndefined();
    expect(harness.steps(bytes('D'))).toEqual(['0']);
    expect(harness.output).toMatchObject({
      text: 'the ',
      tokenIds: bytes('the END'),
      finishReason: 'stop',
    });
  });

  test('never shows in what is streamed, not even its beginning', () => {
    const harness = new Harness({ stop: ['END'] });
    harness.steps(bytes('an EGG, the END'));
    expect(harness.texts.join('')).toBe('an EGG, the ');
    expect(harness.texts.slice(3, 5)).toEqual(['', 'EG']);
    expect(harness.listener.deltas.at(-1)).toMatchObject({ text: '', finishReason: 'stop' });
  });

  test('may be included', () => {
    const harness = new Harness({ stop: ['END'], includeStopStrInOutput: true });
    harness.steps(bytes('the END'));
    expect(harness.output?.text).toBe('the END');
    expect(harness.texts.join('')).toBe('the END');
  });

  test('that is only begun when the request ends is text', () => {
    const harness = new Harness({ stop: ['END'] });
    harness.steps(bytes('the EN'), 'length');
    expect(harness.output).toMatchObject({ text: 'the EN', finishReason: 'length' });
    expect(harness.texts.join('')).toBe('the EN');
  });

  test('counts when the request ends with it anyway, and then nobody need be told', () => {
    const harness = new Harness({ stop: ['END'] });
    expect(harness.steps(bytes('the END'), 'length')).toEqual([]);
    expect(harness.output).toMatchObject({ text: 'the ', finishReason: 'stop' });
  });

  test('counts only after minTokens tokens', () => {
    const harness = new Harness({ stop: ['a', 'bc'], minTokens: 3 });
    harness.steps(bytes('aabca'));
    expect(harness.output).toMatchObject({ text: 'aabc', tokenIds: bytes('aabca') });
  });

  test('drops the tokens that came with it in one step', () => {
    const harness = new Harness({ stop: ['b'], logprobs: 0 });
    const logprobs = { width: 1, tokenIds: new Int32Array(5), logprobs: new Float32Array(5) };
    expect(
      harness.step(bytes('abcd'), { logprobs: { ...logprobs, ranks: new Int32Array(5) } }),
    ).toEqual(['0']);
    expect(harness.output).toMatchObject({ text: 'a', tokenIds: bytes('ab') });
    expect(harness.output?.logprobs).toHaveLength(2);
  });
});

describe('logprobs', () => {
  /** Two rows; the second is the request's. Its token is the third likeliest. */
  const logprobs: LogprobsLists = {
    width: 4,
    tokenIds: Int32Array.of(77, 1, 2, 3, 99, 97, 98, 99),
    logprobs: Float32Array.of(-9, -1, -2, -3, -2.5, -0.5, -1.5, -2.5),
    ranks: Int32Array.of(50, 3),
  };

  test('are the sampled token and those asked for', () => {
    const harness = new Harness({ logprobs: 2 });
    harness.step([99], { logprobs, finishReason: 'length' });
    expect(harness.output?.logprobs?.map((position) => [...position])).toEqual([
      [
        [99, { logprob: -2.5, rank: 3, decodedToken: 'c' }],
        [97, { logprob: -0.5, rank: 1, decodedToken: 'a' }],
        [98, { logprob: -1.5, rank: 2, decodedToken: 'b' }],
      ],
    ]);
  });

  test('have the sampled token once when it is among the likeliest', () => {
    const harness = new Harness({ logprobs: 3 });
    harness.step([99], { logprobs, finishReason: 'length' });
    expect([...(harness.output?.logprobs?.[0].keys() ?? [])]).toEqual([99, 97, 98]);
    expect(harness.output?.logprobs?.[0].get(99)).toMatchObject({ rank: 3 });
  });

  test('of 0 are the sampled token alone', () => {
    const harness = new Harness({ logprobs: 0 });
    harness.step([99], { logprobs, finishReason: 'length' });
    expect([...(harness.output?.logprobs?.[0].keys() ?? [])]).toEqual([99]);
  });

  test('are null when not asked for, though others in the step ask', () => {
    const harness = new Harness();
    harness.step([99], { logprobs, finishReason: 'length' });
    expect(harness.output?.logprobs).toBeNull();
  });

  test('have no decoded tokens without a tokenizer', () => {
    const harness = new Harness({ logprobs: 1 }, null);
    harness.step([99], { logprobs, finishReason: 'length' });
    expect(harness.output?.logprobs?.[0].get(97)).toEqual({
      logprob: -0.5,
      rank: 1,
      decodedToken: null,
    });
  });

  test('of the prompt come over steps, null for the first token', () => {
    const harness = new Harness({ promptLogprobs: 1, n: 2 });
    const row = (tokenId: number, rank: number): LogprobsLists => ({
      width: 2,
      tokenIds: Int32Array.of(tokenId, 97),
      logprobs: Float32Array.of(-4, -0.5),
      ranks: Int32Array.of(rank),
    });
    harness.step([], { promptLogprobs: row(98, 7) });
    harness.step([], { promptLogprobs: row(98, 7), requestId: '1' });
    harness.step([99], { promptLogprobs: row(99, 8), finishReason: 'length' });
    harness.step([99], { requestId: '1', finishReason: 'length' });
    const likeliest = [97, { logprob: -0.5, rank: 1, decodedToken: 'a' }];
    expect(
      harness.listener.output?.promptLogprobs?.map((position) => position && [...position]),
    ).toEqual([
      null,
      [[98, { logprob: -4, rank: 7, decodedToken: 'b' }], likeliest],
      [[99, { logprob: -4, rank: 8, decodedToken: 'c' }], likeliest],
    ]);
  });
});

describe('several samples', () => {
  test('stop each for itself', () => {
    const harness = new Harness({ n: 2, stop: ['b'] });
    expect([...harness.step(bytes('b'), { requestId: '1' })]).toEqual(['1']);
    expect([...harness.step(bytes('a'), { requestId: '0' })]).toEqual([]);
    expect(harness.processor.numUnfinishedRequests).toBe(1);
    expect([...harness.step(bytes('b'), { requestId: '0' })]).toEqual(['0']);
    expect(harness.processor.numUnfinishedRequests).toBe(0);
  });

  test('are told apart, and given together when the last is done', () => {
    const harness = new Harness({ n: 2 });
    harness.step([97], { requestId: '1', finishReason: 'length' });
    expect(harness.listener.output).toBeNull();
    harness.step([98], { requestId: '0', finishReason: 'stop' });
    expect(harness.listener.output?.outputs).toMatchObject([
      { index: 0, tokenIds: [98], finishReason: 'stop' },
      { index: 1, tokenIds: [97], text: 'a', finishReason: 'length' },
    ]);
  });
});

test("a request that was given up is nobody's any more", () => {
  const harness = new Harness({ stop: ['bc'] });
  harness.steps(bytes('ab'));
  harness.processor.dropRequests(['0', 'unknown'], 'abort');
  expect(harness.processor.numUnfinishedRequests).toBe(0);
  // Nor is a token that was in flight.
  expect(harness.step([99])).toEqual([]);
  expect(harness.output).toBeUndefined();
  expect(harness.texts.join('')).toBe('a');
});

describe('a run of byte tokens, which is not final before it ends', () => {
  let sentencepiece: Tokenizer;
  /** The token of a byte; words are tokens of their own. */
  const byteToken = (byte: number) => 3 + byte;

  beforeAll(async () => {
    sentencepiece = await Tokenizer.load(path.join(__dirname, '../tokenizer/sentencepiece'));
  });

  afterAll(() => sentencepiece.close());

  test('ends an output at a stop string that it completes', () => {
    const harness = new Harness({ stop: ['\n\n'] }, sentencepiece);
    expect(harness.step([byteToken(0x0a)])).toEqual([]);
    expect(harness.step([byteToken(0x0a)])).toEqual(['0']);
    expect(harness.output).toMatchObject({ text: '', finishReason: 'stop' });
  });

  test('does so with the text before it, and the stop string if that is wanted', async () => {
    const harness = new Harness({ stop: ['!\n'], includeStopStrInOutput: true }, sentencepiece);
    const ids = await sentencepiece.encode('wind', { addSpecialTokens: false });
    expect(harness.step([...ids, byteToken(0x21)])).toEqual([]);
    expect(harness.step([byteToken(0x0a)])).toEqual(['0']);
    expect(harness.output).toMatchObject({ text: ' wind!\n', finishReason: 'stop' });
  });

  test('does not where its end may still break it', () => {
    const harness = new Harness({ stop: ['é'] }, sentencepiece);
    expect(harness.step([byteToken(0xc3)])).toEqual([]);
    expect(harness.step([byteToken(0xc3)], { finishReason: 'length' })).toEqual([]);
    expect(harness.output).toMatchObject({ text: '\ufffd\ufffd', finishReason: 'length' });
  });
});

test('a failure reaches each caller once', () => {
  const harness = new Harness({ n: 2 });
  harness.processor.failAll(new Error('lost'), 'error');
  expect(harness.listener.error).toEqual(new Error('lost'));
  expect(harness.listener.output).toBeNull();
});

describe('a request that other ranks have begun', () => {
  test('ends at a stop string that began there', () => {
    const harness = new Harness({ stop: 'stop' }, tokenizer, 'A bus st');
    expect(harness.steps(bytes('op it'))).toEqual(['0']);
    expect(harness.output).toMatchObject({ text: 'A bus ', finishReason: 'stop' });
  });

  test('gives what is new, and in the end the whole', () => {
    const harness = new Harness({}, tokenizer, 'one ');
    harness.steps(bytes('two'), 'length');
    expect(harness.texts.join('')).toBe('two');
    expect(harness.output).toMatchObject({ text: 'one two', tokenIds: bytes('one two') });
  });
});
