/** How a request's tokens are chosen and reported (vLLM's SamplingParams). */
import { copyOptions, fail, type SamplingParamsOptions, snapshotParams } from './samplingOptions';
import { isOptionsObject } from '../realm';
import { show } from './schema';
import { readingOf } from './snapshot';
import type { StructuredOutputs } from './structuredOutputs';

export { SAMPLING_NAMES, type SamplingParamsOptions } from './samplingOptions';

/** Lower temperatures are greedy: dividing logits by them would leave float32's range. */
const GREEDY_BELOW = 1e-5;

/** Names the options that the user set to another copy of this package in the process. */
const OPTIONS = Symbol.for('uniproc.SamplingParams.options');

/**
 * Validated and deeply immutable. Limits that depend on the model (vocabulary, length, logprobs) or the
 * engine (`limits`) are checked when a request is admitted.
 */
export class SamplingParams {
  readonly n: number;
  readonly temperature: number;
  readonly topP: number;
  /** 0: all. */
  readonly topK: number;
  readonly minP: number;
  readonly presencePenalty: number;
  readonly frequencyPenalty: number;
  readonly repetitionPenalty: number;
  /** Token id to bias; empty for none. Each read makes a copy. */
  declare readonly logitBias: ReadonlyMap<number, number>;
  /** null: all. */
  readonly allowedTokenIds: readonly number[] | null;
  readonly badWords: readonly (string | readonly number[])[];
  /** null: the engine draws one. */
  readonly seed: number | null;
  readonly stop: readonly string[];
  readonly stopTokenIds: readonly number[];
  readonly includeStopStrInOutput: boolean;
  readonly ignoreEos: boolean;
  readonly minTokens: number;
  /** null: up to the model's length. */
  readonly maxTokens: number | null;
  /** Likeliest tokens to report beside the sampled one; null: no logprobs at all. */
  readonly logprobs: number | null;
  readonly promptLogprobs: number | null;
  /** null: any text. */
  readonly structuredOutputs: StructuredOutputs | null;
  readonly detokenize: boolean;
  readonly skipSpecialTokens: boolean;

  /** The options that the user set, without defaults. */
  readonly #options: SamplingParamsOptions;

  /** Throws InvalidRequestError naming the parameter, its value and the allowed values. */
  constructor(options: SamplingParamsOptions = {}) {
    const { scalars, bias, stop, allowedTokenIds, badWords, stopTokenIds, structuredOutputs } =
      readingOf('sampling parameters', () => copyOptions(options));
    this.n = scalars.n ?? 1;
    const temperature = scalars.temperature ?? 1;
    this.temperature = temperature < GREEDY_BELOW ? 0 : temperature;
    this.topP = scalars.topP ?? 1;
    this.topK = Math.max(scalars.topK ?? 0, 0);
    this.minP = scalars.minP ?? 0;
    this.presencePenalty = scalars.presencePenalty ?? 0;
    this.frequencyPenalty = scalars.frequencyPenalty ?? 0;
    this.repetitionPenalty = scalars.repetitionPenalty ?? 1;
    // Map has no frozen form.
    Object.defineProperty(this, 'logitBias', { get: () => new Map(bias), enumerable: true });
    this.allowedTokenIds = allowedTokenIds;
    this.badWords = badWords;
    this.seed = scalars.seed === -1 ? null : (scalars.seed ?? null);
    this.stop = Object.freeze(stop);
    this.stopTokenIds = stopTokenIds;
    this.includeStopStrInOutput = scalars.includeStopStrInOutput ?? false;
    this.ignoreEos = scalars.ignoreEos ?? false;
    this.minTokens = scalars.minTokens ?? 0;
    this.maxTokens = scalars.maxTokens === undefined ? 16 : scalars.maxTokens;
    this.logprobs = scalars.logprobs ?? null;
    this.promptLogprobs = scalars.promptLogprobs ?? null;
    this.structuredOutputs = structuredOutputs;
    this.detokenize = scalars.detokenize ?? true;
    this.skipSpecialTokens = scalars.skipSpecialTokens ?? true;

    if (this.maxTokens !== null && this.minTokens > this.maxTokens) {
      throw fail(`minTokens is ${this.minTokens}; it must be at most maxTokens, ${this.maxTokens}`);
    }
    if (this.temperature === 0 && this.n > 1) {
      throw fail(`n is ${this.n}; with temperature 0 all outputs are equal, so n must be 1`);
    }
    if (this.stop.length > 0 && !this.detokenize) {
      throw fail('stop is set and detokenize is false; stop strings require detokenize');
    }
    this.#options = {
      ...(scalars as SamplingParamsOptions),
      ...(scalars.logitBias != null && { logitBias: bias }),
      ...(scalars.allowedTokenIds != null && { allowedTokenIds: this.allowedTokenIds }),
      ...(scalars.badWords != null && { badWords: this.badWords }),
      ...(scalars.stop != null && { stop: this.stop }),
      ...(scalars.stopTokenIds != null && { stopTokenIds: this.stopTokenIds }),
      ...(structuredOutputs !== null && { structuredOutputs }),
    };
    Object.freeze(this);
  }

  /**
   * Whether the constructor made it; a proxy or an object with only the prototype may be mutable.
   * @internal
   */
  static isMade(value: unknown): value is SamplingParams {
    return typeof value === 'object' && value !== null && #options in value;
  }

  /**
   * As `#options`, for another copy of the package; lists in it are frozen.
   * @internal
   */
  get [OPTIONS](): SamplingParamsOptions {
    return { ...this.#options };
  }

  /**
   * SamplingParams of a caller's value: the object itself if this class made it, else one made of its
   * options, each read once. `defaultMaxTokens` counts if the caller set no maxTokens; undefined: 16.
   * Throws as the constructor.
   * @internal
   */
  static from(value: unknown, defaultMaxTokens?: number | null): SamplingParams {
    return readingOf('sampling parameters', () => {
      const options = SamplingParams.isMade(value) ? value.#options : snapshotOf(value);
      const isSet = defaultMaxTokens === undefined || options.maxTokens !== undefined;
      if (isSet && SamplingParams.isMade(value)) return value;
      return new SamplingParams(isSet ? options : { ...options, maxTokens: defaultMaxTokens });
    });
  }

  /**
   * These parameters with another structure.
   * @internal
   */
  withStructure(structuredOutputs: StructuredOutputs): SamplingParams {
    return new SamplingParams({ ...this.#options, structuredOutputs });
  }

  /**
   * `params` with `defaults` (from a model's generation_config.json) in place of this class's defaults,
   * for the options that the user did not set.
   */
  static fromDefaults(
    defaults: SamplingParamsOptions,
    params: SamplingParams | SamplingParamsOptions = {},
  ): SamplingParams {
    const options = SamplingParams.isMade(params) ? params.#options : params;
    const given = Object.entries(options).filter(([, value]) => value !== undefined);
    return new SamplingParams({ ...defaults, ...Object.fromEntries(given) });
  }
}

/** A copy of the options in an object, or in another copy of this package's SamplingParams. */
function snapshotOf(value: unknown): SamplingParamsOptions {
  const foreign =
    typeof value === 'object' && value !== null
      ? (value as { [OPTIONS]?: unknown })[OPTIONS]
      : undefined;
  const options = snapshotParams(foreign ?? value);
  if (isOptionsObject(options)) return options;
  throw fail(`expected an object or a SamplingParams, not ${show(value)}`);
}
