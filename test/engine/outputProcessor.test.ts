import { EventEmitter } from 'node:events';
import fc from 'fast-check';
import path from 'node:path';
import { SamplingParams, type SamplingParamsOptions } from '../../lib/config/samplingParams';
import { Call } from '../../lib/engine/call';
import { LogprobsDecoder } from '../../lib/engine/logprobs';
import { EngineMetrics } from '../../lib/engine/metrics';
import type { OutputReceiver } from '../../lib/engine/outputCollector';
import { OutputProcessor } from '../../lib/engine/outputProcessor';
import { ParentRequest } from '../../lib/engine/requestState';
import type { EngineCoreOutputs, OutputDelta, RequestOutput } from '../../lib/engine/outputs';
import { Request } from '../../lib/engine/request';
import { InvalidLogitsError, RequestFailedError, type UniprocError } from '../../lib/errors';
import { IncrementalDetokenizer } from '../../lib/tokenizer/detokenizer';
import { Tokenizer } from '../../lib/tokenizer/tokenizer';
import type { LogprobsLists } from '../../lib/contract/modelRunnerOutput';
import { byteTokenizer, EOS_TOKEN_ID } from './byteTokenizer';

let tokenizer: Tokenizer;

beforeAll(async () => {
  tokenizer = await byteTokenizer();
});

const bytes = (text: string) => [...Buffer.from(text)];

