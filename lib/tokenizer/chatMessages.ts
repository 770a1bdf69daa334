/** What a conversation is made of, as transformers' and vLLM's chats have it. */
import { show } from '../config/schema';
import { InvalidRequestError } from '../errors';

/** A part of a message's content. Other fields reach the template as they are. */
export interface TextPart {
  type: 'text';
  text: string;
  [field: string]: unknown;
}

/**
 * One turn of a conversation. Further fields (name, tool_calls, tool_call_id, reasoning_content, ...)
 * reach the template as they are.
 */
export interface ChatMessage {
  /** 'system', 'developer', 'user', 'assistant' or 'tool', or what else the template knows. */
  role: string;
  /** Null or missing beside tool calls. */
  content?: string | null | readonly TextPart[];
  [field: string]: unknown;
}

/** How a conversation is put into words; names and meanings are transformers' apply_chat_template's. */
export interface ChatTemplateOptions {
  /** JSON schemas of the functions that the model may call. */
  tools?: readonly object[] | null;
  /** What the model may draw on: objects with title and text, for the templates that know them. */
  documents?: readonly object[] | null;
  /** End with the opening of the model's turn. */
  addGenerationPrompt?: boolean;
  /** Leave the last message open, for the model to go on with: its content, or the field named. */
  continueFinalMessage?: boolean | string;
  /** Further variables of the template, such as enable_thinking. */
  chatTemplateKwargs?: Readonly<Record<string, unknown>>;
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** Messages that a template can be asked to render. Throws InvalidRequestError. */
export function checkMessages(messages: unknown): asserts messages is Record<string, unknown>[] {
  if (!Array.isArray(messages) || messages.length === 0) {
    throw new InvalidRequestError(
      `messages is ${show(messages)}; it must be a list of at least one { role, content }`,
    );
  }
  messages.forEach((message: unknown, i) => {
    if (isObject(message)) return;
    throw new InvalidRequestError(
      `messages[${i}] is ${show(message)}; a message is an object with role and content`,
    );
  });
}

/** Messages of a chat with a model that reads text. Throws InvalidRequestError. */
export function checkChat(messages: unknown): asserts messages is readonly ChatMessage[] {
  checkMessages(messages);
  messages.forEach((message, i) => {
    const { role, content } = message;
    if (typeof role !== 'string') {
      throw new InvalidRequestError(
        `messages[${i}] is ${show(message)}; its role is ${show(role)} and must be a string`,
      );
    }
    if (Array.isArray(content)) {
      content.forEach((part: unknown, j) => checkPart(part, `messages[${i}].content[${j}]`));
    } else if (content !== undefined && content !== null && typeof content !== 'string') {
      throw new InvalidRequestError(
        `messages[${i}].content is ${show(content)}; it must be a string, a list of text parts, or ` +
          'null or missing beside tool_calls',
      );
    }
  });
}

function checkPart(part: unknown, name: string): void {
  if (isObject(part) && typeof part.text === 'string' && part.type === 'text') return;
  throw new InvalidRequestError(
    `${name} is ${show(part)}; a part is { type: 'text', text }, for the model reads text alone`,
  );
}

/** Tools or documents: a list of objects, or nothing. Throws InvalidRequestError. */
function checkObjects(name: string, list: unknown, what: string): void {
  if (list === undefined || list === null) return;
  if (!Array.isArray(list)) {
    throw new InvalidRequestError(`${name} is ${show(list)}; it must be a list of ${what}`);
  }
  list.forEach((item: unknown, i) => {
    if (isObject(item)) return;
    throw new InvalidRequestError(`${name}[${i}] is ${show(item)}; it must be one of ${what}`);
  });
}

/** Variables that a template gets by options of their own. */
const OWN_VARIABLES: Readonly<Record<string, string>> = {
  messages: 'the messages',
  tools: 'the option tools',
  documents: 'the option documents',
  add_generation_prompt: 'the option addGenerationPrompt',
};

/** Throws InvalidRequestError. */
export function checkTemplateOptions(options: ChatTemplateOptions): void {
  const { tools, documents, addGenerationPrompt, continueFinalMessage, chatTemplateKwargs } =
    options;
  checkObjects('tools', tools, 'JSON schemas of functions');
  checkObjects('documents', documents, 'objects with title and text');
  if (addGenerationPrompt && continueFinalMessage) {
    throw new InvalidRequestError(
      'addGenerationPrompt and continueFinalMessage exclude each other: the last message is gone on ' +
        'with, or a new one is opened',
    );
  }
  if (chatTemplateKwargs === undefined || (chatTemplateKwargs as unknown) === null) return;
  if (!isObject(chatTemplateKwargs)) {
    throw new InvalidRequestError(
      `chatTemplateKwargs is ${show(chatTemplateKwargs)}; it must be an object of variables`,
    );
  }
  for (const name of Object.keys(chatTemplateKwargs)) {
    if (!Object.hasOwn(OWN_VARIABLES, name)) continue;
    throw new InvalidRequestError(
      `chatTemplateKwargs has ${name}, which a template gets by ${OWN_VARIABLES[name]}`,
    );
  }
}
