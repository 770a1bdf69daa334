/** What a call returns for each of its prompts. */

/**
 * Why a request ended: token limit, stop token or string, or abort: by its signal or timeout, or with its
 * engine. What an aborted request generated is in its error's `outputs`.
 */
export type FinishReason = 'length' | 'stop' | 'abort';

/** One token's entry in the model's raw distribution, before temperature and penalties. */
export interface Logprob {
  logprob: number;
  /** 1 is the likeliest. */
  rank: number;
  /**
   * Text the token adds to the preceding tokens: empty while a character is incomplete, the whole
   * character once complete. Null without a tokenizer.
   */
  decodedToken: string | null;
  /** The token's bytes if it begins or ends inside a character; else absent. */
  bytes?: number[];
}

/** Stands for -Infinity in JSON (as in vLLM's server). */
const JSON_MINUS_INFINITY = -9999;

/**
 * A position's logprobs by token id: the position's own token first, then the likeliest in
 * descending order.
 */
export class PositionLogprobs extends Map<number, Logprob> {
  /** In the Map's order. A logprob of -Infinity is -9999. */
  toJSON(): ({ tokenId: number } & Logprob)[] {
    return Array.from(this, ([tokenId, entry]) => ({
      tokenId,
      ...entry,
      logprob: entry.logprob === -Infinity ? JSON_MINUS_INFINITY : entry.logprob,
    }));
  }
}

/** A call of a function that the model asks for. */
export interface ToolCall {
  /** Names the call in the message with its result (`tool_call_id`). */
  id: string;
  name: string;
  /** JSON text of an object; of the beginning of one if the output was cut off. */
  arguments: string;
}

/** An answer of `chat`, read in the notation of the model's chat template. */
export interface AssistantMessage {
  /** Without reasoning and tool calls. */
  content: string;
  /** Null if there is none. */
  reasoning: string | null;
  toolCalls: ToolCall[];
}

/** More of a tool call. */
export interface ToolCallDelta {
  /** Among the message's calls. */
  index: number;
  /** With the call's first delta. */
  id?: string;
  /** With the call's first delta. */
  name?: string;
  /** More of the arguments' text. */
  arguments: string;
}

/** What a message gained: its texts appended one after another are those of the message. */
export interface MessageDelta {
  content: string;
  reasoning: string;
  toolCalls: ToolCallDelta[];
}

/** One of the `n` outputs of a prompt. */
export interface CompletionOutput {
  /** From 0. */
  index: number;
  /**
   * Empty without a tokenizer or with `detokenize: false`. Includes a stop token only with
   * `includeStopStrInOutput`.
   */
  text: string;
  /** Includes a stop token. */
  tokenIds: number[];
  finishReason: FinishReason;
  /**
   * What ended it, if `finishReason` is 'stop': the stop string, or the token of `stopTokenIds`. Null for
   * the model's end of sequence, and for another reason.
   */
  stopReason: string | number | null;
  /** One for each of `tokenIds`; null if not requested. */
  logprobs: PositionLogprobs[] | null;
  /** Sum of the logprobs of `tokenIds`; null if logprobs were not requested. */
  cumulativeLogprob: number | null;
  /** The answer's parts; `text` has all of it as it is. Of `chat` alone. */
  message?: AssistantMessage;
  /** Tokens of reasoning, with those around it; of `chat` with a model that reasons. */
  numReasoningTokens?: number;
  /** Of an embedding model. @internal */
  embedding?: Float32Array;
}

/** A prompt's timings (vLLM's RequestStateStats), over all its outputs; null if it did not get so far. */
export interface RequestMetrics {
  /** When the call was made: milliseconds since the Unix epoch. */
  arrivalTimeMs: number;
  /** Milliseconds from the call to the first step. */
  queueTimeMs: number | null;
  /** Milliseconds from the call to the first token. */
  timeToFirstTokenMs: number | null;
  /** Milliseconds from the call to the last token. */
  timeToLastTokenMs: number | null;
}

/** Tokens of a prompt and of all its outputs. */
export interface Usage {
  numPromptTokens: number;
  /** Prompt tokens found in the prefix cache. */
  numCachedTokens: number;
  /** Generated tokens, over all outputs. */
  numOutputTokens: number;
  /** Those of them that are reasoning; of a chat with a model that reasons. */
  numReasoningTokens?: number;
}

export interface RequestOutput {
  requestId: string;
  /** As text, when it was given as text. */
  prompt: string | null;
  promptTokenIds: number[];
  /** One for each prompt token, null for the first; null if not requested. */
  promptLogprobs: (PositionLogprobs | null)[] | null;
  /** By index. */
  outputs: CompletionOutput[];
  /** Prompt tokens found in the prefix cache. */
  numCachedTokens: number;
  metrics: RequestMetrics;
}
