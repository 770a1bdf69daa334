/** What a caller may ask of the engine beside how tokens are sampled. */
import { z } from 'zod';
import { InvalidRequestError } from '../errors';
import { MAX_TIMER } from '../timer';
import { limitedBy, type RequestLimits } from './limits';
import { parseFields } from './schema';
import { snapshotFields } from './snapshot';

/** Options of one call; they hold for each of its prompts. */
export interface RequestOptions {
  /** Gives the call up: it rejects with the signal's reason, its blocks are free in the next step. */
  signal?: AbortSignal;
  /** Most milliseconds from the call (of a stream: its first read) to its end; default: no limit. */
  timeoutMs?: number;
  /** Lower runs first, where schedulingPolicy is 'priority'; an integer, default 0. */
  priority?: number;
  /** Prompts share cached blocks only with those of the same salt (a tenant's, say); default none. */
  cacheSalt?: string;
}

export interface GenerateOptions extends RequestOptions {
  /** Show on stderr how far it is; default: when that is a terminal, for more than one prompt. */
  progress?: boolean;
}

const requestSchema = z.strictObject({
  signal: z
    .custom<AbortSignal>((value) => value instanceof AbortSignal)
    .optional()
    .describe('an AbortSignal'),
  timeoutMs: z.int().min(1).max(MAX_TIMER).optional().describe(`an integer from 1 to ${MAX_TIMER}`),
  priority: z.int().optional().describe('an integer of at most 53 bits'),
  cacheSalt: z.string().min(1).optional().describe('a string that is not empty'),
} satisfies Record<keyof RequestOptions, z.ZodType>);

const generateSchema = requestSchema.extend({
  progress: z.boolean().optional().describe('true or false'),
} satisfies Record<Exclude<keyof GenerateOptions, keyof RequestOptions>, z.ZodType>);

function fail(message: string): InvalidRequestError {
  return new InvalidRequestError(`options: ${message}`);
}

const REQUEST_OPTIONS = Object.keys(requestSchema.shape);
const GENERATE_OPTIONS = Object.keys(generateSchema.shape);

/**
 * A copy, each option read once. Throws InvalidRequestError, naming the option, its value and what is
 * allowed.
 */
export function checkRequestOptions(
  options: unknown,
  limits?: Readonly<RequestLimits>,
): RequestOptions {
  const given = parseFields(requestSchema, snapshotFields(options, REQUEST_OPTIONS), fail);
  return withinLimits(given, limits);
}

/** The same for `generate` and `chat`. */
export function checkGenerateOptions(
  options: unknown,
  limits?: Readonly<RequestLimits>,
): GenerateOptions {
  const given = parseFields(generateSchema, snapshotFields(options, GENERATE_OPTIONS), fail);
  return withinLimits(given, limits);
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
