/** Public API: load a model, generate, stream, chat. */
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
import { rejectOnThrow } from './engine/callOutputs';
import { LLMEngine } from './engine/engine';
import { InputProcessor, type Prompt } from './engine/inputProcessor';
import type { EngineEvents } from './engine/metrics';
import type { OutputStream, RequestOutput } from './engine/outputs';
import type { StartupRecord } from './engine/startupRecord';
import type { EngineStats } from './engine/stats';
import { startAmongRanks } from './distributed/startFailure';
import { ConfigError, InvalidRequestError } from './errors';
import { codeOf, log } from './log';
import { defaultDevice } from './native';
import { drawCall, loadProgressBar } from './progressBar';
import type { ChatMessage } from './tokenizer/chatTemplate';
import { Tokenizer } from './tokenizer/tokenizer';

export interface CreateArgs extends EngineArgs {
  /**
   * Receives the progress of weight loading.
   * @defaultValue a progress bar if stderr is a terminal
   */
  onProgress?: (progress: LoadProgress) => void;
  /**
   * Aborts loading at its next stage; `create` then rejects with the signal's reason.
   * @defaultValue none
   */
  signal?: AbortSignal;
  /**
   * A template's text, or the name of a template in the checkpoint.
   * @defaultValue the checkpoint's
   */
  chatTemplate?: string;
}

/**
 * A loaded model and its engine. Concurrent calls share the engine's batches. After `shutdown`,
 * or after the executor failed, every call rejects with ShutdownError or ExecutorFailedError.
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
   * OutOfMemoryError, CudaUnavailableError or AddonUnavailableError after releasing everything. If
   * another rank failed to start, the error has that rank's error code and names the rank.
   */
  static async create(args: CreateArgs = {}): Promise<LLM> {
    const { distributedExecutorBackend: backend } = { ...args };
    try {
      return await (backend === 'external_launcher'
        ? startAmongRanks(() => LLM.start(args))
        : LLM.start(args));
    } catch (error) {
      log('start: failed: %s', codeOf(error));
      throw error;
    }
  }

  private static async start(args: CreateArgs): Promise<LLM> {
    checkArgs(args);
    const { onProgress, signal, chatTemplate, ...engineArgs } = args;
    const device = engineArgs.device ?? (await defaultDevice());
    const config = await createUniprocConfig({ ...engineArgs, device });
    const { model } = config;
    log('start: model %s, device %s, dtype %s', model.path, device, model.dtype);
    signal?.throwIfAborted();
    const tokenizer = config.model.skipTokenizerInit
      ? null
      : await Tokenizer.load(config.model.path, { chatTemplate });
    if (tokenizer !== null) log('start: the tokenizer is loaded');
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
   * Generates for one prompt or several, with one SamplingParams for all or one for each; default:
   * the model's defaults. Resolves to one output per prompt, in order, once all have finished.
   * Rejects with InvalidRequestError or QueueFullError before anything runs; later with
   * RequestTimeoutError or the reason of `options.signal`, which end all prompts of the call.
   */
  generate(
    prompts: Prompt | readonly Prompt[],
    params?: SamplingParams | readonly SamplingParams[],
    options: GenerateOptions = {},
  ): Promise<RequestOutput[]> {
    return rejectOnThrow(() => {
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
    // Both run now: the caller may change its arguments before the first read.
    const checked = outcomeOf(check);
    const inputs = outcomeOf(() => takeInputs(checked()));
    return this.engine.stream(inputs, requestOptionsOf(checked.value ?? {}));
  }

  /**
   * Generates for one prompt, starting with the first read. Each read returns all text since the
   * previous one as one delta; leaving the loop aborts the request. Reads reject as `generate` does.
   */
  stream(prompt: Prompt, params?: SamplingParams, options: StreamOptions = {}): OutputStream {
    return this.streamFor(
      () => checkRequestOptions(options, this.engine.config.limits),
      (checked) => this.inputProcessor.takePrompts([prompt], params, promptOptionsOf(checked)),
    );
  }

  /**
   * Answers one conversation or several, rendered by the checkpoint's chat template or by
   * `options.chatTemplate`. Resolves and rejects as `generate` does; also rejects with
   * CheckpointError if the checkpoint's template does not compile.
   */
  chat(
    messages: readonly ChatMessage[] | readonly (readonly ChatMessage[])[],
    params?: SamplingParams | readonly SamplingParams[],
    options: ChatOptions = {},
  ): Promise<RequestOutput[]> {
    return rejectOnThrow(() => {
      const conversations = readingOf('messages', () => conversationsOf(messages));
      const checked = checkChatOptions(options, this.engine.config.limits);
      const prompting = promptOptionsOf(checked);
      const inputs = this.inputProcessor.takeChats(conversations, params, prompting);
      return this.generateFor(inputs, checked);
    });
  }

  /** `stream` for one conversation. */
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

  /** The engine's queue, KV cache, token counts and latencies. */
  stats(): EngineStats {
    return this.engine.stats();
  }

  /** Events of the engine and of requests, for logging: `llm.events.on('finished', ...)`. */
  get events(): EventEmitter<EngineEvents> {
    return this.engine.events;
  }

  /** Device, weights and KV cache, as the event 'started' tells them. */
  get startup(): StartupRecord {
    return this.engine.startup;
  }

  /** Stops later requests from reusing cached KV blocks; call it after changing the weights. */
  resetPrefixCache(): void {
    this.engine.resetPrefixCache();
  }

  /**
   * Moves the engine and its running calls to another rank group (docs/tensor-parallel.md). Every
   * current rank must call it at the same position among its calls; joining ranks are new processes.
   * Rejects with ConfigError or InvalidStateError, without a change, if the ranks' requests differ;
   * with NotSupportedError unless a launcher started this process.
   */
  async reinitializeDistributed(request: ReconfigureDistributedRequest): Promise<void> {
    return this.engine.reinitializeDistributed(checkReconfigureRequest(request));
  }

  /** Rejects pending calls with ShutdownError, frees the model and joins its threads. Idempotent. */
  async shutdown(): Promise<void> {
    try {
      // First, so that calls still encoding prompts reject with the engine's ShutdownError.
      await this.engine.shutdown();
    } finally {
      await this.tokenizer?.close();
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.shutdown();
  }
}

/** Calls `read` now; the returned function returns its result or throws its error. */
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

/** Checks the three options that are not EngineArgs. */
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
      `messages is ${show(messages)}; it must be a list of messages or a list of conversations`,
    );
  }
  return Array.isArray(messages[0])
    ? (messages as readonly (readonly ChatMessage[])[])
    : [messages as readonly ChatMessage[]];
}

function asList(prompts: Prompt | readonly Prompt[]): readonly Prompt[] {
  return Array.isArray(prompts) ? (prompts as readonly Prompt[]) : [prompts as Prompt];
}
