import {
  checkChatOptions,
  checkChatStreamOptions,
  checkGenerateOptions,
  checkRequestOptions,
} from '../../lib/config/requestOptions';
import { InvalidRequestError } from '../../lib/errors';

const complaint = (check: () => unknown): InvalidRequestError => {
  try {
    check();
  } catch (error) {
    return error as InvalidRequestError;
  }
  throw new Error('it was accepted');
};

test('valid options are returned unchanged', () => {
  const { signal } = new AbortController();
  const options = { signal, timeoutMs: 50, priority: -2, cacheSalt: 'tenant 7' };
  expect(checkRequestOptions(options)).toEqual(options);
  expect(checkRequestOptions(options).signal).toBe(signal);
  expect(checkGenerateOptions({ ...options, progress: false })).toEqual({
    ...options,
    progress: false,
  });
  expect(checkRequestOptions({ signal: undefined, timeoutMs: undefined })).toEqual({});
});

test.each<[unknown, RegExp]>([
  [{ signal: 'stop' }, /signal is 'stop'; it must be an AbortSignal/],
  [{ timeoutMs: 0 }, /timeoutMs is 0; it must be an integer from 1/],
  [{ timeoutMs: 1.5 }, /timeoutMs is 1\.5/],
  // A longer setTimeout fires immediately.
  [{ timeoutMs: 2 ** 31 }, /timeoutMs is 2147483648; it must be an integer from 1 to 2147483647/],
  [{ priority: 0.5 }, /priority is 0\.5; it must be an integer/],
  [{ cacheSalt: '' }, /cacheSalt is ''; it must be a string that is not empty/],
  [{ timeoutms: 5 }, /unknown option timeoutms; did you mean timeoutMs\?/],
  [
    { add_special_tokens: true },
    /unknown option add_special_tokens; did you mean addSpecialTokens\?/,
  ],
  [{ progress: true }, /unknown option progress; it is an option of generate and chat/],
  [{ tools: [] }, /unknown option tools; it is an option of chat and chatStream/],
  [
    { enable_thinking: true },
    /unknown option enable_thinking; the options are signal, .*SamplingParams/,
  ],
  [{ addSpecialTokens: 1 }, /addSpecialTokens is 1; it must be true or false/],
  [{ truncatePromptTokens: 0 }, /truncatePromptTokens is 0; it must be an integer from 1, -1/],
  [null, /expected an object, not null/],
  [7, /expected an object, not 7/],
])('%j is refused', (options, message) => {
  const error = complaint(() => checkRequestOptions(options));
  expect(error).toBeInstanceOf(InvalidRequestError);
  expect(error.message).toMatch(/^options: /);
  expect(error.message).toMatch(message);
});

test('generate also accepts a boolean progress', () => {
  expect(complaint(() => checkGenerateOptions({ progress: 'yes' })).message).toMatch(
    /progress is 'yes'; it must be true or false/,
  );
  expect(complaint(() => checkGenerateOptions({ timeoutMs: -1 })).message).toMatch(/timeoutMs/);
});

test("chat also accepts a conversation's options", () => {
  const options = {
    tools: [{ type: 'function' }],
    documents: [{ title: 'a', text: 'b' }],
    chatTemplate: 'x',
    chatTemplateKwargs: { enable_thinking: false },
    addGenerationPrompt: false,
    continueFinalMessage: 'content',
    addSpecialTokens: true,
    splitSpecialTokens: true,
    truncatePromptTokens: -1,
  };
  expect(checkChatOptions({ ...options, progress: false })).toEqual({
    ...options,
    progress: false,
  });
  expect(checkChatStreamOptions(options)).toEqual(options);
  const nothing = { tools: null, documents: null, chatTemplate: null, truncatePromptTokens: null };
  expect(checkChatOptions(nothing)).toEqual(nothing);
});

test.each<[unknown, RegExp]>([
  [{ tool: [] }, /unknown option tool; did you mean tools\?/],
  [{ add_generation_prompt: true }, /did you mean addGenerationPrompt\?/],
  [{ chat_template_kwargs: {} }, /did you mean chatTemplateKwargs\?/],
  [{ enable_thinking: true }, /unknown option enable_thinking; .* go into chatTemplateKwargs/],
  [{ tools: 'x' }, /tools is 'x'; it must be a list of JSON schemas/],
  [{ tools: [5] }, /tools\[0\] is 5; tools must be a list of JSON schemas/],
  [{ documents: [null] }, /documents\[0\] is null/],
  [{ chatTemplate: 5 }, /chatTemplate is 5/],
  [{ chatTemplateKwargs: [] }, /chatTemplateKwargs is \[\]; it must be an object/],
  [{ continueFinalMessage: 1 }, /continueFinalMessage is 1/],
])('chat refuses %j', (options, message) => {
  expect(complaint(() => checkChatOptions(options)).message).toMatch(message);
});
