/** What users call: load a model, generate, stream, chat. */
import type { EventEmitter } from 'node:events';
import { createUniprocConfig, type EngineArgs } from './config/engineArgs';
import {
  checkReconfigureRequest,
  type ReconfigureDistributedRequest,
} from './config/reconfigureRequest';
import {
  type ChatOptions,
  type ChatStreamOptions,
  checkChatOptions,
  checkChatStreamOptions,
  checkGenerateOptions,
  checkRequestOptions,
  type GenerateOptions,
  promptOptionsOf,
  type RequestOptions,
  requestOptionsOf,
  type StreamOptions,
} from './config/requestOptions';
import { SamplingParams } from './config/samplingParams';
import { show } from './config/schema';
import { readingOf } from './config/snapshot';
import type { LoadProgress } from './config/uniprocConfig';
import { Call } from './engine/call';
import type { CallInputs } from './engine/callInputs';
import { rejecting } from './engine/callOutputs';
import { LLMEngine } from './engine/engine';
import { InputProcessor, type Prompt } from './engine/inputProcessor';
import type { EngineEvents } from './engine/metrics';
import type { OutputStream, RequestOutput } from './engine/outputs';
import type { EngineStats } from './engine/stats';
import { startAmongRanks } from './distributed/startFailure';
import { ConfigError, InvalidRequestError } from './errors';
import { defaultDevice } from './native';
import { drawCall, loadProgressBar } from './progressBar';
import type { ChatMessage } from './tokenizer/chatTemplate';
import { Tokenizer } from './tokenizer/tokenizer';

export interface CreateArgs extends EngineArgs {
  /** Told how far the load of the weights is; default: a bar, when stderr is a terminal. */
  onProgress?: (progress: LoadProgress) => void;
  /** Gives the start up at its next stage; `create` then rejects with the signal's reason. */
  signal?: AbortSignal;
  /** The chat template's text, or the name of one of the checkpoint's; default: the checkpoint's. */
  chatTemplate?: string;
}

/**
 * A model, loaded, and the engine that runs it. Calls from anywhere in the process share the
 * engine's batches. After `shutdown`, or once the executor failed, every call rejects with
 * ShutdownError or ExecutorFailedError.
 */
export class LLM {
  private constructor(
    /** `engine.executor` reaches the executor, and through it the worker. */
    readonly engine: LLMEngine,
    /** Null with `skipTokenizerInit`. `shutdown` closes it. */
    readonly tokenizer: Tokenizer | null,
    private readonly inputProcessor: InputProcessor,
  ) {}

  /**
   * Loads a model. Rejects with ConfigError, CheckpointError, UnsupportedModelError,
   * OutOfMemoryError, AddonUnavailableError; nothing is left behind then. Where the reason is that
   * another rank could not start, the error has that one's code and names the rank.
   */
  static async create(args: CreateArgs = {}): Promise<LLM> {
    const { distributedExecutorBackend: backend } = { ...args };
    return backend === 'external_launcher'
      ? startAmongRanks(() => LLM.start(args))
      : LLM.start(args);
  }

  private static async start(args: CreateArgs): Promise<LLM> {
    checkArgs(args);
    const { onProgress, signal, chatTemplate, ...engineArgs } = args;
    const device = engineArgs.device ?? (await defaultDevice());
    const config = await createUniprocConfig({ ...engineArgs, device });
    signal?.throwIfAborted();
    const tokenizer = config.model.skipTokenizerInit
      ? null
      : await Tokenizer.load(config.model.path, { chatTemplate });
    try {
      const engine = await LLMEngine.create(config, {
        tokenizer,
        onProgress:
          onProgress ?? (process.stderr.isTTY ? loadProgressBar(process.stderr) : undefined),
        signal,
      });
      return new LLM(engine, tokenizer, new InputProcessor(config, tokenizer));
    } catch (error) {
      await tokenizer?.close();
      throw error;
    }
  }

  /**
   * Generates for one prompt or several, with one SamplingParams for all or one for each; without
   * any, with the model's own defaults. Resolves to an output for each prompt, in order, once all
   * are done. Rejects with InvalidRequestError or QueueFullError before anything runs; later with
   * RequestTimeoutError or the reason of `options.signal`, and then all of its prompts have ended.
   */
  generate(
    prompts: Prompt | readonly Prompt[],
    params?: SamplingParams | readonly SamplingParams[],
    options: GenerateOptions = {},
  ): Promise<RequestOutput[]> {
    return rejecting(() => {
      const checked = checkGenerateOptions(options, this.engine.config.limits);
      const prompting = promptOptionsOf(checked);
      const list = readingOf('prompts', () => asList(prompts));
      const inputs = this.inputProcessor.takePrompts(list, params, prompting);
      return this.generateFor(inputs, checked);
    });
  }

  private generateFor(inputs: CallInputs, options: GenerateOptions): Promise<RequestOutput[]> {
    const { progress } = options;
    const call = new Call(inputs.numPrompts);
    const done = this.engine.generate(inputs, requestOptionsOf(options), call);
    if (!(progress ?? (process.stderr.isTTY && inputs.numPrompts > 1))) return done;
    const stopDrawing = drawCall(process.stderr, call);
    return done.finally(stopDrawing);
  }

