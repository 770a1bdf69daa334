/** Options of a chat that decide what its replies may be and how they are read. */
import { z } from 'zod';
import { show } from './schema';
import { REASONING_PARSERS, TOOL_PARSERS } from '../reply/replyFormat';

/** Whether the model may or must call a tool; as an object, the one that it must call. */
export type ToolChoice =
  | 'auto'
  | 'required'
  | 'none'
  | { name: string }
  | { type: 'function'; function: { name: string } };

export interface ReplyOptions {
  /** Default `'auto'` if there are tools. With `'none'` the template gets no tools. */
  toolChoice?: ToolChoice;
  /** Whether a reply may have several calls; default true. */
  parallelToolCalls?: boolean;
  /** Turns reasoning on or off by the template's switch; default: the template's. */
  reasoning?: boolean;
  /** vLLM's name of the notation of tool calls; default: found from the chat template. */
  toolCallParser?: string;
  /** vLLM's name of the notation of reasoning; default: found from the chat template. */
  reasoningParser?: string;
}

const name = z.string().min(1);
const flag = () => z.boolean().optional().describe('true or false');

/** Names for an option, and 'none'. */
export const toolParserNames = [...TOOL_PARSERS, 'none'];
export const reasoningParserNames = [...REASONING_PARSERS, 'none'];

export const replyFields = {
  toolChoice: z
    .union([
      z.enum(['auto', 'required', 'none']),
      z.strictObject({ name }),
      z.strictObject({ type: z.literal('function'), function: z.strictObject({ name }) }),
    ])
    .optional()
    .describe("'auto', 'required', 'none' or { name }"),
  parallelToolCalls: flag(),
  reasoning: flag(),
  toolCallParser: z
    .enum(toolParserNames)
    .optional()
    .describe(`one of ${toolParserNames.join(', ')}`),
  reasoningParser: z
    .enum(reasoningParserNames)
    .optional()
    .describe(`one of ${reasoningParserNames.join(', ')}`),
} satisfies Record<keyof ReplyOptions, z.ZodType>;

/** Throws what `fail` makes of a message for a parser that does not exist. */
export function checkParsers(
  options: Readonly<Record<string, unknown>>,
  fail: (message: string) => Error,
): void {
  const known = { toolCallParser: toolParserNames, reasoningParser: reasoningParserNames };
  for (const [option, names] of Object.entries(known)) {
    const value = options[option];
    if (value === undefined || names.includes(value as string)) continue;
    throw fail(`${option} is ${show(value)}; it must be one of ${names.join(', ')}`);
  }
}
