/** POST /v1/messages and /v1/messages/count_tokens, Anthropic's API. */
import type { OutputStream, Usage } from '../engine/outputs';
import type { AssistantMessage, FinishReason } from '../requestOutput';
import { chatFieldsOf } from './anthropicFields';
import { chatOptionsOf, messagesOf } from './chatFields';
import { ChatRun } from './chatRun';
import type { Exchange } from './exchange';
import { anthropicErrorBody, badRequest } from './httpError';
import { jsonResponse } from './jsonResponse';
import { answerOf, partsOf, type ReplyPart } from './replyParts';
import { flagOf } from './samplingFields';
import { sseEvent } from './sse';
import { tokenizerOf } from './tokenizing';
import { usageOfOutput } from './usage';

export async function messages(exchange: Exchange): Promise<Response> {
  const { fields, model, id } = exchange;
  if (fields.max_tokens == null) throw badRequest('max_tokens: Field required', 'max_tokens');
  const isStreamed = flagOf(fields, 'stream');
  const run = new ChatRun(exchange, chatFieldsOf(fields));
  if (isStreamed) {
    return exchange.stream(events(exchange, run.stream()), {
      heartbeat: sseEvent({ type: 'ping' }, 'ping'),
      errorEvents: (error) => sseEvent(anthropicErrorBody(error), 'error'),
    });
  }
  const output = await run.complete();
  const [completion] = output.outputs;
  const { finishReason, stopReason } = completion;
  const answer = answerOf(completion);
  return jsonResponse({
    ...messageOf(id, model.name),
    content: blocksOf(answer),
    ...stopOf(finishReason, stopReason, answer.toolCalls.length > 0),
    usage: usageOf(usageOfOutput(output)),
  });
}

/** An answer's blocks; one without any text is an empty text. */
function blocksOf({ content, reasoning, toolCalls }: AssistantMessage): object[] {
  const isText = content !== '' || toolCalls.length === 0;
  return [
    ...(reasoning ? [{ type: 'thinking', thinking: reasoning, signature: '' }] : []),
    ...(isText ? [{ type: 'text', text: content, citations: null }] : []),
    ...toolCalls.map(({ id, name, arguments: given }) => ({
      type: 'tool_use',
      id,
      name,
      input: inputOf(given),
    })),
  ];
}

/** The arguments of a call; none if they were cut off. */
function inputOf(given: string): unknown {
  try {
    return JSON.parse(given) as unknown;
  } catch {
    return {};
  }
}

const messageOf = (id: string, model: string) => ({
  id: `msg_${id}`,
  type: 'message',
  role: 'assistant',
  model,
});

function stopOf(
  finishReason: FinishReason,
  stopReason: string | number | null,
  hasCalls: boolean,
): object {
  const isSequence = typeof stopReason === 'string';
  const end = hasCalls ? 'tool_use' : 'end_turn';
  const reason = finishReason === 'length' ? 'max_tokens' : end;
  return {
    stop_reason: isSequence ? 'stop_sequence' : reason,
    stop_sequence: isSequence ? stopReason : null,
  };
}

/** Anthropic counts cached prompt tokens apart from the others. */
const usageOf = ({ numPromptTokens, numCachedTokens, numOutputTokens }: Usage) => ({
  input_tokens: numPromptTokens - numCachedTokens,
  cache_creation_input_tokens: 0,
  cache_read_input_tokens: numCachedTokens,
  output_tokens: numOutputTokens,
});

const event = (type: string, data: object) => sseEvent({ type, ...data }, type);

/** The block that a part begins. */
function blockOf(part: ReplyPart): object {
  switch (part.kind) {
    case 'text':
      return { type: 'text', text: '', citations: null };
    case 'reasoning':
      return { type: 'thinking', thinking: '', signature: '' };
    case 'call':
      return { type: 'tool_use', id: part.id, name: part.name, input: {} };
  }
}

function blockDelta({ kind, text }: ReplyPart): object {
  switch (kind) {
    case 'text':
      return { type: 'text_delta', text };
    case 'reasoning':
      return { type: 'thinking_delta', thinking: text };
    case 'call':
      return { type: 'input_json_delta', partial_json: text };
  }
}

/** The events of an answer's blocks, one after another. */
class BlockEvents {
  /** Index of the open block; -1 before the first. */
  private index = -1;
  private open: { kind: ReplyPart['kind']; call: number } | null = null;
  hasCalls = false;

  part(part: ReplyPart): string {
    const call = part.kind === 'call' ? part.index : -1;
    let events = '';
    if (this.open?.kind !== part.kind || this.open.call !== call) {
      events += this.close();
      this.open = { kind: part.kind, call };
      this.index++;
      const start = { index: this.index, content_block: blockOf(part) };
      events += event('content_block_start', start);
    }
    if (part.kind === 'call') this.hasCalls = true;
    if (part.kind === 'call' && part.text === '') return events;
    return events + event('content_block_delta', { index: this.index, delta: blockDelta(part) });
  }

  close(): string {
    const { open, index } = this;
    if (open === null) return '';
    this.open = null;
    return event('content_block_stop', { index });
  }

  /** Ends the answer: one without any block is an empty text. */
  end(): string {
    return (this.index < 0 ? this.part({ kind: 'text', text: '' }) : '') + this.close();
  }
}

async function* events(
  { id, model }: Exchange,
  stream: OutputStream,
): AsyncGenerator<string, void> {
  const blocks = new BlockEvents();
  let hasBegun = false;
  let stop: object = {};
  for await (const delta of stream) {
    let text = '';
    if (!hasBegun) {
      const usage = usageOf({
        numPromptTokens: delta.numPromptTokens,
        numCachedTokens: 0,
        numOutputTokens: 0,
      });
      const message = { ...messageOf(id, model.name), content: [], usage };
      text += event('message_start', {
        message: { ...message, stop_reason: null, stop_sequence: null },
      });
      hasBegun = true;
    }
    for (const part of partsOf(delta)) text += blocks.part(part);
    if (delta.finishReason !== null) {
      stop = stopOf(delta.finishReason, delta.stopReason, blocks.hasCalls);
    }
    if (text !== '') yield text;
  }
  const end = { delta: stop, ...(stream.usage !== null && { usage: usageOf(stream.usage) }) };
  yield blocks.end() + event('message_delta', end) + event('message_stop', {});
}

export async function countTokens({ fields, model }: Exchange): Promise<Response> {
  const chat = chatFieldsOf(fields);
  const ids = await tokenizerOf(model).applyChatTemplate(messagesOf(chat), chatOptionsOf(chat));
  return jsonResponse({ input_tokens: ids.length });
}
