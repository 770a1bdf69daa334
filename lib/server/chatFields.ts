/** The fields of a chat request: messages, tools and how they become a prompt. */
import type { ChatStreamOptions } from '../config/requestOptions';
import type { ChatMessage } from '../tokenizer/chatMessages';
import type { Fields } from './body';
import { badRequest, notSupported } from './httpError';
import { flagOf } from './samplingFields';

const isObject = (value: unknown): value is Fields =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** The messages, with the arguments of tool calls as objects, which templates expect. Throws HttpError. */
export function messagesOf({ messages }: Fields): readonly ChatMessage[] {
  if (!Array.isArray(messages) || messages.length === 0 || !messages.every(isObject)) {
    throw badRequest('messages must be a list of at least one { role, content }', 'messages');
  }
  return messages.map((message, i) => {
    const { tool_calls: calls } = message;
    const parsed = Array.isArray(calls)
      ? { tool_calls: calls.map((call, j) => parsedCall(call, `messages[${i}].tool_calls[${j}]`)) }
      : {};
    // The engine checks role and content.
    return { ...message, ...parsed } as unknown as ChatMessage;
  });
}

function parsedCall(call: unknown, place: string): unknown {
  if (!isObject(call) || !isObject(call.function)) return call;
  const { arguments: given } = call.function;
  if (typeof given !== 'string') return call;
  try {
    const parsed: unknown = given.trim() === '' ? {} : JSON.parse(given);
    return { ...call, function: { ...call.function, arguments: parsed } };
  } catch {
    throw badRequest(`${place}.function.arguments is not JSON`, 'messages');
  }
}

/** The tools and the choice among them; the engine checks both. Throws HttpError. */
function toolOptionsOf(fields: Fields): Record<string, unknown> {
  const { tools, tool_choice: toolChoice } = fields;
  if (tools !== undefined && tools !== null && !(Array.isArray(tools) && tools.every(isObject))) {
    throw badRequest('tools must be a list of objects', 'tools');
  }
  const hasTools = Array.isArray(tools) && tools.length > 0 && toolChoice !== 'none';
  return {
    tools: hasTools ? tools : null,
    // Without tools, these choices ask for nothing.
    toolChoice: !hasTools && (toolChoice === 'auto' || toolChoice === 'none') ? null : toolChoice,
    parallelToolCalls: fields.parallel_tool_calls,
  };
}

/** Fields that decide how a conversation becomes a prompt. */
export const CHAT_PROMPT_FIELDS: readonly string[] = [
  'messages',
  'tools',
  'tool_choice',
  'parallel_tool_calls',
  'documents',
  'chat_template',
  'chat_template_kwargs',
  'add_generation_prompt',
  'continue_final_message',
  'reasoning_effort',
];

/** Throws HttpError; the engine checks what is passed on. */
export function chatOptionsOf(fields: Fields): ChatStreamOptions {
  if (fields.modalities != null && !isTextOnly(fields.modalities)) throw notSupported('modalities');
  const continueFinalMessage = flagOf(fields, 'continue_final_message');
  const kwargs = fields.chat_template_kwargs ?? {};
  if (!isObject(kwargs)) {
    throw badRequest('chat_template_kwargs must be an object', 'chat_template_kwargs');
  }
  const { reasoning_effort: effort } = fields;
  const options: Record<string, unknown> = {
    ...toolOptionsOf(fields),
    reasoning: typeof fields.reasoning === 'boolean' ? fields.reasoning : null,
    documents: fields.documents,
    chatTemplate: fields.chat_template,
    chatTemplateKwargs: { ...(effort != null && { reasoning_effort: effort }), ...kwargs },
    addGenerationPrompt:
      fields.add_generation_prompt == null
        ? !continueFinalMessage
        : flagOf(fields, 'add_generation_prompt'),
    continueFinalMessage,
    ...tokenizingOptionsOf(fields),
  };
  return withoutAbsent(options);
}

/** The options of encoding, for chats and texts. */
export function tokenizingOptionsOf(fields: Fields): ChatStreamOptions {
  return withoutAbsent({
    truncatePromptTokens: fields.truncate_prompt_tokens,
    addSpecialTokens: fields.add_special_tokens,
  });
}

function withoutAbsent(options: Readonly<Record<string, unknown>>): ChatStreamOptions {
  const present = Object.entries(options).filter(
    ([, value]) => value !== undefined && value !== null,
  );
  return Object.fromEntries(present);
}

const isTextOnly = (modalities: unknown) =>
  Array.isArray(modalities) && modalities.every((each) => each === 'text');
