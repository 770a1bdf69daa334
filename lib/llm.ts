/** Public API: load a model, generate, stream, chat. */
import type { EventEmitter } from 'node:events';
import { throwIfAborted } from './abortSignal';
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
import { readingOf } from './config/snapshot';
import { checkArgs, type CreateArgs } from './createArgs';
import type { PoolingParams } from './contract/schedulerOutput';
import { Call } from './engine/call';
import type { CallInputs } from './engine/callInputs';
import { rejectOnThrow } from './engine/callOutputs';
import type { Params } from './engine/callParams';
import { LLMEngine } from './engine/engine';
import { asConversations, asPrompts, InputProcessor, type Prompt } from './engine/inputProcessor';
import type { EngineEvents } from './engine/metrics';
import type { OutputStream, RequestOutput } from './engine/outputs';
import type { StartupRecord } from './engine/startupRecord';
import type { EngineStats } from './engine/stats';
import { checkRpcOptions } from './executor/callOptions';
import type { RpcMethod, RpcOptions } from './executor/executor';
import {
  EMBEDDING_PARAMS,
  type EmbeddingOutput,
  embeddingOutput,
  type EmbedOptions,
  takeEmbedOptions,
} from './embedding';
import { startAmongRanks } from './distributed/startFailure';
import { createUniprocConfig } from './executor/createConfig';
import type { Executor } from './executor/executor';
import type { UniProcExecutor } from './executor/uniProcExecutor';
import { InvalidStateError } from './errors';
import { codeOf, log } from './log';
import { localFolder } from './hub/localFolder';
import { drawCall, loadProgressBar, pullProgressBar } from './progressBar';
import type { ChatMessage } from './tokenizer/chatTemplate';
import { Tokenizer } from './tokenizer/tokenizer';
import type { Worker } from './worker/worker';
import type { SleepTag, WorkerBase } from './worker/workerBase';

/**
 * A loaded model and its engine. Concurrent calls share the engine's batches. After `shutdown`,
 * or after the executor failed, every call rejects with ShutdownError or ExecutorFailedError.
 */
export class LLM<W extends WorkerBase = Worker, E extends Executor = UniProcExecutor<W>> {
  private constructor(
    /** `engine.executor` reaches the executor, and through it the worker. */
    readonly engine: LLMEngine<E>,
    /** Null with `skipTokenizerInit`. `shutdown` closes it. */
    readonly tokenizer: Tokenizer | null,
    private readonly inputProcessor: InputProcessor,
  ) {}

