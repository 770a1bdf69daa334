/** What users call: load a model, generate, stream, chat. */
import type { EventEmitter } from 'node:events';
import { createUniprocConfig, type EngineArgs } from './config/engineArgs';
import {
  checkReconfigureRequest,
  type ReconfigureDistributedRequest,
} from './config/reconfigureRequest';
import {
  checkGenerateOptions,
  checkRequestOptions,
  type GenerateOptions,
  type RequestOptions,
} from './config/requestOptions';
import { SamplingParams } from './config/samplingParams';
import { show } from './config/schema';
import type { LoadProgress } from './config/uniprocConfig';
import { Call } from './engine/call';
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
    const { onProgress, signal, ...engineArgs } = args;
    const device = engineArgs.device ?? (await defaultDevice());
    const config = await createUniprocConfig({ ...engineArgs, device });
    signal?.throwIfAborted();
    const tokenizer = config.model.skipTokenizerInit
      ? null
      : await Tokenizer.load(config.model.path);
    const engine = await LLMEngine.create(config, {
      tokenizer,
      onProgress:
        onProgress ?? (process.stderr.isTTY ? loadProgressBar(process.stderr) : undefined),
      signal,
    });
    return new LLM(engine, new InputProcessor(config, tokenizer));
  }

  /**
   * Generates for one prompt or several, with one SamplingParams for all or one for each; without
   * any, with the model's own defaults. Resolves to an output for each prompt, in order, once all
   * are done. Rejects with InvalidRequestError or QueueFullError before anything runs; later with
   * RequestTimeoutError or the reason of `options.signal`, and then all of its prompts have ended.
   */
  async generate(
    prompts: Prompt | readonly Prompt[],
    params?: SamplingParams | readonly SamplingParams[],
    options: GenerateOptions = {},
  ): Promise<RequestOutput[]> {
    const { progress, ...requestOptions } = checkGenerateOptions(options);
    const inputs = this.inputProcessor.process(asList(prompts), params);
    const call = new Call(inputs.length);
    const done = this.engine.generate(inputs, requestOptions, call);
    if (!(progress ?? (process.stderr.isTTY && inputs.length > 1))) return done;
    const stopDrawing = drawCall(process.stderr, call);
    return done.finally(stopDrawing);
  }

  /**
   * Generates for one prompt, from the first read on. What came since the reader last asked comes as
   * one delta; leaving the loop ends the request. Reads reject with what `generate` rejects with.
   */
  stream(prompt: Prompt, params?: SamplingParams, options: RequestOptions = {}): OutputStream {
    return this.engine.stream(() => {
      checkRequestOptions(options);
      return this.inputProcessor.process([prompt], params)[0];
    }, options);
  }

  /**
   * Answers one conversation or several, put into words by the checkpoint's chat template. Resolves
   * and rejects as `generate`.
   */
  async chat(
    messages: readonly ChatMessage[] | readonly (readonly ChatMessage[])[],
    params?: SamplingParams | readonly SamplingParams[],
    options: GenerateOptions = {},
  ): Promise<RequestOutput[]> {
    if (!Array.isArray(messages) || messages.length === 0) {
      throw new InvalidRequestError(
        `chat takes a list of messages, or a list of such lists, not ${show(messages)}`,
      );
    }
    const conversations = Array.isArray(messages[0])
      ? (messages as readonly (readonly ChatMessage[])[])
      : [messages as readonly ChatMessage[]];
    return this.generate(this.inputProcessor.renderChats(conversations), params, options);
  }

  /** Answers one conversation as `stream` continues a prompt. */
  chatStream(
    messages: readonly ChatMessage[],
    params?: SamplingParams,
    options: RequestOptions = {},
  ): OutputStream {
    return this.engine.stream(() => {
      checkRequestOptions(options);
      const prompts = this.inputProcessor.renderChats([messages]);
      return this.inputProcessor.process(prompts, params)[0];
    }, options);
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
  shutdown(): Promise<void> {
    return this.engine.shutdown();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.shutdown();
  }
}

/** The two that are no options of the engine's. */
function checkArgs(args: unknown): void {
  if (typeof args !== 'object' || args === null || Array.isArray(args)) {
    throw new ConfigError(`LLM.create takes an object of options, not ${show(args)}`);
  }
  const { onProgress, signal } = args as Record<string, unknown>;
  if (onProgress !== undefined && typeof onProgress !== 'function') {
    throw new ConfigError(`onProgress is ${show(onProgress)}; it must be a function`);
  }
  if (signal !== undefined && !(signal instanceof AbortSignal)) {
    throw new ConfigError(`signal is ${show(signal)}; it must be an AbortSignal`);
  }
}

function asList(prompts: Prompt | readonly Prompt[]): readonly Prompt[] {
  return Array.isArray(prompts) ? (prompts as readonly Prompt[]) : [prompts as Prompt];
}
