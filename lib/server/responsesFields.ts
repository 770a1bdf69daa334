/** The fields of OpenAI's Responses API as those of a chat completion. */
import type { Fields } from './body';
import { badRequest, notSupported } from './httpError';
import { responseFormatOf } from './structuredOutputs';

const isObject = (value: unknown): value is Fields =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** What needs a store of responses or tools of the server; refused by name. */
export const RESPONSES_REFUSED = ['previous_response_id', 'conversation', 'background', 'prompt'];

export const RESPONSES_FIELDS: readonly string[] = [
  ...RESPONSES_REFUSED,
  'model',
  'input',
  'instructions',
  'max_output_tokens',
  'temperature',
  'top_p',
  'top_logprobs',
  'include',
  'stream',
  'stream_options',
  'text',
  'reasoning',
  'tools',
  'tool_choice',
  'parallel_tool_calls',
  'max_tool_calls',
  'truncation',
  'store',
  'metadata',
  'user',
  'service_tier',
  'safety_identifier',
  'prompt_cache_key',
  'prompt_cache_retention',
  // vLLM's extensions.
  'top_k',
  'priority',
  'cache_salt',
  'chat_template_kwargs',
];

/** Throws HttpError. */
export function chatFieldsOf(fields: Fields): Fields {
  const { instructions, tools } = fields;
  const messages = inputOf(fields.input);
  if (typeof instructions === 'string') messages.unshift({ role: 'system', content: instructions });
  return {
    messages,
    max_tokens: fields.max_output_tokens ?? undefined,
    temperature: fields.temperature,
    top_p: fields.top_p,
    top_k: fields.top_k,
    tools: Array.isArray(tools) ? tools.map(toolOf) : tools,
    tool_choice: toolChoiceOf(fields.tool_choice),
    parallel_tool_calls: fields.parallel_tool_calls,
    truncate_prompt_tokens: fields.truncation === 'auto' ? -1 : undefined,
    reasoning_effort: isObject(fields.reasoning) ? fields.reasoning.effort : undefined,
    chat_template_kwargs: fields.chat_template_kwargs,
    response_format: responseFormatOf(isObject(fields.text) ? fields.text.format : undefined),
  };
}

function inputOf(input: unknown): Fields[] {
  if (typeof input === 'string') return [{ role: 'user', content: input }];
  if (Array.isArray(input) && input.length > 0) return mergeTurns(input.map(turnOf));
  throw badRequest('input must be a text or a list of at least one item', 'input');
}

function turnOf(item: unknown, index: number): Fields {
  if (!isObject(item)) throw badRequest(`input[${index}] must be an object`, 'input');
  const { type = 'message', role, content } = item;
  if (type === 'function_call') {
    const { call_id: id, name, arguments: given } = item;
    const call = { id, type: 'function', function: { name, arguments: given } };
    return { role: 'assistant', content: '', tool_calls: [call] };
  }
  if (type === 'function_call_output') {
    return { role: 'tool', tool_call_id: item.call_id, content: textOf(item.output, index) };
  }
  if (type === 'reasoning') return { role: 'assistant', reasoning: reasoningOf(item) };
  if (type !== 'message') {
    throw badRequest(`input[${index}].type ${String(type).slice(0, 64)} is not supported`, 'input');
  }
  return { role, content: textOf(content, index) };
}

/** The text of a reasoning item. */
function reasoningOf({ content }: Fields): string {
  const parts = Array.isArray(content) ? content : [];
  const texts = parts.map((part: unknown) => (isObject(part) ? part.text : null));
  return texts.filter((text) => typeof text === 'string').join('');
}

/**
 * The items of one turn of the assistant, which are reasoning, a message and calls, as one message:
 * templates know no others.
 */
function mergeTurns(turns: readonly Fields[]): Fields[] {
  const merged: Fields[] = [];
  for (const { reasoning, ...turn } of turns) {
    const own =
      reasoning === undefined ? turn : { ...turn, content: '', reasoning_content: reasoning };
    const last = merged.at(-1);
    const belongs = last?.role === 'assistant' && own.role === 'assistant';
    const isPart = last?.content === '' || own.content === '';
    if (last === undefined || !belongs || !isPart) {
      merged.push(own);
      continue;
    }
    const calls = [last.tool_calls, own.tool_calls].flatMap((list) =>
      Array.isArray(list) ? (list as unknown[]) : [],
    );
    merged[merged.length - 1] = {
      ...last,
      ...own,
      content: last.content === '' ? own.content : last.content,
      ...(calls.length > 0 && { tool_calls: calls }),
    };
  }
  return merged;
}

const TEXTS = ['input_text', 'output_text', 'text'];

function textOf(content: unknown, index: number): string {
  if (typeof content === 'string') return content;
  const parts = Array.isArray(content) ? content : [];
  const texts = parts.map((part: unknown) => {
    const isText = isObject(part) && TEXTS.includes(String(part.type));
    if (isText && typeof part.text === 'string') return part.text;
    throw badRequest(`input[${index}].content: only text input is supported`, 'input');
  });
  if (texts.length > 0) return texts.join('');
  throw badRequest(`input[${index}].content must be a text or a list of parts`, 'input');
}

function toolOf(tool: unknown): unknown {
  if (!isObject(tool)) return tool;
  if (tool.type !== 'function') {
    throw notSupported('tools', `of type ${String(tool.type).slice(0, 64)} are not supported`);
  }
  const { name, description, parameters, strict } = tool;
  return {
    type: 'function',
    function: { name, description, parameters, ...(strict === false && { strict }) },
  };
}

function toolChoiceOf(choice: unknown): unknown {
  if (!isObject(choice) || choice.type !== 'function') return choice;
  return { type: 'function', function: { name: choice.name } };
}
