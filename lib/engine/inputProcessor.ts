/** Checks what a caller asks for against the model, and makes of it what the engine runs. */
import { SamplingParams } from '../config/samplingParams';
import { show } from '../config/schema';
import type { UniprocConfig } from '../config/uniprocConfig';
import { InvalidRequestError } from '../errors';
import type { ChatMessage } from '../tokenizer/chatTemplate';
import type { Tokenizer } from '../tokenizer/tokenizer';

/** Text, or token ids (and, if one likes, the text they stand for). */
export type Prompt =
  | string
  | { readonly prompt: string }
  | { readonly promptTokenIds: readonly number[] | Int32Array; readonly prompt?: string };

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

export class InputProcessor {
  private readonly vocabSize: number;

  constructor(
    private readonly config: UniprocConfig,
    private readonly tokenizer: Tokenizer | null,
  ) {
    this.vocabSize = config.model.transformer.spec.vocabSize;
  }

  /**
   * All of a call's prompts, each with its parameters: one for all, a list of as many, or none for
   * the model's own defaults. Throws InvalidRequestError that says which prompt is at fault.
   */
  async process(
    prompts: readonly Prompt[],
    params: SamplingParams | readonly SamplingParams[] | undefined,
  ): Promise<EngineInput[]> {
    const shared = params ?? SamplingParams.fromDefaults(this.config.model.generation);
    if (Array.isArray(shared) && shared.length !== prompts.length) {
      throw new InvalidRequestError(
        `there are ${prompts.length} prompts but ${shared.length} sampling parameters`,
      );
    }
    const inputs = prompts.map((prompt, i) => {
      const samplingParams = (Array.isArray(shared) ? shared[i] : shared) as SamplingParams;
      return naming(`prompt ${i}`, () => this.processOne(prompt, samplingParams));
    });
    return Promise.all(inputs);
  }

  /** Conversations as prompts, by the checkpoint's chat template. Throws InvalidRequestError. */
  async renderChats(conversations: readonly (readonly ChatMessage[])[]): Promise<Prompt[]> {
    const tokenizer = this.requireTokenizer('a conversation');
    const prompts = conversations.map((conversation, i) =>
      naming(`conversation ${i}`, async () => ({
        promptTokenIds: await tokenizer.applyChatTemplate(conversation),
      })),
    );
    return Promise.all(prompts);
  }

  private async processOne(prompt: Prompt, samplingParams: SamplingParams): Promise<EngineInput> {
    if (!(samplingParams instanceof SamplingParams)) {
      throw new InvalidRequestError(
        `its sampling parameters are ${show(samplingParams)}; make them with new SamplingParams({ ... })`,
      );
    }
    this.checkParams(samplingParams);
    const { ignoreEos, stopTokenIds } = samplingParams;
    const eosTokenIds = ignoreEos ? [] : this.config.model.transformer.eosTokenIds;
    return {
      ...(await this.tokenize(prompt)),
      samplingParams,
      stopTokenIds: [...new Set([...stopTokenIds, ...eosTokenIds])],
      badWordsTokenIds: await this.badWordsTokenIds(samplingParams),
    };
  }

  private async tokenize(prompt: Prompt): Promise<Pick<EngineInput, 'prompt' | 'promptTokenIds'>> {
    const input = typeof prompt === 'string' ? { prompt } : prompt;
    const text = (input as { prompt?: unknown } | null)?.prompt ?? null;
    const given = (input as { promptTokenIds?: unknown } | null)?.promptTokenIds ?? null;
    if (text !== null && typeof text !== 'string') {
      throw new InvalidRequestError(`its text is ${show(text)}; it must be a string`);
    }
    let tokenIds: ArrayLike<unknown>;
    if (Array.isArray(given) || given instanceof Int32Array) {
      tokenIds = given;
    } else if (given !== null || text === null) {
      throw new InvalidRequestError(
        `it is ${show(prompt)}; a prompt is a string, { prompt } or { promptTokenIds }`,
      );
    } else {
      tokenIds = await this.requireTokenizer('a text prompt').encode(text);
    }
    this.checkPrompt(tokenIds);
    return { prompt: text, promptTokenIds: Int32Array.from(tokenIds) };
  }

