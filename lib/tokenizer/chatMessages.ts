/** Chat messages and template options, after transformers and vLLM, and their validation. */
import { checkNumTools } from '../config/limits';
import { show } from '../config/schema';
import { InvalidRequestError } from '../errors';

/** A part of a message's content. Other fields reach the template unchanged. */
export interface TextPart {
  type: 'text';
  text: string;
  [field: string]: unknown;
}

/**
 * One turn of a conversation. Other fields (name, tool_calls, tool_call_id, reasoning_content, ...)
 * reach the template unchanged.
 */
export interface ChatMessage {
  /** 'system', 'developer', 'user', 'assistant', 'tool', or another role of the template. */
  role: string;
  /** May be null or missing in a message with tool calls. */
  content?: string | null | readonly TextPart[];
  [field: string]: unknown;
}

/** Options of rendering, named as in transformers' apply_chat_template. */
export interface ChatTemplateOptions {
  /** JSON schemas of the functions that the model may call. */
  tools?: readonly object[] | null;
  /** Documents for retrieval-augmented generation: objects with title and text. */
  documents?: readonly object[] | null;
  /** Append the tokens that start the assistant's turn. */
  addGenerationPrompt?: boolean;
  /** Leave the last message open for the model to continue: its content, or the named field. */
  continueFinalMessage?: boolean | string;
  /** Further variables of the template, such as enable_thinking. */
  chatTemplateKwargs?: Readonly<Record<string, unknown>>;
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** Requires a non-empty list of objects. Throws InvalidRequestError. */
export function checkMessages(messages: unknown): asserts messages is Record<string, unknown>[] {
  if (!Array.isArray(messages) || messages.length === 0) {
    throw new InvalidRequestError(
      `messages is ${show(messages)}; it must be a list of at least one { role, content }`,
    );
  }
  messages.forEach((message: unknown, i) => {
    if (isObject(message)) return;
    throw new InvalidRequestError(
      `messages[${i}] is ${show(message)}; it must be an object with role and content`,
    );
  });
}

/** Also requires roles and text-only content. Throws InvalidRequestError. */
export function checkChat(messages: unknown): asserts messages is readonly ChatMessage[] {
  checkMessages(messages);
  messages.forEach((message, i) => {
    const { role, content } = message;
    if (typeof role !== 'string') {
      throw new InvalidRequestError(`messages[${i}].role is ${show(role)}; it must be a string`);
    }
    if (Array.isArray(content)) {
      content.forEach((part: unknown, j) => checkPart(part, `messages[${i}].content[${j}]`));
    } else if (content !== undefined && content !== null && typeof content !== 'string') {
      throw new InvalidRequestError(
        `messages[${i}].content is ${show(content)}; it must be a string, a list of text parts, or ` +
          'null or missing with tool_calls',
      );
    }
  });
}

function checkPart(part: unknown, name: string): void {
  if (isObject(part) && typeof part.text === 'string' && part.type === 'text') return;
  throw new InvalidRequestError(
    `${name} is ${show(part)}; it must be { type: 'text', text }: only text input is supported`,
  );
}

/** `list`: tools or documents, null if absent. Throws InvalidRequestError. */
function checkObjects(name: string, list: unknown, what: string): void {
  if (list === undefined || list === null) return;
  if (!Array.isArray(list)) {
    throw new InvalidRequestError(`${name} is ${show(list)}; it must be a list of ${what}`);
  }
  list.forEach((item: unknown, i) => {
    if (isObject(item)) return;
    throw new InvalidRequestError(`${name}[${i}] is ${show(item)}; ${name} must be ${what}`);
  });
}

/** Template variables that have an argument or option. */
const RESERVED_VARIABLES: Readonly<Record<string, string>> = {
  messages: 'the messages argument',
  tools: 'the option tools',
  documents: 'the option documents',
  add_generation_prompt: 'the option addGenerationPrompt',
};

/** Throws InvalidRequestError. */
export function checkTemplateOptions(options: ChatTemplateOptions): void {
  const { tools, documents, addGenerationPrompt, continueFinalMessage, chatTemplateKwargs } =
    options;
  checkNumTools(tools);
  checkObjects('tools', tools, 'JSON schemas of functions');
  checkObjects('documents', documents, 'objects with title and text');
  if (addGenerationPrompt && continueFinalMessage) {
    throw new InvalidRequestError(
      'addGenerationPrompt and continueFinalMessage cannot both be set: one starts a new message, the ' +
        'other continues the last one',
    );
  }
  if (chatTemplateKwargs === undefined || (chatTemplateKwargs as unknown) === null) return;
  if (!isObject(chatTemplateKwargs)) {
    throw new InvalidRequestError(
      `chatTemplateKwargs is ${show(chatTemplateKwargs)}; it must be an object of variables`,
    );
  }
  for (const name of Object.keys(chatTemplateKwargs)) {
    if (!Object.hasOwn(RESERVED_VARIABLES, name)) continue;
    throw new InvalidRequestError(
      `chatTemplateKwargs must not contain ${name}; use ${RESERVED_VARIABLES[name]}`,
    );
  }
}
