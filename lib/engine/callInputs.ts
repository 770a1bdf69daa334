/** A call's prompts on their way from what the caller gave to what the engine runs. */
import type { SamplingParams } from '../config/samplingParams';

/** A prompt that the model can run, and how. */
export interface EngineInput {
  /** As text, when it was given as text. */
  prompt: string | null;
  promptTokenIds: Int32Array;
  samplingParams: SamplingParams;
  /** Tokens that end an output: the parameters' and, unless ignoreEos, the model's. */
  stopTokenIds: readonly number[];
  badWordsTokenIds: readonly (readonly number[])[];
}

/** A call's prompts as they were when it was made; those that are text are still to be encoded. */
export interface CallInputs {
  readonly numPrompts: number;
  /** Outputs in all: each of a prompt's `n` samples is a request. */
  readonly numRequests: number;
  /** Of each prompt, its `n`. */
  readonly numSamples: readonly number[];
  /**
   * The prompts, in order: at once where nothing has to be encoded. Rejects with InvalidRequestError,
   * and anyhow soon after `isWanted` has become false.
   */
  encode(isWanted: () => boolean): readonly EngineInput[] | Promise<readonly EngineInput[]>;
}

/** Prompts that are encoded already. */
export function encodedInputs(inputs: readonly EngineInput[]): CallInputs {
  return { ...countsOf(inputs), encode: () => inputs };
}

/** How many prompts and outputs a call has. */
export function countsOf(
  prompts: readonly Pick<EngineInput, 'samplingParams'>[],
): Omit<CallInputs, 'encode'> {
  const numSamples = prompts.map(({ samplingParams: { n } }) => n);
  const numRequests = numSamples.reduce((sum, n) => sum + n, 0);
  return { numPrompts: prompts.length, numRequests, numSamples };
}
