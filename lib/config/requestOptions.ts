/** Options of a call other than sampling parameters. */
import { z } from 'zod';
import { isAbortSignal } from '../abortSignal';
import { InvalidRequestError } from '../errors';
import type { ChatTemplateOptions } from '../tokenizer/chatMessages';
import { MAX_TIMER } from '../timer';
import { checkNumTools, limitedBy, type RequestLimits } from './limits';
import { replyFields, type ReplyOptions } from './replyOptions';
import { parseFields } from './schema';
import { SAMPLING_NAMES } from './samplingParams';
import { readingOf, snapshotFields } from './snapshot';
import { adviceFor, suggestName } from './suggest';

/** Options of one call; they apply to each of its prompts. */
export interface RequestOptions {
  /** Aborts the call: it rejects with RequestAbortedError and frees its blocks in the next step. */
  signal?: AbortSignal;
  /** Maximum milliseconds from the call (a stream's first read) to its end; default: no limit. */
  timeoutMs?: number;
  /** With schedulingPolicy 'priority', lower values run first; an integer, default 0. */
  priority?: number;
  /** Prompts share cached blocks only with prompts of the same salt (a tenant, say); default none. */
  cacheSalt?: string;
}

/** How a call's prompts are tokenized. */
export interface PromptOptions {
  /**
   * Add the model's special tokens around a text; default true, false for a chat, whose template has
   * them.
   */
  addSpecialTokens?: boolean;
  /**
   * Encode special tokens written in a text (in a chat: outside the assistant's messages) as plain
   * text; default false.
   */
  splitSpecialTokens?: boolean;
  /** Keep only this many last tokens of a prompt; -1: as many as the model takes; default all. */
  truncatePromptTokens?: number | null;
}

export interface StreamOptions extends RequestOptions, PromptOptions {}

export interface GenerateOptions extends StreamOptions {
  /** Show progress on stderr; default: if it is a terminal and there are several prompts. */
  progress?: boolean;
}

/** How conversations are rendered as prompts. */
export interface ChatPromptOptions extends PromptOptions, ChatTemplateOptions, ReplyOptions {
  /** A template's text, or the name of one of the checkpoint's. */
  chatTemplate?: string | null;
}

export interface ChatStreamOptions extends RequestOptions, ChatPromptOptions {}

export interface ChatOptions extends GenerateOptions, ChatPromptOptions {}

const requestSchema = z.strictObject({
  signal: z.custom<AbortSignal>(isAbortSignal).optional().describe('an AbortSignal'),
  timeoutMs: z.int().min(1).max(MAX_TIMER).optional().describe(`an integer from 1 to ${MAX_TIMER}`),
  priority: z.int().optional().describe('an integer of at most 53 bits'),
  cacheSalt: z.string().min(1).optional().describe('a string that is not empty'),
} satisfies Record<keyof RequestOptions, z.ZodType>);

const flag = () => z.boolean().optional().describe('true or false');
const objects = (what: string) =>
  z.array(z.record(z.string(), z.unknown())).nullish().describe(`a list of ${what}, or null`);

const promptFields = {
  addSpecialTokens: flag(),
  splitSpecialTokens: flag(),
  truncatePromptTokens: z
    .int()
    .min(-1)
    .refine((count) => count !== 0)
    .nullish()
    .describe('an integer from 1, -1 (as many tokens as the model takes) or null'),
} satisfies Record<keyof PromptOptions, z.ZodType>;

const chatFields = {
  tools: objects('JSON schemas of functions'),
  documents: objects('objects with title and text'),
  chatTemplate: z.string().nullish().describe("a template's text or name, or null"),
  chatTemplateKwargs: z
    .record(z.string(), z.unknown())
    .optional()
    .describe('an object of variables of the chat template'),
  addGenerationPrompt: flag(),
  continueFinalMessage: z
    .union([z.boolean(), z.string().min(1)])
    .optional()
    .describe('true, false or the name of a field of the last message'),
  ...replyFields,
} satisfies Record<Exclude<keyof ChatPromptOptions, keyof PromptOptions>, z.ZodType>;