  private checkPrompt(tokenIds: ArrayLike<unknown>): asserts tokenIds is ArrayLike<number> {
    const { maxModelLen } = this.config.model;
    if (tokenIds.length === 0) throw new InvalidRequestError('it is empty');
    if (tokenIds.length >= maxModelLen) {
      throw new InvalidRequestError(
        `it has ${tokenIds.length} tokens; with maxModelLen ${maxModelLen} a prompt may have ` +
          `${maxModelLen - 1}, so that one can be generated`,
      );
    }
    for (let i = 0; i < tokenIds.length; i++) {
      if (!this.isTokenId(tokenIds[i])) {
        throw new InvalidRequestError(`its token ${i} is ${show(tokenIds[i])}; ${this.vocabulary}`);
      }
    }
  }

  private checkParams(params: SamplingParams): void {
    const { maxLogprobs } = this.config.model;
    for (const name of ['logprobs', 'promptLogprobs'] as const) {
      const count = params[name];
      if (count !== null && count > maxLogprobs) {
        throw new InvalidRequestError(
          `${name} is ${count}; the engine reports ${maxLogprobs} at most`,
        );
      }
    }
    const tokenIds = {
      logitBias: [...params.logitBias.keys()],
      allowedTokenIds: params.allowedTokenIds ?? [],
      stopTokenIds: params.stopTokenIds,
      badWords: params.badWords.filter((word) => typeof word !== 'string').flat(),
    };
    for (const [name, ids] of Object.entries(tokenIds)) {
      const outside = ids.find((tokenId) => !this.isTokenId(tokenId));
      if (outside !== undefined) {
        throw new InvalidRequestError(`${name} has token ${outside}; ${this.vocabulary}`);
      }
    }
    if (params.stop.length > 0) this.requireTokenizer('a stop string');
  }

  private isTokenId(tokenId: unknown): tokenId is number {
    return (
      Number.isInteger(tokenId) && (tokenId as number) >= 0 && (tokenId as number) < this.vocabSize
    );
  }

  private get vocabulary(): string {
    return `the model's tokens are integers from 0 to ${this.vocabSize - 1}`;
  }

  /**
   * Bad words as token sequences. A word is spelled one way at the start of a text and often another
   * after a space: both count, of whatever lengths (vLLM drops the second when its length differs).
   */
  private async badWordsTokenIds({ badWords }: SamplingParams): Promise<(readonly number[])[]> {
    const spellings: (readonly number[])[] = [];
    for (const word of badWords) {
      if (typeof word !== 'string') {
        spellings.push(word);
        continue;
      }
      const tokenizer = this.requireTokenizer('a bad word as text');
      const bare = word.trimStart();
      if (bare === '')
        throw new InvalidRequestError(`badWords has ${show(word)}, which is no word`);
      const [atStart, afterSpace] = await tokenizer.encodeBatch([bare, ` ${bare}`], {
        addSpecialTokens: false,
      });
      // A space that is a token of its own, and then the word as it is at the start.
      const isCovered = atStart.every(
        (tokenId, i) => tokenId === afterSpace.at(i - atStart.length),
      );
      spellings.push(...(isCovered ? [atStart] : [atStart, afterSpace]));
    }
    return spellings;
  }

  private requireTokenizer(what: string): Tokenizer {
    if (this.tokenizer !== null) return this.tokenizer;
    throw new InvalidRequestError(
      `${what} needs a tokenizer, and the engine was made with skipTokenizerInit`,
    );
  }
}

/** What `check` resolves to; an InvalidRequestError that it rejects with says what it is about. */
async function naming<T>(subject: string, check: () => Promise<T>): Promise<T> {
  try {
    return await check();
  } catch (error) {
    if (!(error instanceof InvalidRequestError)) throw error;
    throw new InvalidRequestError(`${subject}: ${error.message}`, { cause: error.cause });
  }
}
