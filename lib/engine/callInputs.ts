/** A call's prompts, before and after encoding. */
import type { SamplingParams } from '../config/samplingParams';
import type { ReplySettings } from '../reply/replyParser';

/** An encoded prompt with its sampling parameters. */
export interface EngineInput {
  /** As text, when it was given as text. */
  prompt: string | null;
  promptTokenIds: Int32Array;
  samplingParams: SamplingParams;
  /**
   * Tokens that end an output: the parameters' stop tokens and, unless ignoreEos, the model's EOS.
   */
  stopTokenIds: readonly number[];
  badWordsTokenIds: readonly (readonly number[])[];
  /** How the outputs are read as messages, of a chat. */
  reply?: ReplySettings;
}

/** A snapshot of a call's prompts; text prompts are not encoded yet. */
export interface CallInputs {
  readonly numPrompts: number;
  /** Total outputs: each of a prompt's `n` samples is a request. */
  readonly numRequests: number;
  /** `n` of each prompt. */
  readonly numSamples: readonly number[];
  /** Each prompt as text, when it was given as text. */
  readonly texts: readonly (string | null)[];
  /**
   * The encoded prompts, in order; synchronous when nothing has to be encoded. Rejects with
   * InvalidRequestError, and soon after `isWanted` returns false.
   */
  encode(isWanted: () => boolean): readonly EngineInput[] | Promise<readonly EngineInput[]>;
}

/** CallInputs of encoded prompts. */
export function encodedInputs(inputs: readonly EngineInput[]): CallInputs {
  return { ...countsOf(inputs), encode: () => inputs };
}

/** The numbers of prompts and outputs of a call, and the prompts' texts. */
export function countsOf(
  prompts: readonly Pick<EngineInput, 'samplingParams' | 'prompt'>[],
): Omit<CallInputs, 'encode'> {
  const numSamples = prompts.map(({ samplingParams: { n } }) => n);
  const numRequests = numSamples.reduce((sum, n) => sum + n, 0);
  const texts = prompts.map(({ prompt }) => prompt);
  return { numPrompts: prompts.length, numRequests, numSamples, texts };
}
