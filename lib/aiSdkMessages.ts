/** The AI SDK's messages and tools as this library's, and replies as the AI SDK's. */
import type {
  LanguageModelV4CallOptions,
  LanguageModelV4Content,
  LanguageModelV4FinishReason,
  LanguageModelV4Message,
  LanguageModelV4StreamPart,
  LanguageModelV4ToolResultOutput,
} from '@ai-sdk/provider' with { 'resolution-mode': 'import' };
import type {
  AssistantMessage,
  ChatMessage,
  ChatOptions,
  FinishReason,
  MessageDelta,
} from './index';
import { InvalidRequestError } from './errors';

/** A part of the AI SDK that this provider lacks; `UnsupportedFunctionalityError.isInstance` knows it. */
export class UnsupportedFunctionalityError extends Error {
  override readonly name = 'AI_UnsupportedFunctionalityError';

  constructor(readonly functionality: string) {
    super(`'${functionality}' functionality not supported.`);
    // How the AI SDK tells its errors, across copies of its packages.
    for (const marker of ['', `.${this.name}`]) {
      Object.defineProperty(this, Symbol.for(`vercel.ai.error${marker}`), { value: true });
    }
  }
}

/** A tool message has the results of several calls, so one message may become several. */
export function messagesOf(message: LanguageModelV4Message): ChatMessage[] {
  const { role, content } = message;
  if (role === 'system') return [{ role, content }];
  if (role === 'tool') {
    return content.map((part) => {
      if (part.type !== 'tool-result') throw new UnsupportedFunctionalityError(part.type);
      const { toolCallId, toolName, output } = part;
      return {
        role,
        tool_call_id: toolCallId,
        name: toolName,
        content: resultOf(output, toolName),
      };
    });
  }
  let text = '';
  let reasoning = '';
  const calls: object[] = [];
  for (const part of content) {
    if (part.type === 'text') text += part.text;
    else if (part.type === 'reasoning') reasoning += part.text;
    else if (part.type === 'tool-call') {
      const { toolCallId: id, toolName: name, input } = part;
      calls.push({
        id,
        type: 'function',
        function: { name, arguments: textOf(input, `the input of the call of ${name}`) },
      });
    } else {
      throw new UnsupportedFunctionalityError(`${part.type} in a message of role ${role}`);
    }
  }
  return [
    {
      role,
      content: text,
      ...(reasoning !== '' && { reasoning_content: reasoning }),
      ...(calls.length > 0 && { tool_calls: calls }),
    },
  ];
}

/** A text, or a value's JSON. Throws InvalidRequestError for what JSON lacks. */
function textOf(value: unknown, place: string): string {
  if (typeof value === 'string') return value;
  try {
    return JSON.stringify(value ?? null);
  } catch (cause) {
    const { message } = cause as Error;
    throw new InvalidRequestError(`${place} cannot be written as JSON: ${message}`, { cause });
  }
}

function resultOf(output: LanguageModelV4ToolResultOutput, toolName: string): string {
  if (output.type === 'execution-denied') return output.reason ?? 'the call was denied';
  if (output.type !== 'content') return textOf(output.value, `the result of ${toolName}`);
  const texts = output.value.map((part) => {
    if (part.type !== 'text') throw new UnsupportedFunctionalityError(`${part.type} in a result`);
    return part.text;
  });
  return texts.join('');
}

/** The chat's options for tools; none without tools. */
export function toolOptionsOf({
  tools = [],
  toolChoice,
}: Pick<LanguageModelV4CallOptions, 'tools' | 'toolChoice'>): ChatOptions {
  if (tools.length === 0) return {};
  const functions = tools.map((tool) => {
    if (tool.type !== 'function') throw new UnsupportedFunctionalityError(`the tool ${tool.id}`);
    const { name, description, inputSchema, strict } = tool;
    return {
      type: 'function',
      function: {
        name,
        parameters: inputSchema,
        ...(description !== undefined && { description }),
        ...(strict !== undefined && { strict }),
      },
    };
  });
  if (toolChoice === undefined) return { tools: functions };
  const choice = toolChoice.type === 'tool' ? { name: toolChoice.toolName } : toolChoice.type;
  return { tools: functions, toolChoice: choice };
}

/** Of a complete answer. */
export function contentOf(message: AssistantMessage): LanguageModelV4Content[] {
  const { content, reasoning, toolCalls } = message;
  return [
    ...(reasoning === null ? [] : [{ type: 'reasoning' as const, text: reasoning }]),
    ...(content === '' ? [] : [{ type: 'text' as const, text: content }]),
    ...toolCalls.map(({ id, name, arguments: input }) => ({
      type: 'tool-call' as const,
      toolCallId: id,
      toolName: name,
      input,
    })),
  ];
}

export function finishReasonOf(
  reason: FinishReason | null,
  hasCalls: boolean,
): LanguageModelV4FinishReason {
  const unified = reason === 'stop' || reason === 'length' ? reason : 'other';
  return {
    unified: reason === 'stop' && hasCalls ? 'tool-calls' : unified,
    raw: reason ?? undefined,
  };
}

/** The parts of a stream, made of an answer's deltas. */
export class StreamParts {
  /** The part that is open: text or reasoning, and their number so far. */
  private open: 'text' | 'reasoning' | null = null;
  private numBlocks = 0;
  private readonly calls: { id: string; name: string; input: string }[] = [];

  get hasCalls(): boolean {
    return this.calls.length > 0;
  }

  *of({ content, reasoning, toolCalls }: MessageDelta): Generator<LanguageModelV4StreamPart, void> {
    if (reasoning !== '') yield* this.write('reasoning', reasoning);
    if (content !== '') yield* this.write('text', content);
    for (const { index, id, name, arguments: delta } of toolCalls) {
      if (id !== undefined && name !== undefined) {
        yield* this.close();
        this.calls[index] = { id, name, input: '' };
        yield { type: 'tool-input-start', id, toolName: name };
      }
      const call = this.calls[index];
      call.input += delta;
      if (delta !== '') yield { type: 'tool-input-delta', id: call.id, delta };
    }
  }

  /** What ends the stream's parts: calls are complete now. */
  *end(): Generator<LanguageModelV4StreamPart, void> {
    yield* this.close();
    for (const { id, name, input } of this.calls) {
      yield { type: 'tool-input-end', id };
      yield { type: 'tool-call', toolCallId: id, toolName: name, input };
    }
  }

  private *write(
    kind: 'text' | 'reasoning',
    delta: string,
  ): Generator<LanguageModelV4StreamPart, void> {
    if (this.open !== kind) {
      yield* this.close();
      this.open = kind;
      yield { type: `${kind}-start`, id: String(this.numBlocks) };
    }
    yield { type: `${kind}-delta`, id: String(this.numBlocks), delta };
  }

  private *close(): Generator<LanguageModelV4StreamPart, void> {
    if (this.open !== null) yield { type: `${this.open}-end`, id: String(this.numBlocks++) };
    this.open = null;
  }
}
