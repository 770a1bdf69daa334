/** Options of `createHandler`. */
import { z } from 'zod';
import { parseFields } from '../config/schema';
import { ConfigError } from '../errors';
import { MAX_TIMER } from '../timer';

/** Options of `createHandler`; all are optional. */
export interface HandlerOptions {
  /**
   * Keys, one of which every request under `/v1` must have, as `Authorization: Bearer KEY` or `x-api-key`.
   * @defaultValue none: no key is asked for
   */
  apiKeys?: readonly string[];
  /**
   * Origins whose pages may call the server (CORS); `'*'` is any.
   * @defaultValue none: no page of another origin may
   */
  allowedOrigins?: readonly string[];
  /**
   * Maximum bytes of a request's body; a larger one is answered with 413.
   * @defaultValue `4194304`
   */
  maxBodyBytes?: number;
  /**
   * Maximum milliseconds of a generation, from the call to its end; then 504, or an error event in a stream.
   * @defaultValue none: no limit
   */
  requestTimeoutMs?: number;
  /**
   * Milliseconds without an event after which a stream sends a comment.
   * @defaultValue `15000`
   */
  heartbeatMs?: number;
  /**
   * Serve a page at `/`, with a chat and the engine's state.
   * @defaultValue `false`; `uniproc serve` has it unless `--no-ui` is given
   */
  ui?: boolean;
}

export const handlerOptionsSchema = z.strictObject({
  apiKeys: z.array(z.string().min(1)).optional().describe('a list of strings that are not empty'),
  allowedOrigins: z.array(z.string().min(1)).optional().describe('a list of origins'),
  maxBodyBytes: z
    .int()
    .min(1)
    .max(2 ** 29)
    .optional()
    .describe('an integer from 1 to 536870912'),
  requestTimeoutMs: z
    .int()
    .min(1)
    .max(MAX_TIMER)
    .optional()
    .describe(`an integer from 1 to ${MAX_TIMER}`),
  heartbeatMs: z
    .int()
    .min(1)
    .max(MAX_TIMER)
    .optional()
    .describe(`an integer from 1 to ${MAX_TIMER}`),
  ui: z.boolean().optional().describe('true or false'),
} satisfies Record<keyof HandlerOptions, z.ZodType>);

export interface HandlerSettings {
  apiKeys: readonly string[];
  allowedOrigins: readonly string[];
  maxBodyBytes: number;
  requestTimeoutMs: number | undefined;
  heartbeatMs: number;
  ui: boolean;
}

/** Throws ConfigError naming the option. */
export function checkHandlerOptions(options: HandlerOptions): HandlerSettings {
  const given = parseFields(
    handlerOptionsSchema,
    options,
    (message) => new ConfigError(`handler options: ${message}`),
  );
  return {
    apiKeys: given.apiKeys ?? [],
    allowedOrigins: given.allowedOrigins ?? [],
    maxBodyBytes: given.maxBodyBytes ?? 2 ** 22,
    requestTimeoutMs: given.requestTimeoutMs,
    heartbeatMs: given.heartbeatMs ?? 15_000,
    ui: given.ui ?? false,
  };
}