/** What a request's caller receives. */
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
  readonly metrics = new EngineMetrics(new EventEmitter());
  readonly processor: OutputProcessor;
  readonly listener: Listener;
  readonly requests: Request[] = [];

  /** `generated`: tokens already generated on other ranks. */
  constructor(
    options: SamplingParamsOptions = {},
    withTokenizer: Tokenizer | null = tokenizer,
    generated = '',
    prompt = bytes('Hi'),
  ) {
    this.processor = new OutputProcessor(withTokenizer, this.metrics);
    this.listener = this.add('0', options, generated, prompt);
  }

  /** A prompt with samples of consecutive ids, starting at this one. */
  add(
    firstId: string,
    options: SamplingParamsOptions = {},
    generated = '',
    prompt = bytes('Hi'),
  ): Listener {
    const listener = new Listener();
    const samplingParams = new SamplingParams({ maxTokens: null, ...options });
    const promptTokenIds = Int32Array.from(prompt);
    const parent = new ParentRequest(
      firstId,
      'Hi',
      promptTokenIds,
      samplingParams,
      listener,
      new Call(1),
    );
    for (let index = 0; index < samplingParams.n; index++) {
      const request = new Request({
        requestId: String(Number(firstId) + index),
        promptTokenIds,
        samplingParams,
        stopTokenIds: [],
        badWordsTokenIds: [],
        seed: 0n,
        maxModelLen: 1024,
      });
      for (const tokenId of bytes(generated)) request.appendOutputToken(tokenId);
      this.requests.push(request);
      this.processor.addRequest(request, parent, index, 0);
    }
    return listener;
  }

  /** Processes a step with these tokens for one request; returns the ids of stopped requests. */
  step(
    tokenIds: number[],
    {
      requestId = '0',
      finishReason = null,
      logprobs = null,
      promptLogprobs = null,
      error = null,
    }: {
      requestId?: string;
      finishReason?: 'stop' | 'length' | null;
      logprobs?: LogprobsLists | null;
      promptLogprobs?: LogprobsLists | null;
      error?: UniprocError | null;
    } = {},
  ): readonly string[] {
    // Another request's token comes first in the step.
    const step: EngineCoreOutputs = {
      outputs: [
        { requestId, start: 1, end: 1 + tokenIds.length, promptLogprobs, finishReason, error },
      ],
      length: 1,
      sampledTokenIds: Int32Array.from([77, ...tokenIds]),
      logprobs,
    };
    return this.processor.processOutputs(step, 0);
  }

  /** Processes a step per token, the last with the reason; returns the ids of stopped requests. */
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
  test('is streamed, and complete in the output', () => {
    const harness = new Harness();
    expect(harness.steps(bytes('abc'), 'length')).toEqual([]);
    const of = { requestId: '0', numPromptTokens: 2, index: 0, stopReason: null };
    expect(harness.listener.deltas).toEqual([
      { ...of, text: 'a', tokenIds: [97], finishReason: null },
      { ...of, text: 'b', tokenIds: [98], finishReason: null },
      {
        ...of,
        text: 'c',
        tokenIds: [99],
        finishReason: 'length',
        usage: { numPromptTokens: 2, numCachedTokens: 0, numOutputTokens: 3 },
        metrics: expect.any(Object) as object,
      },
    ]);
    expect(harness.listener.output).toEqual({
      requestId: '0',
      prompt: 'Hi',
      promptTokenIds: bytes('Hi'),
      promptLogprobs: null,
      outputs: [
        {
          index: 0,
          text: 'abc',
          tokenIds: bytes('abc'),
          finishReason: 'length',
          stopReason: null,
          logprobs: null,
          cumulativeLogprob: null,
        },
      ],
      numCachedTokens: 0,
      metrics: expect.any(Object) as object,
    });
  });

  test('never has an incomplete character', () => {
    const harness = new Harness();
    harness.steps(bytes('aé€😀b'), 'length');
    expect(harness.texts).toEqual(['a', '', 'é', '', '', '€', '', '', '', '😀', 'b']);
    expect(harness.output?.text).toBe('aé€😀b');
  });

  test('excludes the stop token, which is in tokenIds', () => {
    const harness = new Harness({ skipSpecialTokens: false });
    harness.steps([...bytes('ab'), 99], 'stop');
    expect(harness.output).toMatchObject({ text: 'ab', tokenIds: bytes('abc') });
  });

  // As in vLLM, which excludes a stop token only without the option.
  test('includes the stop token with includeStopStrInOutput, unless it is special and skipped', () => {
    const textOf = (stopToken: number, options: SamplingParamsOptions) => {
      const harness = new Harness({ includeStopStrInOutput: true, ...options });
      harness.steps([...bytes('ab'), stopToken], 'stop');
      return harness.output?.text;
    };
    expect(textOf(99, {})).toBe('abc');
    expect(textOf(EOS_TOKEN_ID, {})).toBe('ab');
    expect(textOf(EOS_TOKEN_ID, { skipSpecialTokens: false })).toBe('ab<eos>');
  });

  test('excludes special tokens by default', () => {
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
  test('that spans tokens finishes the request and is reported to the scheduler', () => {
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

  test('is never streamed, not even a prefix of it', () => {
    const harness = new Harness({ stop: ['END'] });
    harness.steps(bytes('an EGG, the END'));
    expect(harness.texts.join('')).toBe('an EGG, the ');
    expect(harness.texts.slice(3, 5)).toEqual(['', 'EG']);
    expect(harness.listener.deltas.at(-1)).toMatchObject({ text: '', finishReason: 'stop' });
  });

  test('is included on request', () => {
    const harness = new Harness({ stop: ['END'], includeStopStrInOutput: true });
    harness.steps(bytes('the END'));
    expect(harness.output?.text).toBe('the END');
    expect(harness.texts.join('')).toBe('the END');
  });

  test('that is incomplete when the request ends is text', () => {
    const harness = new Harness({ stop: ['END'] });
    harness.steps(bytes('the EN'), 'length');
    expect(harness.output).toMatchObject({ text: 'the EN', finishReason: 'length' });
    expect(harness.texts.join('')).toBe('the EN');
  });

  test('counts if the request ends with it anyway, without a report to the scheduler', () => {
    const harness = new Harness({ stop: ['END'] });
    expect(harness.steps(bytes('the END'), 'length')).toEqual([]);
    expect(harness.output).toMatchObject({ text: 'the ', finishReason: 'stop' });
  });

  test('counts only if completed after minTokens tokens', () => {
    const harness = new Harness({ stop: ['a'], minTokens: 3 });
    harness.steps(bytes('aabca'));
    expect(harness.output).toMatchObject({ text: 'aabc', tokenIds: bytes('aabca') });
  });

  // As in vLLM with min_tokens 3: its stop_check_offset is after the third token.
  test('may start in the first minTokens tokens, with that text held back', () => {
    const harness = new Harness({ stop: ['a', 'bc'], minTokens: 3 });
    expect(harness.steps(bytes('aabc'))).toEqual(['0']);
    expect(harness.output).toMatchObject({ text: 'aa', tokenIds: bytes('aabc') });
    expect(harness.texts).toEqual(['a', 'a', '', '']);
  });

  test.each([
    ['alone', '<eos>', 'ab', 'ab'],
    ['after text', 'b<eos>', 'a', 'ab'],
    ['before text', '<eos>c', 'ab', 'abc'],
    ['inside text', 'b<eos>cd', 'a', 'abcd'],
  ])('matches a special token %s that the text excludes', (_, stop, before, whole) => {
    const tokenIds = [...bytes('ab'), EOS_TOKEN_ID, ...bytes('cde')];
    for (const includeStopStrInOutput of [false, true]) {
      const harness = new Harness({ stop, includeStopStrInOutput });
      expect(harness.steps(tokenIds)).toEqual(['0']);
      expect(harness.output?.text).toBe(includeStopStrInOutput ? whole : before);
      expect(harness.texts.join('')).toBe(harness.output?.text);
    }
    const visible = new Harness({ stop, skipSpecialTokens: false });
    visible.steps(tokenIds);
    expect(visible.output?.text).toBe(before);
  });

  test('matches no part of a special token', () => {
    const harness = new Harness({ stop: ['eos', '>c'] });
    expect(harness.steps([97, EOS_TOKEN_ID, ...bytes('cd')], 'length')).toEqual([]);
    expect(harness.output?.text).toBe('acd');
  });

  test('drops the tokens after it in the same step', () => {
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
  /** Two rows; the second is the request's, with its token third likeliest. */
  const logprobs: LogprobsLists = {
    width: 4,
    tokenIds: Int32Array.of(77, 1, 2, 3, 99, 97, 98, 99),
    logprobs: Float32Array.of(-9, -1, -2, -3, -2.5, -0.5, -1.5, -2.5),
    ranks: Int32Array.of(50, 3),
  };

  test('are the sampled token and the requested number of others', () => {
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

  test('list the sampled token once if it is among the likeliest', () => {
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

  test('are null if not requested, even if others in the step request them', () => {
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

  test('of the prompt accumulate over steps, null for the first token', () => {
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

describe('the text that a token adds', () => {
  /** Rows of `width` 2: sampled tokens and one alternative each. */
  function rows(tokenIds: number[], alternatives: number[]): LogprobsLists {
    return {
      width: 2,
      tokenIds: Int32Array.from(tokenIds.flatMap((tokenId, i) => [tokenId, alternatives[i]])),
      logprobs: new Float32Array(2 * tokenIds.length).fill(-1),
      ranks: new Int32Array(tokenIds.length).fill(2),
    };
  }

  /** Runs one step per token. */
  function run(tokenIds: number[], alternatives: number[], options: SamplingParamsOptions = {}) {
    const harness = new Harness({ logprobs: 1, ...options });
    tokenIds.forEach((tokenId, i) => {
      const logprobs = rows([77, tokenId], [77, alternatives[i]]);
      const finishReason = i === tokenIds.length - 1 ? 'length' : null;
      harness.step([tokenId], { logprobs, finishReason });
    });
    const entries = harness.output?.logprobs?.map((position) => [...position.values()]) ?? [];
    return { harness, entries };
  }

  test("is empty until a character's last byte, then the character", () => {
    const tokenIds = bytes('a😀b');
    const { harness, entries } = run(tokenIds, bytes('xxxxxx'));
    const sampled = entries.map(([own]) => own);
    expect(sampled.map(({ decodedToken }) => decodedToken)).toEqual(['a', '', '', '', '😀', 'b']);
    expect(sampled.map((entry) => entry.bytes)).toEqual([
      undefined,
      [0xf0],
      [0x9f],
      [0x98],
      [0x80],
      undefined,
    ]);
    expect(harness.output?.text).toBe('a😀b');
  });

  test('of an alternative is what it would have added at that position', () => {
    // E2 82 is continued by AC (euro), by another byte (another character) or by a letter.
    const [, , euro] = bytes('€');
    const { entries } = run([...bytes('€'), 97], [98, 98, 0xbd, euro]);
    expect(entries.map(([, other]) => other.decodedToken)).toEqual([
      'b',
      '\ufffdb',
      Buffer.from([0xe2, 0x82, 0xbd]).toString(),
      // No character continues with this byte.
      '\ufffd',
    ]);
    expect(entries[2][1].bytes).toEqual([0xbd]);
  });

  test('includes special tokens that the output excludes', () => {
    const { harness, entries } = run([97, EOS_TOKEN_ID], [98, 98]);
    expect(entries[1][0].decodedToken).toBe('<eos>');
    expect(harness.output?.text).toBe('a');
  });

  test('adds up to the whole text, for any bytes', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(255), { minLength: 1, maxLength: 12 }), (tokenIds) => {
        // A final letter completes the text.
        const all = [...tokenIds, 97];
        const { harness, entries } = run(all, all);
        const texts = entries.map(([{ decodedToken }]) => decodedToken);
        expect(texts.join('')).toBe(harness.output?.text);
        expect(texts.join('')).toBe(Buffer.from(all).toString());
      }),
    );
  });

  test('continues from the prompt', () => {
    const harness = new Harness({ promptLogprobs: 0 }, tokenizer, '', bytes('h€'));
    const [, first, second, third] = bytes('h€');
    const list = rows([first, second, third], [97, 97, 97]);
    harness.step([], { promptLogprobs: list });
    harness.step([99], { finishReason: 'length' });
    const entries = harness.listener.output?.promptLogprobs?.map((position) =>
      Array.from(position?.values() ?? [], ({ decodedToken, bytes }) => ({ decodedToken, bytes })),
    );
    expect(entries).toEqual([
      [],
      [{ decodedToken: '', bytes: [0xe2] }],
      [{ decodedToken: '', bytes: [0x82] }],
      [{ decodedToken: '€', bytes: [0xac] }],
    ]);
  });

  test('is decoded only if logprobs are requested', () => {
    const next = jest.spyOn(LogprobsDecoder.prototype, 'next');
    run([97, 98], [98, 98], { logprobs: null });
    expect(next).not.toHaveBeenCalled();
    run([97, 98], [98, 98]);
    expect(next).toHaveBeenCalled();
    next.mockRestore();
  });
});

describe('a stream', () => {
  const list = (...tokenIds: number[]): LogprobsLists => ({
    width: 1,
    tokenIds: Int32Array.from(tokenIds),
    logprobs: Float32Array.from(tokenIds, (tokenId) => -tokenId),
    ranks: Int32Array.from(tokenIds, () => 1),
  });
  const entry = (tokenId: number) => [
    tokenId,
    { logprob: -tokenId, rank: 1, decodedToken: String.fromCharCode(tokenId) },
  ];

  test("has the logprobs of its tokens, and the prompt's first", () => {
    const harness = new Harness({ logprobs: 0, promptLogprobs: 0 });
    harness.step([97], { logprobs: list(77, 97), promptLogprobs: list(105) });
    harness.step([98, 99], { logprobs: list(77, 98, 99), finishReason: 'length' });
    const plain = harness.listener.deltas.map(({ logprobs, promptLogprobs }) => ({
      logprobs: logprobs?.map((position) => [...position]),
      promptLogprobs: promptLogprobs?.map((position) => position && [...position]),
    }));
    expect(plain).toEqual([
      { logprobs: [[entry(97)]], promptLogprobs: [null, [entry(105)]] },
      { logprobs: [[entry(98)], [entry(99)]], promptLogprobs: undefined },
    ]);
  });

  test('has no logprobs unless requested', () => {
    const harness = new Harness();
    harness.step([97], { logprobs: list(77, 97), finishReason: 'length' });
    const names = Object.keys(harness.listener.deltas[0]);
    expect(names).toContain('finishReason');
    expect(names.filter((name) => /logprob/i.test(name))).toEqual([]);
  });
});

describe('as JSON', () => {
  const logprobs: LogprobsLists = {
    width: 3,
    tokenIds: Int32Array.of(77, 1, 2, 0xf0, 98, 9),
    logprobs: Float32Array.of(-9, -1, -2, -0.5, -1.5, -Infinity),
    ranks: Int32Array.of(50, 1),
  };
  // Order counts: ids as an object's keys would be sorted.
  const written = [
    { tokenId: 0xf0, logprob: -0.5, rank: 1, decodedToken: '', bytes: [0xf0] },
    { tokenId: 98, logprob: -1.5, rank: 1, decodedToken: 'b' },
    { tokenId: 9, logprob: -9999, rank: 2, decodedToken: '\t' },
  ];

  test('an output keeps all its logprobs, in order', () => {
    const harness = new Harness({ logprobs: 2, promptLogprobs: 2 });
    harness.step([0xf0], {
      logprobs,
      promptLogprobs: {
        width: 3,
        tokenIds: logprobs.tokenIds.slice(3),
        logprobs: logprobs.logprobs.slice(3),
        ranks: Int32Array.of(1),
      },
      finishReason: 'length',
    });
    const { output, deltas } = harness.listener;
    expect(JSON.parse(JSON.stringify(output))).toMatchObject({
      requestId: '0',
      prompt: 'Hi',
      promptTokenIds: bytes('Hi'),
      promptLogprobs: [null, written],
      outputs: [
        {
          index: 0,
          text: '\ufffd',
          tokenIds: [0xf0],
          finishReason: 'length',
          stopReason: null,
          logprobs: [written],
          cumulativeLogprob: -0.5,
        },
      ],
    });
    expect(JSON.parse(JSON.stringify(deltas))).toMatchObject([
      {
        index: 0,
        text: '\ufffd',
        tokenIds: [0xf0],
        finishReason: 'length',
        logprobs: [written],
        promptLogprobs: [null, written],
      },
    ]);
  });
});

describe('a fault of one request', () => {
  test('found by the scheduler reaches only its caller', () => {
    const harness = new Harness({ n: 2 });
    const other = harness.add('9');
    const error = new InvalidLogitsError('1', 3, 320);
    expect([...harness.step([], { requestId: '1', error })].sort()).toEqual(['0', '1']);
    expect([...harness.processor.failedReqIds].sort()).toEqual(['0', '1']);
    expect(harness.listener.error).toBe(error);
    expect(harness.metrics).toMatchObject({
      numNansInLogits: 1,
      numFinishedReqs: { error: 2 },
    });
    harness.step([97], { requestId: '9', finishReason: 'length' });
    expect(other.output?.outputs[0].text).toBe('a');
    expect(harness.processor.failedReqIds).toEqual([]);
  });

  test.each(['delta', 'finished'] as const)('in its receiver, %s, fails only it', (method) => {
    const harness = new Harness();
    const fault = new TypeError('the reader is broken');
    jest.spyOn(harness.listener, method).mockImplementation(() => {
      throw fault;
    });
    const other = harness.add('9');
    harness.steps([97], 'length');
    expect(harness.listener.error).toMatchObject({ code: 'REQUEST_FAILED', cause: fault });
    expect(harness.processor.numUnfinishedRequests).toBe(1);
    harness.step([97], { requestId: '9', finishReason: 'length' });
    expect(other.output?.outputs[0].text).toBe('a');
  });

  test('in detokenization fails it and is reported to the scheduler', () => {
    const harness = new Harness();
    const other = harness.add('9');
    const append = jest.spyOn(IncrementalDetokenizer.prototype, 'append');
    append.mockImplementationOnce(() => {
      throw new RangeError('no such token');
    });
    expect(harness.step([97])).toEqual(['0']);
    append.mockRestore();
    expect(harness.listener.error).toBeInstanceOf(RequestFailedError);
    expect(harness.step([97], { requestId: '9', finishReason: 'length' })).toEqual([]);
    expect(other.output?.outputs[0].text).toBe('a');
  });

  test('a NaN logprob fails it', () => {
    const nan = {
      width: 1,
      tokenIds: Int32Array.of(77, 97),
      logprobs: Float32Array.of(-1, NaN),
      ranks: Int32Array.of(1, 1),
    };
    const harness = new Harness({ logprobs: 0 });
    expect(harness.step([97], { logprobs: nan })).toEqual(['0']);
    expect(harness.listener.error).toMatchObject({ code: 'LOGITS_INVALID', requestId: '0' });
    const prompt = new Harness({ promptLogprobs: 0 });
    expect(prompt.step([97], { promptLogprobs: nan })).toEqual(['0']);
    expect(prompt.listener.error).toMatchObject({ code: 'LOGITS_INVALID', requestId: '0' });
  });

  test('costs the same with any number of others', () => {
    const harness = new Harness();
    for (let i = 1; i < 3000; i++) harness.add(String(i));
    const ended = jest.spyOn(harness.metrics, 'finished');
    for (let i = 0; i < harness.requests.length; i++) {
      harness.processor.dropRequests([harness.requests[i].requestId], 'error');
    }
    expect(ended).toHaveBeenCalledTimes(3000);
    expect(harness.processor.numUnfinishedRequests).toBe(0);
  });
});

describe('several samples', () => {
  test('stop independently', () => {
    const harness = new Harness({ n: 2, stop: ['b'] });
    expect([...harness.step(bytes('b'), { requestId: '1' })]).toEqual(['1']);
    expect([...harness.step(bytes('a'), { requestId: '0' })]).toEqual([]);
    expect(harness.processor.numUnfinishedRequests).toBe(1);
    expect([...harness.step(bytes('b'), { requestId: '0' })]).toEqual(['0']);
    expect(harness.processor.numUnfinishedRequests).toBe(0);
  });

  test('stay separate, and are delivered together once all are done', () => {
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

test('an aborted request has no call any more', () => {
  const harness = new Harness({ stop: ['bc'] });
  harness.steps(bytes('ab'));
  harness.processor.dropRequests(['0', 'unknown'], 'abort');
  expect(harness.processor.numUnfinishedRequests).toBe(0);
  // Nor is a token in flight.
  expect(harness.step([99])).toEqual([]);
  expect(harness.output).toBeUndefined();
  expect(harness.texts.join('')).toBe('a');
});

describe('a run of byte tokens, which is not final before it ends', () => {
  let sentencepiece: Tokenizer;
  /** The token of a byte; words are single tokens. */
  const byteToken = (byte: number) => 3 + byte;

  beforeAll(async () => {
    sentencepiece = await Tokenizer.load(path.join(__dirname, '../tokenizer/sentencepiece'));
  });

  afterAll(() => sentencepiece.close());

  test('finishes an output at a stop string that it completes', () => {
    const harness = new Harness({ stop: ['\n\n'] }, sentencepiece);
    expect(harness.step([byteToken(0x0a)])).toEqual([]);
    expect(harness.step([byteToken(0x0a)])).toEqual(['0']);
    expect(harness.output).toMatchObject({ text: '', finishReason: 'stop' });
  });

  test('is delivered up to the stop string, or including it on request', async () => {
    const harness = new Harness({ stop: ['!\n'], includeStopStrInOutput: true }, sentencepiece);
    const ids = await sentencepiece.encode('wind', { addSpecialTokens: false });
    expect(harness.step([...ids, byteToken(0x21)])).toEqual([]);
    expect(harness.step([byteToken(0x0a)])).toEqual(['0']);
    expect(harness.output).toMatchObject({ text: ' wind!\n', finishReason: 'stop' });
  });

  test('does not match while its end may still change', () => {
    const harness = new Harness({ stop: ['é'] }, sentencepiece);
    expect(harness.step([byteToken(0xc3)])).toEqual([]);
    expect(harness.step([byteToken(0xc3)], { finishReason: 'length' })).toEqual([]);
    expect(harness.output).toMatchObject({ text: '\ufffd\ufffd', finishReason: 'length' });
  });
});

describe('a request that other ranks have begun', () => {
  test('finishes at a stop string that began on another rank', () => {
    const harness = new Harness({ stop: 'stop' }, tokenizer, 'A bus st');
    expect(harness.steps(bytes('op it'))).toEqual(['0']);
    expect(harness.output).toMatchObject({ text: 'A bus ', finishReason: 'stop' });
  });

  test('streams what is new, and the output is complete', () => {
    const harness = new Harness({}, tokenizer, 'one ');
    harness.steps(bytes('two'), 'length');
    expect(harness.texts.join('')).toBe('two');
    expect(harness.output).toMatchObject({ text: 'one two', tokenIds: bytes('one two') });
  });
});
