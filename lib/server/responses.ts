/** POST /v1/responses, OpenAI's Responses API without a store: a response is not kept. */
import type { OutputStream, Usage } from '../engine/outputs';
import type { AssistantMessage, FinishReason } from '../requestOutput';
import { ChatRun } from './chatRun';
import type { Exchange } from './exchange';
import type { HttpError } from './httpError';
import { jsonResponse } from './jsonResponse';
import { answerOf, partsOf, type ReplyPart } from './replyParts';
import { chatFieldsOf, RESPONSES_REFUSED } from './responsesFields';
import { flagOf, refuseFields } from './samplingFields';
import { sseEvent } from './sse';
import { usageOfOutput } from './usage';

export async function responses(exchange: Exchange): Promise<Response> {
  const { fields } = exchange;
  refuseFields(fields, [...RESPONSES_REFUSED, 'top_logprobs']);
  const isStreamed = flagOf(fields, 'stream');
  const run = new ChatRun(exchange, chatFieldsOf(fields));
  if (isStreamed) {
    const events = new ResponseEvents(exchange);
    return exchange.stream(events.of(run.stream()), {
      errorEvents: (error) => events.failed(error),
    });
  }
  const output = await run.complete();
  const [completion] = output.outputs;
  const { finishReason } = completion;
  const items = itemsOf(exchange, answerOf(completion), statusOf(finishReason));
  return jsonResponse(responseOf(exchange, { items, finishReason, usage: usageOfOutput(output) }));
}

interface Answer {
  items: readonly object[];
  finishReason: FinishReason | null;
  usage: Usage | null;
}

/** An item of the output as it grows. */
interface Item {
  kind: ReplyPart['kind'];
  /** Index of the call. */
  index: number;
  id: string;
  callId: string;
  name: string;
  text: string;
}

const statusOf = (reason: FinishReason | null) =>
  reason === 'length' ? 'incomplete' : 'completed';

const partOf = (text: string) => ({ type: 'output_text', text, annotations: [], logprobs: [] });

/** An item; null for the text of one that has begun. */
function itemOf({ kind, id, callId, name, text }: Item, status: string, hasText = true): object {
  switch (kind) {
    case 'text':
      return {
        id,
        type: 'message',
        role: 'assistant',
        status,
        content: hasText ? [partOf(text)] : [],
      };
    case 'reasoning':
      return {
        id,
        type: 'reasoning',
        summary: [],
        content: hasText ? [{ type: 'reasoning_text', text }] : [],
        status,
      };
    case 'call':
      return { id, type: 'function_call', call_id: callId, name, arguments: text, status };
  }
}

/** A new item for `part`; `place`: its index in the output. */
function newItem({ id }: Exchange, part: ReplyPart, place: number): Item {
  const prefix = { text: 'msg', reasoning: 'rs', call: 'fc' }[part.kind];
  const isCall = part.kind === 'call';
  return {
    kind: part.kind,
    index: isCall ? part.index : 0,
    id: place === 0 ? `${prefix}_${id}` : `${prefix}_${id}_${place}`,
    callId: (isCall && part.id) || '',
    name: (isCall && part.name) || '',
    text: '',
  };
}

function itemsOf(exchange: Exchange, answer: AssistantMessage, status: string): object[] {
  const { content, reasoning, toolCalls } = answer;
  const parts: ReplyPart[] = [];
  if (reasoning !== null && reasoning !== '') parts.push({ kind: 'reasoning', text: reasoning });
  if (content !== '' || toolCalls.length === 0) parts.push({ kind: 'text', text: content });
  for (const [index, { id, name, arguments: text }] of toolCalls.entries()) {
    parts.push({ kind: 'call', index, id, name, text });
  }
  return parts.map((part, place) =>
    itemOf({ ...newItem(exchange, part, place), text: part.text }, status),
  );
}

/** The response with everything that the request asked for and `answer`; null: none yet. */
function responseOf(exchange: Exchange, answer: Answer | null): object {
  const { id, created, model, fields } = exchange;
  const isCut = answer?.finishReason === 'length';
  return {
    id: `resp_${id}`,
    access_programs: null,
    object: 'response',
    created_at: created,
    status: answer === null ? 'in_progress' : statusOf(answer.finishReason),
    background: false,
    error: null,
    incomplete_details: isCut ? { reason: 'max_output_tokens' } : null,
    instructions: fields.instructions ?? null,
    max_output_tokens: fields.max_output_tokens ?? null,
    model: model.name,
    output: answer === null ? [] : answer.items,
    parallel_tool_calls: fields.parallel_tool_calls ?? true,
    previous_response_id: null,
    store: false,
    temperature: fields.temperature ?? null,
    text: fields.text ?? { format: { type: 'text' } },
    tool_choice: fields.tool_choice ?? 'auto',
    tools: fields.tools ?? [],
    top_p: fields.top_p ?? null,
    truncation: fields.truncation ?? 'disabled',
    metadata: fields.metadata ?? {},
    usage: answer?.usage == null ? null : usageOf(answer.usage),
  };
}

