/** Anthropic's messages as the fields of a chat completion. */
import { show } from '../config/schema';
import type { Fields } from './body';
import { badRequest, notSupported } from './httpError';
import { responseFormatOf } from './structuredOutputs';

const isObject = (value: unknown): value is Fields =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

export const MESSAGES_FIELDS: readonly string[] = [
  'model',
  'messages',
  'system',
  'max_tokens',
  'stop_sequences',
  'stream',
  'temperature',
  'top_p',
  'top_k',
  'tools',
  'tool_choice',
  'thinking',
  'output_config',
  'metadata',
  'service_tier',
  // vLLM's extensions.
  'priority',
  'cache_salt',
  'chat_template_kwargs',
];

/** Throws HttpError. */
export function chatFieldsOf(fields: Fields): Fields {
  const { messages, system, tools, thinking, output_config: config, tool_choice: choice } = fields;
  if (!Array.isArray(messages)) throw badRequest('messages must be a list', 'messages');
  const conversation = messages.flatMap((message: unknown, i) => turnsOf(message, i));
  if (system !== undefined && system !== null) {
    conversation.unshift({ role: 'system', content: textOf(system, 'system') });
  }
  return {
    messages: conversation,
    max_tokens: fields.max_tokens,
    stop: fields.stop_sequences,
    temperature: fields.temperature,
    top_p: fields.top_p,
    top_k: fields.top_k,
    tools: Array.isArray(tools) ? tools.map(toolOf) : tools,
    tool_choice: toolChoiceOf(fields.tool_choice),
    parallel_tool_calls:
      isObject(choice) && choice.disable_parallel_tool_use === true ? false : null,
    reasoning: isObject(thinking) ? thinking.type !== 'disabled' : null,
    chat_template_kwargs: fields.chat_template_kwargs,
    response_format: responseFormatOf(isObject(config) ? config.format : undefined),
  };
}

/** A text, or the texts of blocks. */
function textOf(content: unknown, place: string): string {
  if (typeof content === 'string') return content;
  if (!Array.isArray(content))
    throw badRequest(`${place} must be a text or a list of blocks`, place);
  return content
    .map((block: unknown) => {
      if (isObject(block) && block.type === 'text' && typeof block.text === 'string') {
        return block.text;
      }
      throw badRequest(
        `${place} has a block that is not text: only text input is supported`,
        place,
      );
    })
    .join('');
}

/** A message as turns of a chat: each result of a tool is a turn of its own. */
function turnsOf(message: unknown, index: number): Fields[] {
  const place = `messages[${index}]`;
  if (!isObject(message)) throw badRequest(`${place} must be an object`, 'messages');
  const { role, content } = message;
  if (role !== 'user' && role !== 'assistant' && role !== 'system') {
    throw badRequest(`${place}.role must be 'user' or 'assistant'`, 'messages');
  }
  if (!Array.isArray(content)) return [{ role, content: textOf(content, `${place}.content`) }];
  const ofType = (type: string) =>
    content.filter((block: unknown): block is Fields => isObject(block) && block.type === type);
  const results = ofType('tool_result').map((block) => ({
    role: 'tool',
    tool_call_id: block.tool_use_id,
    content: textOf(block.content ?? '', `${place}.content`),
  }));
  const calls = ofType('tool_use').map(({ id, name, input }) => ({
    id,
    type: 'function',
    function: { name, arguments: input },
  }));
  const thoughts = ofType('thinking').flatMap(({ thinking }) =>
    typeof thinking === 'string' ? [thinking] : [],
  );
  const rest = content.filter(
    (block: unknown) =>
      !isObject(block) || !/^(?:tool_result|tool_use|thinking)$/.test(String(block.type)),
  );
  const text = textOf(rest, `${place}.content`);
  if (rest.length === 0 && calls.length === 0 && thoughts.length === 0) return results;
  const own = {
    role,
    content: text,
    ...(thoughts.length > 0 && { reasoning_content: thoughts.join('\n') }),
    ...(calls.length > 0 && { tool_calls: calls }),
  };
  return [...results, own];
}

function toolOf(tool: unknown): unknown {
  if (!isObject(tool)) return tool;
  const { type = 'custom', name, description, input_schema: parameters } = tool;
  if (type !== 'custom' && type !== null) {
    throw notSupported('tools', `of type ${show(type).slice(0, 64)} are not supported`);
  }
  return { type: 'function', function: { name, description, parameters } };
}

function toolChoiceOf(choice: unknown): unknown {
  if (!isObject(choice)) return choice;
  if (choice.type === 'tool') return { type: 'function', function: { name: choice.name } };
  return choice.type === 'any' ? 'required' : choice.type;
}
