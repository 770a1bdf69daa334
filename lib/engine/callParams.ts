/** Takes the sampling parameters of a call and checks them against the model and the limits. */
import { limitedBy, type RequestLimits } from '../config/limits';
import { SamplingParams, type SamplingParamsOptions } from '../config/samplingParams';
import { readingOf } from '../config/snapshot';
import type { UniprocConfig } from '../config/uniprocConfig';
import { InvalidRequestError } from '../errors';

/** Sampling parameters of one prompt. */
export type Params = SamplingParams | SamplingParamsOptions;

/** One for all prompts of a call, or one for each. */
export type CallParams = Params | readonly Params[] | undefined;

/** Returns the parameters of prompt `index`; throws InvalidRequestError. */
export type ParamsOf = (index: number) => SamplingParams;

export class ParamsReader {
  private readonly vocabSize: number;
  private readonly limits: Readonly<RequestLimits>;
  /** For a call without parameters. */
  private readonly defaults: SamplingParams;
  private readonly chatDefaults: SamplingParams;
  /** Immutable parameters already validated against the model. */
  private readonly checked = new WeakSet<SamplingParams>();
  /** Parameters without maxTokens, with a chat's. */
  private readonly forChats = new WeakMap<SamplingParams, SamplingParams>();

  constructor(
    private readonly config: UniprocConfig,
    private readonly hasTokenizer: boolean,
  ) {
    this.vocabSize = config.model.transformer.spec.vocabSize;
    this.limits = config.limits;
    const { generation } = config.model;
    this.defaults = SamplingParams.fromDefaults(generation);
    // A chat ends with the model's turn, so only its length limits it.
    this.chatDefaults = SamplingParams.fromDefaults({ maxTokens: null, ...generation });
  }

  /**
   * Reads the caller's parameters, each object once. Throws InvalidRequestError if there is not one
   * for each prompt.
   */
  take(params: CallParams, numPrompts: number, isChat: boolean): ParamsOf {
    const listed = Array.isArray(params) ? takeList(params, numPrompts) : null;
    const taken = new Map<unknown, SamplingParams>();
    return (index) => {
      const value = listed === null ? params : listed[index];
      let own = taken.get(value);
      if (own === undefined) taken.set(value, (own = this.takeOne(value, listed !== null, isChat)));
      return own;
    };
  }

  private takeOne(value: unknown, isListed: boolean, isChat: boolean): SamplingParams {
    const defaults = isChat ? this.chatDefaults : this.defaults;
    if (!isListed && (value === undefined || value === null)) return this.check(defaults);
    if (!isChat) return this.check(SamplingParams.from(value));
    const completed = SamplingParams.isMade(value) ? this.forChats.get(value) : undefined;
    if (completed !== undefined) return completed;
    const params = this.check(SamplingParams.from(value, defaults.maxTokens));
    if (SamplingParams.isMade(value)) this.forChats.set(value, params);
    return params;
  }

  private check(params: SamplingParams): SamplingParams {
    if (this.checked.has(params)) return params;
    this.checkCounts(params);
    this.checkTokenIds('logitBias', params.logitBias.keys());
    this.checkTokenIds('allowedTokenIds', params.allowedTokenIds ?? []);
    this.checkTokenIds('stopTokenIds', params.stopTokenIds);
    for (const word of params.badWords) {
      if (typeof word !== 'string') this.checkTokenIds('badWords', word);
    }
    if (params.stop.length > 0 && !this.hasTokenizer) throw tokenizerMissing('a stop string');
    this.checkStructuredOutputs(params);
    this.checked.add(params);
    return params;
  }

  /** A text of a grammar ends with a stop token. */
  private checkStructuredOutputs(params: SamplingParams): void {
    if (params.structuredOutputs === null) return;
    if (!this.hasTokenizer) throw tokenizerMissing('structuredOutputs');
    const { eosTokenIds } = this.config.model.transformer;
    if (params.stopTokenIds.length > 0 || (!params.ignoreEos && eosTokenIds.length > 0)) return;
    throw new InvalidRequestError(
      'structuredOutputs needs a token that ends the text: ' +
        (params.ignoreEos ? 'ignoreEos is true' : 'the model has no end of sequence') +
        ' and stopTokenIds is empty',
    );
  }

  private checkCounts(params: SamplingParams): void {
    const { maxLogprobs } = this.config.model;
    for (const name of ['logprobs', 'promptLogprobs'] as const) {
      const count = params[name];
      if (count !== null && count > maxLogprobs) {
        throw new InvalidRequestError(`${name} is ${count}; maxLogprobs is ${maxLogprobs}`);
      }
    }
    if (params.n > this.limits.maxN) {
      throw new InvalidRequestError(`n is ${params.n}; ${limitedBy(this.limits, 'maxN')}`);
    }
    this.checkCount('stop', params.stop.length, 'maxStopStrings');
    this.checkCount('stopTokenIds', params.stopTokenIds.length, 'maxStopTokenIds');
    this.checkCount('badWords', params.badWords.length, 'maxBadWords');
    this.checkCount('logitBias', params.logitBias.size, 'maxLogitBiases');
    this.checkCount('allowedTokenIds', params.allowedTokenIds?.length ?? 0, 'maxAllowedTokenIds');
    this.checkLengths('stop', params.stop, 'maxStopStringLength');
    this.checkLengths('badWords', params.badWords, 'maxBadWordLength');
  }

  private checkLengths(
    name: string,
    entries: readonly (string | readonly number[])[],
    limit: keyof RequestLimits,
  ): void {
    // Names are built only for errors: there may be many entries.
    const index = entries.findIndex(({ length }) => length > this.limits[limit]);
    if (index < 0) return;
    const what = typeof entries[index] === 'string' ? 'characters' : 'tokens';
    this.checkCount(`${name}[${index}]`, entries[index].length, limit, what);
  }

  private checkCount(
    name: string,
    count: number,
    limit: keyof RequestLimits,
    what = 'entries',
  ): void {
    if (count <= this.limits[limit]) return;
    throw new InvalidRequestError(`${name} has ${count} ${what}; ${limitedBy(this.limits, limit)}`);
  }

  private checkTokenIds(name: string, tokenIds: Iterable<number>): void {
    for (const tokenId of tokenIds) {
      if (tokenId < this.vocabSize) continue;
      throw new InvalidRequestError(
        `${name} has token ${tokenId}; the model's tokens are integers from 0 to ${this.vocabSize - 1}`,
      );
    }
  }
}

function takeList(params: readonly Params[], numPrompts: number): unknown[] {
  return readingOf('the call', () => {
    const { length } = params;
    if (length !== numPrompts) {
      throw new InvalidRequestError(
        `the call has ${numPrompts} prompts but ${length} sampling parameters; pass one SamplingParams for ` +
          'all prompts, or one for each',
      );
    }
    return Array.from({ length }, (_, i) => params[i] as unknown);
  });
}

export function tokenizerMissing(what: string): InvalidRequestError {
  return new InvalidRequestError(
    `${what} needs a tokenizer, but the engine was created with skipTokenizerInit`,
  );
}
