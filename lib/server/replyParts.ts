/** A chat's answer in the forms of the APIs: reasoning, text and tool calls. */
import type { OutputDelta } from '../engine/outputs';
import type {
  AssistantMessage,
  CompletionOutput,
  FinishReason,
  MessageDelta,
} from '../requestOutput';

export type ReplyPart =
  | { kind: 'reasoning' | 'text'; text: string }
  /** `id` and `name` with the call's first part; `text`: of its arguments. */
  | { kind: 'call'; index: number; id?: string; name?: string; text: string };

/** The rest of a call that earlier deltas began comes first: other parts would end it. */
export function partsOf({ message }: Pick<OutputDelta, 'message'>): ReplyPart[] {
  if (message === undefined) return [];
  const { reasoning, content, toolCalls } = message;
  const calls = toolCalls.map(({ index, id, name, arguments: text }): ReplyPart => {
    return { kind: 'call', index, text, ...(id !== undefined && { id, name }) };
  });
  const numBegun = toolCalls.filter(({ id }) => id === undefined).length;
  return [
    ...calls.slice(0, numBegun),
    ...(reasoning === '' ? [] : [{ kind: 'reasoning' as const, text: reasoning }]),
    ...(content === '' ? [] : [{ kind: 'text' as const, text: content }]),
    ...calls.slice(numBegun),
  ];
}

export const answerOf = ({ text, message }: CompletionOutput): AssistantMessage =>
  message ?? { content: text, reasoning: null, toolCalls: [] };

/** OpenAI's message, with vLLM's two names of reasoning. */
export function messageBody(output: CompletionOutput): object {
  const { content, reasoning, toolCalls } = answerOf(output);
  return {
    role: 'assistant',
    content: content === '' && toolCalls.length > 0 ? null : content,
    refusal: null,
    ...(reasoning !== null && { reasoning, reasoning_content: reasoning }),
    ...(toolCalls.length > 0 && {
      tool_calls: toolCalls.map(({ id, name, arguments: given }) => ({
        id,
        type: 'function',
        function: { name, arguments: given },
      })),
    }),
  };
}

/** OpenAI's delta of a chunk. */
export function deltaBody(message: MessageDelta | undefined): object {
  const { content = '', reasoning = '', toolCalls = [] } = message ?? {};
  const isText = content !== '' || (reasoning === '' && toolCalls.length === 0);
  return {
    ...(isText && { content }),
    ...(reasoning !== '' && { reasoning, reasoning_content: reasoning }),
    ...(toolCalls.length > 0 && {
      tool_calls: toolCalls.map(({ index, id, name, arguments: given }) => ({
        index,
        ...(id !== undefined && { id, type: 'function' }),
        function: { ...(name !== undefined && { name }), arguments: given },
      })),
    }),
  };
}

/** OpenAI's reason: an answer that ends with calls waits for their results. */
export function finishReasonOf(reason: FinishReason | null, hasCalls: boolean): string | null {
  return reason === 'stop' && hasCalls ? 'tool_calls' : reason;
}