const usageOf = (usage: Usage) => ({
  input_tokens: usage.numPromptTokens,
  // What is written into the cache is not counted apart.
  input_tokens_details: { cached_tokens: usage.numCachedTokens, cache_write_tokens: 0 },
  output_tokens: usage.numOutputTokens,
  output_tokens_details: { reasoning_tokens: usage.numReasoningTokens ?? 0 },
  total_tokens: usage.numPromptTokens + usage.numOutputTokens,
});

/** The events of one streamed response, numbered from 0. */
class ResponseEvents {
  private sequenceNumber = 0;
  /** Whole items. */
  private readonly items: object[] = [];
  private open: Item | null = null;

  constructor(private readonly exchange: Exchange) {}

  private event(type: string, data: object): string {
    return sseEvent({ type, sequence_number: this.sequenceNumber++, ...data }, type);
  }

  failed({ message, param, type }: HttpError): string {
    return this.event('error', { code: type, message, param });
  }

  async *of(stream: OutputStream): AsyncGenerator<string, void> {
    let hasBegun = false;
    let finishReason: FinishReason | null = null;
    for await (const delta of stream) {
      let events = hasBegun ? '' : this.begin();
      hasBegun = true;
      for (const part of partsOf(delta)) events += this.part(part);
      ({ finishReason } = delta);
      if (events !== '') yield events;
    }
    const status = statusOf(finishReason);
    // An answer without any text is an empty message.
    const isEmpty = this.open === null && this.items.length === 0;
    const last = (isEmpty ? this.part({ kind: 'text', text: '' }) : '') + this.close(status);
    const answer = { items: this.items, finishReason, usage: stream.usage };
    yield last + this.event(`response.${status}`, { response: responseOf(this.exchange, answer) });
  }

  private begin(): string {
    const response = responseOf(this.exchange, null);
    return (
      this.event('response.created', { response }) +
      this.event('response.in_progress', { response })
    );
  }

  /** The item's place in the output, for its events. */
  private place({ kind, id }: Item): object {
    const place = { item_id: id, output_index: this.items.length };
    return kind === 'call' ? place : { ...place, content_index: 0 };
  }

  private part(part: ReplyPart): string {
    let events = '';
    let { open } = this;
    const isSame = open?.kind === part.kind && (part.kind !== 'call' || part.index === open.index);
    if (open === null || !isSame) {
      events += this.close('completed');
      open = this.open = newItem(this.exchange, part, this.items.length);
      events += this.event('response.output_item.added', {
        output_index: this.items.length,
        item: itemOf(open, 'in_progress', false),
      });
      if (part.kind === 'text') {
        events += this.event('response.content_part.added', {
          ...this.place(open),
          part: partOf(''),
        });
      }
    }
    open.text += part.text;
    const delta = { ...this.place(open), delta: part.text };
    switch (part.kind) {
      case 'text':
        return events + this.event('response.output_text.delta', { ...delta, logprobs: [] });
      case 'reasoning':
        return events + this.event('response.reasoning_text.delta', delta);
      case 'call':
        if (part.text === '') return events;
        return events + this.event('response.function_call_arguments.delta', delta);
    }
  }

  /** Ends the open item. */
  private close(status: string): string {
    const { open } = this;
    if (open === null) return '';
    this.open = null;
    const place = this.place(open);
    const { kind, name, text } = open;
    let events = '';
    if (kind === 'text') {
      events += this.event('response.output_text.done', { ...place, text, logprobs: [] });
      events += this.event('response.content_part.done', { ...place, part: partOf(text) });
    } else if (kind === 'reasoning') {
      events += this.event('response.reasoning_text.done', { ...place, text });
    } else {
      events += this.event('response.function_call_arguments.done', {
        ...place,
        name,
        arguments: text,
      });
    }
    const item = itemOf(open, status);
    events += this.event('response.output_item.done', { output_index: this.items.length, item });
    this.items.push(item);
    return events;
  }
}
