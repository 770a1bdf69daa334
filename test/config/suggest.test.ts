/** What the error for an unknown option suggests: a name nearby, or another library's name for it. */
import { LLM } from '../../lib';
import { engineArgsSchema } from '../../lib/config/engineArgs';
import { limitsSchema } from '../../lib/config/limits';
import { checkChatOptions, checkRequestOptions } from '../../lib/config/requestOptions';
import { SAMPLING_NAMES, SamplingParams } from '../../lib/config/samplingParams';
import { suggestName } from '../../lib/config/suggest';

const ENGINE = Object.keys(engineArgsSchema.shape);
const LIMITS = Object.keys(limitsSchema.shape);

function messageOf(call: () => unknown): string {
  try {
    call();
  } catch (error) {
    return (error as Error).message;
  }
  throw new Error('nothing was thrown');
}

const inParams = (name: string) => messageOf(() => new SamplingParams({ [name]: 1 }));
const inChat = (name: string) => messageOf(() => checkChatOptions({ [name]: 1 }));
const inStream = (name: string) => messageOf(() => checkRequestOptions({ [name]: 1 }));

describe('in snake case every option is recognised', () => {
  const snake = (name: string) => name.replaceAll(/[A-Z]/g, (c) => `_${c.toLowerCase()}`);
  test.each([...SAMPLING_NAMES, ...ENGINE, ...LIMITS])('%s', (name) => {
    const known = [SAMPLING_NAMES, ENGINE, LIMITS].find((names) => names.includes(name)) ?? [];
    expect(suggestName(snake(name), known)).toBe(name);
    expect(suggestName(name.toUpperCase(), known)).toBe(name);
  });
});

test.each([
  ['max_tokens', 'maxTokens'],
  ['max_new_tokens', 'maxTokens'],
  ['max_completion_tokens', 'maxTokens'],
  ['n_predict', 'maxTokens'],
  ['maxToken', 'maxTokens'],
  ['maxTokesn', 'maxTokens'],
  ['top_p', 'topP'],
  ['min_p', 'minP'],
  ['temprature', 'temperature'],
  ['temp', 'temperature'],
  ['stop_sequences', 'stop'],
  ['stp', null],
  ['sede', 'seed'],
  ['num_return_sequences', 'n'],
  ['repeat_penalty', 'repetitionPenalty'],
  ['bad_words', 'badWords'],
  ['eos_token_id', 'stopTokenIds'],
  ['log_probs', 'logprobs'],
  // Nothing near.
  ['x', null],
  ['m', null],
  ['beam', null],
  ['tokens', null],
  ['lora', null],
  ['penalty', null],
  ['responseFormat', null],
  ['', null],
])('a sampling parameter %p: %p', (name, meant) => {
  expect(suggestName(name, SAMPLING_NAMES)).toBe(meant);
  const message = inParams(name);
  expect(message).toContain(`unknown option ${name}; `);
  if (meant === null) expect(message).not.toContain('did you mean');
  else expect(message).toContain(`; did you mean ${meant}?`);
});

test.each([
  ['max_model_length', 'maxModelLen'],
  ['gpu_memory_utilization', 'memoryUtilization'],
  ['n_ctx', 'maxModelLen'],
  ['torch_dtype', 'dtype'],
  ['modelPath', 'model'],
  ['tensorParallelSiez', 'tensorParallelSize'],
  ['batch_size', 'maxNumSeqs'],
  ['trustRemoteCode', null],
  ['quantisation', 'quantization'],
  ['port', null],
])('an engine argument %p: %p', (name, meant) => {
  expect(suggestName(name, ENGINE)).toBe(meant);
});

test.each([
  ['timeout', 'timeoutMs'],
  ['abortSignal', 'signal'],
  ['singal', 'signal'],
  ['cache_salt', 'cacheSalt'],
  ['priorty', 'priority'],
])('an option of a call %p: %p', (name, meant) => {
  expect(inStream(name)).toContain(`unknown option ${name}; did you mean ${meant}?`);
});

test.each([
  ['onprogress', 'onProgress'],
  ['progress_callback', 'onProgress'],
  ['abort_signal', 'signal'],
  ['chat_template', 'chatTemplate'],
  ['max_model_len', 'maxModelLen'],
])('an option of LLM.create %p: %p', async (name, meant) => {
  await expect(LLM.create({ [name]: 'x' })).rejects.toMatchObject({
    code: 'CONFIG_INVALID',
    message: expect.stringContaining(`unknown option ${name}; did you mean ${meant}?`) as string,
  });
});

test('of two names as near, the one with the same beginning is meant', () => {
  expect(inParams('stopp')).toContain('did you mean stop?');
  expect(inParams('topl')).toContain('did you mean topP?');
});

test('a name that is near nothing gets the list of options', () => {
  expect(inStream('lora')).toMatch(/unknown option lora; the options are signal, timeoutMs, /);
  expect(inStream('lora')).not.toContain('did you mean');
});

test('a sampling parameter among the options of a call is sent to the SamplingParams', () => {
  for (const inOptions of [inStream, inChat]) {
    expect(inOptions('max_tokens')).toContain(
      'the sampling parameter maxTokens goes into the SamplingParams',
    );
    expect(inOptions('temperature')).toContain('the sampling parameter temperature goes into');
  }
});

test('an option of a call among the sampling parameters is sent to the call', () => {
  for (const name of ['signal', 'timeoutMs', 'tools', 'cacheSalt']) {
    expect(inParams(name)).toContain(
      `unknown option ${name}; ${name} is an option of the call, in the argument after`,
    );
  }
});

test('an option of chats in a stream of text is called that', () => {
  expect(inStream('tools')).toContain('it is an option of chat and chatStream');
});
