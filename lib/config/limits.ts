/**
 * All limits of one call. `HARD_LIMITS` come from the device's int32 and float32 and cannot be raised;
 * `RequestLimits` are options of the engine, with defaults above any legitimate use.
 */
import { z } from 'zod';

export const MAX_INT32 = 2 ** 31 - 1;

/** Limits that no option can raise. */
export const HARD_LIMITS = Object.freeze({
  /** Token ids, topK and minTokens are int32 on the device. */
  int32: MAX_INT32,
  /** Maximum outputs of one prompt, as in vLLM. */
  n: 16_384,
  /** Maximum entries of a list in the sampling parameters. */
  listLength: 2 ** 20,
  /**
   * Bytes of a request's lists that fit in its slot's own device memory; longer lists share
   * `maxListMemoryBytes`.
   */
  slotListBytes: 4096,
  /** Maximum magnitude of a logit bias. */
  logitBias: 100,
  /** Beyond these a repetition penalty times a logit leaves float32's range. */
  repetitionPenalty: Object.freeze({ min: 1e-20, max: 1e20 }),
  /** Maximum nesting of lists and objects in a chat message. */
  messageDepth: 64,
  /** Tools of a chat: their grammar is written in a few milliseconds on the JavaScript thread. */
  tools: 1024,
});

/** Limits of one call; the engine's option `limits`. */
export interface RequestLimits {
  /**
   * Prompts of one call.
   * @defaultValue `65536`
   */
  maxPromptsPerCall: number;
  /**
   * Outputs of one call: the sum of its prompts' `n`.
   * @defaultValue `65536`
   */
  maxRequestsPerCall: number;
  /**
   * Outputs of one prompt.
   * @defaultValue `16384`
   */
  maxN: number;
  /**
   * Length of a prompt's text, in UTF-16 code units.
   * @defaultValue `16777216`
   */
  maxPromptLength: number;
  /**
   * Messages, fields and list entries in the conversations of one call.
   * @defaultValue `262144`
   */
  maxMessageValues: number;
  /**
   * Stop strings of a request.
   * @defaultValue `64`
   */
  maxStopStrings: number;
  /**
   * Length of a stop string, in UTF-16 code units.
   * @defaultValue `1024`
   */
  maxStopStringLength: number;
  /**
   * Stop token ids of a request.
   * @defaultValue `4096`
   */
  maxStopTokenIds: number;
  /**
   * Bad words of a request.
   * @defaultValue `65536`
   */
  maxBadWords: number;
  /**
   * Length of a bad word: UTF-16 code units of a text, tokens of a list.
   * @defaultValue `1024`
   */
  maxBadWordLength: number;
  /**
   * Tokens of a request's bad words in all.
   * @defaultValue `1048576`
   */
  maxBadWordsTokens: number;
  /**
   * Tokens of a request with a logit bias.
   * @defaultValue `65536`
   */
  maxLogitBiases: number;
  /**
   * Allowed token ids of a request.
   * @defaultValue `524288`
   */
  maxAllowedTokenIds: number;
  /**
   * Bytes of device memory, allocated at start-up, shared by running requests with lists above 4,096
   * bytes (4 bytes per token id, 4 per bias). A request that does not fit beside the others waits; one
   * that does not fit alone is refused.
   * @defaultValue `67108864`
   */
  maxListMemoryBytes: number;
  /**
   * Logprobs that one call can return: positions times alternatives, over its outputs.
   * @defaultValue `67108864`
   */
  maxLogprobsPerCall: number;
  /**
   * Length of a cache salt, in UTF-16 code units.
   * @defaultValue `1024`
   */
  maxCacheSaltLength: number;
}

export const DEFAULT_LIMITS: Readonly<RequestLimits> = Object.freeze({
  maxPromptsPerCall: 65_536,
  maxRequestsPerCall: 65_536,
  maxN: HARD_LIMITS.n,
  maxPromptLength: 2 ** 24,
  maxMessageValues: 2 ** 18,
  maxStopStrings: 64,
  maxStopStringLength: 1024,
  maxStopTokenIds: 4096,
  maxBadWords: 65_536,
  maxBadWordLength: 1024,
  maxBadWordsTokens: 2 ** 20,
  maxLogitBiases: 65_536,
  maxAllowedTokenIds: 2 ** 19,
  maxListMemoryBytes: 2 ** 26,
  maxLogprobsPerCall: 2 ** 26,
  maxCacheSaltLength: 1024,
});

/** Maximum value of each limit. */
export const HIGHEST: Readonly<RequestLimits> = Object.freeze({
  maxPromptsPerCall: MAX_INT32,
  maxRequestsPerCall: MAX_INT32,
  maxN: HARD_LIMITS.n,
  // V8's maximum string length.
  maxPromptLength: 2 ** 29 - 24,
  maxMessageValues: MAX_INT32,
  maxStopStrings: HARD_LIMITS.listLength,
  maxStopStringLength: MAX_INT32,
  maxStopTokenIds: HARD_LIMITS.listLength,
  maxBadWords: HARD_LIMITS.listLength,
  maxBadWordLength: HARD_LIMITS.listLength,
  // One device list holds all words (RequestLimits::kMaxListLength).
  maxBadWordsTokens: 2 ** 24,
  maxLogitBiases: HARD_LIMITS.listLength,
  maxAllowedTokenIds: HARD_LIMITS.listLength,
  maxListMemoryBytes: 2 ** 31,
  maxLogprobsPerCall: Number.MAX_SAFE_INTEGER,
  maxCacheSaltLength: MAX_INT32,
});

const limit = (name: keyof RequestLimits) =>
  z.int().min(1).max(HIGHEST[name]).optional().describe(`an integer from 1 to ${HIGHEST[name]}`);

/** Schema of the engine's option `limits`; all are optional. */
export const limitsSchema = z.strictObject({
  maxPromptsPerCall: limit('maxPromptsPerCall'),
  maxRequestsPerCall: limit('maxRequestsPerCall'),
  maxN: limit('maxN'),
  maxPromptLength: limit('maxPromptLength'),
  maxMessageValues: limit('maxMessageValues'),
  maxStopStrings: limit('maxStopStrings'),
  maxStopStringLength: limit('maxStopStringLength'),
  maxStopTokenIds: limit('maxStopTokenIds'),
  maxBadWords: limit('maxBadWords'),
  maxBadWordLength: limit('maxBadWordLength'),
  maxBadWordsTokens: limit('maxBadWordsTokens'),
  maxLogitBiases: limit('maxLogitBiases'),
  maxAllowedTokenIds: limit('maxAllowedTokenIds'),
  maxListMemoryBytes: limit('maxListMemoryBytes'),
  maxLogprobsPerCall: limit('maxLogprobsPerCall'),
  maxCacheSaltLength: limit('maxCacheSaltLength'),
} satisfies Record<keyof RequestLimits, z.ZodType>);

/** Names an exceeded limit in an error message. */
export function limitedBy<Name extends keyof RequestLimits>(
  limits: Readonly<Pick<RequestLimits, Name>>,
  name: Name,
): string {
  return `${name} is ${limits[name]} (raise it with the engine's option limits)`;
}