  /**
   * Loads a model, after a download if `model` names one on the Hugging Face hub. Rejects with
   * ConfigError, CheckpointError, UnsupportedModelError, OutOfMemoryError, CudaUnavailableError,
   * AddonUnavailableError or the hub's errors (docs/server.md) after releasing everything. If another
   * rank failed to start, the error has that rank's error code and names the rank.
   */
  static async create<W extends WorkerBase = Worker, E extends Executor = UniProcExecutor<W>>(
    args: CreateArgs<W, E> = {},
  ): Promise<LLM<W, E>> {
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

  private static async start<W extends WorkerBase, E extends Executor>(
    args: CreateArgs<W, E>,
  ): Promise<LLM<W, E>> {
    checkArgs(args);
    const { onProgress, signal, chatTemplate, revision, onPull, ...others } = args;
    const { toolCallParser, reasoningParser, ...engineArgs } = others;
    const { isTTY } = process.stderr;
    const model = (await localFolder(engineArgs.model, {
      revision,
      onProgress: onPull ?? (isTTY ? pullProgressBar(process.stderr) : undefined),
      signal,
    })) as string | undefined;
    const config = await createUniprocConfig({ ...engineArgs, model });
    const { device, model: checkpoint } = config;
    log('start: model %s, device %s, dtype %s', checkpoint.path, device.name, checkpoint.dtype);
    throwIfAborted(signal);
    // Loads beside the weights.
    const loading = checkpoint.skipTokenizerInit
      ? Promise.resolve(null)
      : loadTokenizer(checkpoint.tokenizer, chatTemplate);
    try {
      const engine = await LLMEngine.create<E>(config, {
        tokenizer: loading,
        onProgress: onProgress ?? (isTTY ? loadProgressBar(process.stderr) : undefined),
        signal,
      });
      const tokenizer = await loading;
      return new LLM<W, E>(
        engine,
        tokenizer,
        new InputProcessor(config, tokenizer, engine.grammars, { toolCallParser, reasoningParser }),
      );
    } catch (error) {
      const tokenizer = await loading.catch(() => null);
      await tokenizer?.close();
      throw error;
    }
  }

  /**
   * Generates for one prompt or several, with one SamplingParams or object of its options for all, or
   * one for each; default: the model's defaults. A list that starts with a number is one prompt's token
   * ids. Resolves to one output per prompt, in order, once all have finished. Rejects with
   * InvalidRequestError or QueueFullError before anything runs; later with RequestTimeoutError or, if
   * `options.signal` was aborted, RequestAbortedError, which end all prompts of the call and have what
   * was generated.
   */
  generate(
    prompts: Prompt | readonly Prompt[],
    params?: Params | readonly Params[],
    options: GenerateOptions = {},
  ): Promise<RequestOutput[]> {
    return rejectOnThrow(() => {
      const checked = checkGenerateOptions(options, this.engine.config.limits);
      const prompting = promptOptionsOf(checked);
      const list = readingOf('prompts', () => asPrompts(prompts));
      const inputs = this.inputProcessor.takePrompts(list, params, prompting);
      return this.generateFor(inputs, checked);
    });
  }

  /**
   * Embeds one prompt or several, as `generate` takes them, with an embedding model: the last token's hidden
   * state behind the last norm. Resolves and rejects as `generate` does; InvalidRequestError if the model
   * generates.
   */
  embed(
    prompts: Prompt | readonly Prompt[],
    options: EmbedOptions = {},
  ): Promise<EmbeddingOutput[]> {
    return rejectOnThrow(() => {
      const { pooling, rest } = takeEmbedOptions(options, this.engine.config);
      const checked = checkGenerateOptions(rest, this.engine.config.limits);
      const list = readingOf('prompts', () => asPrompts(prompts));
      const prompting = promptOptionsOf(checked);
      const inputs = this.inputProcessor.takePrompts(list, EMBEDDING_PARAMS, prompting);
      return this.generateFor(inputs, checked, pooling);
    }).then((outputs) => outputs.map(embeddingOutput));
  }

  private generateFor(
    inputs: CallInputs,
    options: GenerateOptions,
    pooling?: PoolingParams,
  ): Promise<RequestOutput[]> {
    const { progress } = options;
    const call = new Call(inputs.numPrompts);
    const done = this.engine.generate(inputs, { ...requestOptionsOf(options), pooling }, call);
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
  stream(prompt: Prompt, params?: Params, options: StreamOptions = {}): OutputStream {
    return this.streamFor(
      () => checkRequestOptions(options, this.engine.config.limits),
      (checked) => this.inputProcessor.takePrompts([prompt], params, promptOptionsOf(checked)),
    );
  }

  /**
   * Answers one conversation or several, rendered by the checkpoint's chat template or by
   * `options.chatTemplate`. Without maxTokens, of the caller or of generation_config.json, an answer ends
   * with the model's turn or where the model's length is reached. Resolves and rejects as `generate`
   * does; also rejects with CheckpointError if the checkpoint's template does not compile.
   */
  chat(
    messages: readonly ChatMessage[] | readonly (readonly ChatMessage[])[],
    params?: Params | readonly Params[],
    options: ChatOptions = {},
  ): Promise<RequestOutput[]> {
    return rejectOnThrow(() => {
      const conversations = readingOf('messages', () => asConversations(messages));
      const checked = checkChatOptions(options, this.engine.config.limits);
      const prompting = promptOptionsOf(checked);
      const inputs = this.inputProcessor.takeChats(conversations, params, prompting);
      return this.generateFor(inputs, checked);
    });
  }

  /** `stream` for one conversation. */
  chatStream(
    messages: readonly ChatMessage[],
    params?: Params,
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

  /** Resolves if requests can run; rejects with the error that stopped the engine or its executor. */
  checkHealth(): Promise<void> {
    return this.engine.checkHealth();
  }

  /**
   * Frees device memory. Level 1 moves the weights to host memory, level 2 discards them; both discard
   * the KV cache. Calls reject with InvalidStateError until `wakeUp`, and so does `sleep` while a
   * call is unfinished. Among several ranks, every rank must call it between the same calls.
   */
  async sleep(level: 1 | 2 = 1): Promise<void> {
    // The worker knows only of requests that have run, and frees aborted ones at its next step.
    const { numUnfinishedRequests } = this.engine;
    if (numUnfinishedRequests > 0) {
      throw new InvalidStateError(
        `sleep was called with ${numUnfinishedRequests} requests unfinished; finish or abort them first`,
      );
    }
    const idle = this.engine.idle();
    if (idle !== null) await idle;
    await this.engine.executor.sleep(level);
  }

  /** Restores all memory that `sleep` freed, or that of `tags`. Rejects with OutOfMemoryError. */
  wakeUp(tags?: readonly SleepTag[]): Promise<void> {
    return this.engine.executor.wakeUp(tags);
  }

  /**
   * Calls a method of every worker by its name, or a function with the wrapper of every worker
   * (`({ worker }) => worker.modelRunner`); resolves with one result per worker of this process. Rejects
   * with the worker's error, ConfigError (an invalid option), UnknownMethodError or RpcTimeoutError.
   */
  async collectiveRpc<T = unknown>(
    method: RpcMethod<W, T>,
    options: RpcOptions = {},
  ): Promise<T[]> {
    // The executor's workers are of class W, which its own type does not say.
    const untyped = method as RpcMethod<WorkerBase, T>;
    return this.engine.executor.collectiveRpc(untyped, checkRpcOptions(method, options));
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

async function loadTokenizer(folder: string, chatTemplate?: string): Promise<Tokenizer> {
  const tokenizer = await Tokenizer.load(folder, { chatTemplate });
  log('start: the tokenizer is loaded');
  return tokenizer;
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
