/** The options of `LLM.create`. */
import { isAbortSignal } from './abortSignal';
import { engineArgsSchema } from './config/engineArgs';
import { checkParsers } from './config/replyOptions';
import { show } from './config/schema';
import { suggestName } from './config/suggest';
import type { LoadProgress } from './config/uniprocConfig';
import { ConfigError } from './errors';
import type { EngineArgs } from './executor/createConfig';
import type { Executor } from './executor/executor';
import type { UniProcExecutor } from './executor/uniProcExecutor';
import type { PullProgress } from './hub/pull';
import { isOptionsObject } from './realm';
import type { Worker } from './worker/worker';
import type { WorkerBase } from './worker/workerBase';

export interface CreateArgs<
  W extends WorkerBase = Worker,
  E extends Executor = UniProcExecutor<W>,
> extends EngineArgs<W, E> {
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
  /**
   * vLLM's name of the notation of tool calls; `'none'`: they are not parsed.
   * @defaultValue found from the chat template
   */
  toolCallParser?: string;
  /**
   * vLLM's name of the notation of reasoning; `'none'`: it is not parsed.
   * @defaultValue found from the chat template
   */
  reasoningParser?: string;
  /**
   * A branch, tag or commit of a model on the hub.
   * @defaultValue `'main'`
   */
  revision?: string;
  /**
   * Receives the progress of a download from the hub.
   * @defaultValue a progress bar if stderr is a terminal
   */
  onPull?: (progress: PullProgress) => void;
}

/** The options that are not EngineArgs. */
const OWN_ARGS: readonly string[] = [
  'onProgress',
  'signal',
  'chatTemplate',
  'toolCallParser',
  'reasoningParser',
  'revision',
  'onPull',
] satisfies (keyof CreateArgs)[];

/** Checks the options that are not EngineArgs. */
export function checkArgs(args: unknown): void {
  if (!isOptionsObject(args)) {
    throw new ConfigError(`LLM.create takes an object of options, not ${show(args)}`);
  }
  for (const name of Object.keys(args)) {
    if (name in engineArgsSchema.shape || OWN_ARGS.includes(name)) continue;
    // Other unknown names are refused with the engine's.
    const meant = suggestName(name, OWN_ARGS);
    if (meant !== null) throw new ConfigError(`unknown option ${name}; did you mean ${meant}?`);
  }
  const { signal } = args;
  for (const name of ['onProgress', 'onPull']) {
    const value = args[name];
    if (value === undefined || typeof value === 'function') continue;
    throw new ConfigError(`${name} is ${show(value)}; it must be a function`);
  }
  checkParsers(args, (message) => new ConfigError(message));
  for (const name of ['chatTemplate', 'revision']) {
    const value = args[name];
    if (value === undefined || typeof value === 'string') continue;
    throw new ConfigError(`${name} is ${show(value)}; it must be a string`);
  }
  if (signal !== undefined && !isAbortSignal(signal)) {
    throw new ConfigError(`signal is ${show(signal)}; it must be an AbortSignal`);
  }
}