const streamSchema = requestSchema.extend(promptFields);
const progressField = { progress: flag() };
const generateSchema = streamSchema.extend(progressField);
const chatStreamSchema = streamSchema.extend(chatFields);
const chatSchema = generateSchema.extend(chatFields);

function fail(message: string): InvalidRequestError {
  return new InvalidRequestError(`options: ${message}`);
}

/**
 * Validates options and returns a copy, reading each option once. Throws InvalidRequestError naming the
 * option, its value and the allowed values.
 */
type Check<Options> = (options: unknown, limits?: Readonly<RequestLimits>) => Options;

function checkBy<Options extends RequestOptions>(schema: z.ZodObject): Check<Options> {
  const names = Object.keys(schema.shape);
  return (options, limits) => {
    const given = readingOf('options', () => snapshotFields(options, names));
    checkNames(given, names);
    readingOf('options', () => checkNumTools((given as ChatOptions | null | undefined)?.tools));
    return withinLimits(parseFields(schema, given, fail) as Options, limits);
  };
}

/** Refuses an unknown option and suggests a known one. */
function checkNames(options: unknown, names: readonly string[]): void {
  if (typeof options !== 'object' || options === null) return;
  const unknown = Object.keys(options).find((name) => !names.includes(name));
  if (unknown === undefined) return;
  if (unknown in chatFields)
    throw fail(`unknown option ${unknown}; it is an option of chat and chatStream`);
  if (unknown in progressField)
    throw fail(`unknown option ${unknown}; it is an option of generate and chat`);
  if (suggestName(unknown, names) !== null)
    throw fail(`unknown option ${unknown}; ${adviceFor(unknown, names)}`);
  const parameter = suggestName(unknown, SAMPLING_NAMES);
  const advice =
    parameter !== null
      ? `the sampling parameter ${parameter} goes into the SamplingParams`
      : names.includes('chatTemplateKwargs')
        ? 'variables of the chat template go into chatTemplateKwargs, sampling parameters into the SamplingParams'
        : 'sampling parameters go into the SamplingParams';
  throw fail(`unknown option ${unknown}; ${adviceFor(unknown, names)}; ${advice}`);
}

/** For `stream`. */
export const checkRequestOptions = checkBy<StreamOptions>(streamSchema);
/** For `generate`. */
export const checkGenerateOptions = checkBy<GenerateOptions>(generateSchema);
export const checkChatStreamOptions = checkBy<ChatStreamOptions>(chatStreamSchema);
export const checkChatOptions = checkBy<ChatOptions>(chatSchema);

/** The options that the engine uses. */
export function requestOptionsOf(options: RequestOptions): RequestOptions {
  const { signal, timeoutMs, priority, cacheSalt } = options;
  return { signal, timeoutMs, priority, cacheSalt };
}

/** The options that encoding prompts uses. */
export function promptOptionsOf<Options extends RequestOptions & { progress?: boolean }>(
  options: Options,
): Omit<Options, keyof RequestOptions | 'progress'> {
  const isOther = ([name]: [string, unknown]) =>
    name in requestSchema.shape || name in progressField;
  const rest = Object.entries(options).filter((entry) => !isOther(entry));
  return Object.fromEntries(rest) as Omit<Options, keyof RequestOptions | 'progress'>;
}

function withinLimits<T extends RequestOptions>(
  options: T,
  limits: Readonly<RequestLimits> | undefined,
): T {
  const length = options.cacheSalt?.length ?? 0;
  if (limits !== undefined && length > limits.maxCacheSaltLength) {
    throw fail(`cacheSalt has ${length} characters; ${limitedBy(limits, 'maxCacheSaltLength')}`);
  }
  return options;
}