  private streamFor<Options extends RequestOptions>(
    check: () => Options,
    takeInputs: (options: Options) => CallInputs,
  ): OutputStream {
    // Both now: the caller may change what it passed in before the first read.
    const checked = outcomeOf(check);
    const inputs = outcomeOf(() => takeInputs(checked()));
    return this.engine.stream(inputs, requestOptionsOf(checked.value ?? {}));
  }

  /**
   * Generates for one prompt, from the first read on. What came since the reader last asked comes as
   * one delta; leaving the loop ends the request. Reads reject with what `generate` rejects with.
   */
  stream(prompt: Prompt, params?: SamplingParams, options: StreamOptions = {}): OutputStream {
    return this.streamFor(
      () => checkRequestOptions(options, this.engine.config.limits),
      (checked) => this.inputProcessor.takePrompts([prompt], params, promptOptionsOf(checked)),
    );
  }

  /**
   * Answers one conversation or several, put into words by the checkpoint's chat template or by
   * `options.chatTemplate`, with the tools, documents and variables of the options. Resolves and
   * rejects as `generate`; with CheckpointError when the checkpoint's template does not compile.
   */
  async chat(
    messages: readonly ChatMessage[] | readonly (readonly ChatMessage[])[],
    params?: SamplingParams | readonly SamplingParams[],
    options: ChatOptions = {},
  ): Promise<RequestOutput[]> {
    const conversations = readingOf('messages', () => conversationsOf(messages));
    const checked = checkChatOptions(options, this.engine.config.limits);
    const prompting = promptOptionsOf(checked);
    const inputs = this.inputProcessor.takeChats(conversations, params, prompting);
    return this.generateFor(inputs, checked);
  }

  /** Answers one conversation as `stream` continues a prompt. */
  chatStream(
    messages: readonly ChatMessage[],
    params?: SamplingParams,
    options: ChatStreamOptions = {},
  ): OutputStream {
    return this.streamFor(
      () => checkChatStreamOptions(options, this.engine.config.limits),
      (checked) => this.inputProcessor.takeChats([messages], params, promptOptionsOf(checked)),
    );
  }

  /** How the engine stands: queue, cache, tokens, latencies. */
  stats(): EngineStats {
    return this.engine.stats();
  }

  /** What happens to requests, as it happens, for a log: `llm.events.on('finished', ...)`. */
  get events(): EventEmitter<EngineEvents> {
    return this.engine.events;
  }

  /** Requests from now on share no KV cache with those before: for when the weights were changed. */
  resetPrefixCache(): void {
    this.engine.resetPrefixCache();
  }

  /**
   * Goes over to another group of ranks, with the calls that are under way (docs/tensor-parallel.md).
   * Every rank that stays or leaves asks for it at the same place among its calls; those that join
   * are new processes. Rejects with ConfigError or InvalidStateError, and goes on as before, when the
   * ranks do not agree, and with NotSupportedError where no launcher started this process.
   */
  async reinitializeDistributed(request: ReconfigureDistributedRequest): Promise<void> {
    return this.engine.reinitializeDistributed(checkReconfigureRequest(request));
  }

  /** Pending calls reject with ShutdownError; frees the model and joins its threads. Idempotent. */
  async shutdown(): Promise<void> {
    try {
      // First, so that calls whose prompts are being encoded end with ShutdownError of the engine's.
      await this.engine.shutdown();
    } finally {
      await this.tokenizer?.close();
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.shutdown();
  }
}

/** Calls `read` now, and throws what it threw or returns what it returned when it is asked. */
function outcomeOf<T>(read: () => T): (() => T) & { value?: T } {
  try {
    const value = read();
    return Object.assign(() => value, { value });
  } catch (error) {
    return () => {
      throw error;
    };
  }
}

/** The three that are no options of the engine's. */
function checkArgs(args: unknown): void {
  if (typeof args !== 'object' || args === null || Array.isArray(args)) {
    throw new ConfigError(`LLM.create takes an object of options, not ${show(args)}`);
  }
  const { onProgress, signal, chatTemplate } = args as Record<string, unknown>;
  if (onProgress !== undefined && typeof onProgress !== 'function') {
    throw new ConfigError(`onProgress is ${show(onProgress)}; it must be a function`);
  }
  if (chatTemplate !== undefined && typeof chatTemplate !== 'string') {
    throw new ConfigError(`chatTemplate is ${show(chatTemplate)}; it must be a string`);
  }
  if (signal !== undefined && !(signal instanceof AbortSignal)) {
    throw new ConfigError(`signal is ${show(signal)}; it must be an AbortSignal`);
  }
}

function conversationsOf(
  messages: readonly ChatMessage[] | readonly (readonly ChatMessage[])[],
): readonly (readonly ChatMessage[])[] {
  if (!Array.isArray(messages) || messages.length === 0) {
    throw new InvalidRequestError(
      `chat takes a list of messages, or a list of such lists, not ${show(messages)}`,
    );
  }
  return Array.isArray(messages[0])
    ? (messages as readonly (readonly ChatMessage[])[])
    : [messages as readonly ChatMessage[]];
}

function asList(prompts: Prompt | readonly Prompt[]): readonly Prompt[] {
  return Array.isArray(prompts) ? (prompts as readonly Prompt[]) : [prompts as Prompt];
}
