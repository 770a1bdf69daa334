/** Holds the worker a config asks for; executors call the methods of both by name (vLLM's WorkerWrapperBase). */
import { inspect } from 'node:util';
import { ConfigError, InvalidStateError, UnknownMethodError } from '../errors';
import type { KVCacheConfig } from '../contract/kvCache';
import { loadClass } from './loadClass';
import { Worker } from './worker';
import type { WorkerArgs } from './workerBase';

/** A mutex: one owner at a time, the others wait in the order they came. */
export class Lock {
  #last: Promise<void> = Promise.resolve();

  /** Resolves when the lock is held, with the function that gives it back. */
  acquire(): Promise<() => void> {
    const before = this.#last;
    let release!: () => void;
    this.#last = new Promise((resolve) => (release = resolve));
    return before.then(() => release);
  }
}

/** What a worker is made with, and what its wrapper keeps. */
export interface WorkerKwargs extends WorkerArgs {
  /** Shared by the workers of one process. */
  sharedWorkerLock: Lock;
}

type WorkerClass<W> = new (args: WorkerArgs) => W;

/** One worker, made only by `initWorker`, and the few methods that executors call before it is there. */
export class WorkerWrapper<W extends object = Worker> {
  /** Which of the workers' arguments are this one's. */
  readonly rpcRank: number;
  /** Which of the KV cache configs is this one's. */
  readonly globalRank: number;
  #worker: W | null = null;
  #sharedWorkerLock: Lock | null = null;

  constructor({
    rpcRank = 0,
    globalRank = rpcRank,
  }: { rpcRank?: number; globalRank?: number } = {}) {
    this.rpcRank = rpcRank;
    this.globalRank = globalRank;
  }

  /** Throws InvalidStateError before `initWorker`. */
  get worker(): W {
    if (this.#worker === null) throw new InvalidStateError('there is no worker before initWorker');
    return this.#worker;
  }

  /** Null before `initWorker`. */
  get sharedWorkerLock(): Lock | null {
    return this.#sharedWorkerLock;
  }

  /**
   * Makes the worker from `allKwargs[rpcRank]`: of the class `config.parallel.workerCls`, or Worker,
   * with the methods of `workerExtensionCls` added. Rejects with ConfigError for a class that cannot
   * be had and for an extension's method whose name is taken, and with what the constructor throws.
   */
  async initWorker(allKwargs: readonly WorkerKwargs[]): Promise<void> {
    if (this.#worker !== null) throw new InvalidStateError('initWorker a second time');
    const { sharedWorkerLock, ...args } = allKwargs[this.rpcRank];
    const { workerCls, workerExtensionCls } = args.config.parallel;
    let workerClass = await findClass<W>('workerCls', workerCls ?? Worker);
    if (workerExtensionCls !== null && workerExtensionCls !== undefined) {
      workerClass = extendClass(
        workerClass,
        await findClass('workerExtensionCls', workerExtensionCls),
      );
    }
    this.#worker = new workerClass(args);
    this.#sharedWorkerLock = sharedWorkerLock;
  }

  /** Hands the worker its own of all ranks' configs. Throws ConfigError when there is none for it. */
  initializeFromConfig(kvCacheConfigs: readonly KVCacheConfig[]): unknown {
    const kvCacheConfig = kvCacheConfigs.at(this.globalRank);
    if (kvCacheConfig === undefined) {
      throw new ConfigError(
        `${kvCacheConfigs.length} KV cache configs, and none for rank ${this.globalRank}`,
      );
    }
    return workerMethod(this, 'initializeFromConfig').call(this.worker, kvCacheConfig);
  }

  /** Shuts the worker down, if there is one. */
  async shutdown(): Promise<void> {
    if (this.#worker !== null) await workerMethod(this, 'shutdown').call(this.#worker);
  }
}

type Method = (...args: unknown[]) => unknown;

/** A method by name, or a function that is given the worker's wrapper before `args`. */
export type RpcMethod = string | ((wrapper: WorkerWrapper, ...args: never[]) => unknown);

/**
 * Calls the wrapper's method of that name, else the worker's, with `args` and after them `kwargs`
 * if given. A function is given the wrapper first. Returns and throws what that does, and throws
 * UnknownMethodError for a name that neither has.
 */
export function runMethod(
  wrapper: WorkerWrapper<object>,
  method: RpcMethod,
  args: readonly unknown[],
  kwargs?: object,
): unknown {
  const given = (kwargs === undefined ? args : [...args, kwargs]) as unknown[];
  if (typeof method === 'function') return (method as Method)(wrapper, ...given);
  const own = findMethod(prototypeOf(wrapper), method);
  if (own !== null) return own.apply(wrapper, given);
  return workerMethod(wrapper, method).apply(wrapper.worker, given);
}

function workerMethod(wrapper: WorkerWrapper<object>, name: string): Method {
  const method = findMethod(wrapper.worker, name);
  if (method !== null) return method;
  const known = [...methodNames(prototypeOf(wrapper)), ...methodNames(wrapper.worker)];
  throw new UnknownMethodError(name, [...new Set(known)].sort());
}

const prototypeOf = (object: object) => Object.getPrototypeOf(object) as object;

/** A method of the object or of its classes, but not one that every object has. */
function findMethod(object: object, name: string): Method | null {
  if (isRoot(object) || name === 'constructor') return null;
  // Not object[name]: a getter must not run for being looked at.
  const property = Object.getOwnPropertyDescriptor(object, name);
  if (property === undefined) return findMethod(prototypeOf(object), name);
  return typeof property.value === 'function' ? (property.value as Method) : null;
}

function methodNames(object: object): string[] {
  const names = (at: object): string[] =>
    isRoot(at) ? [] : [...Object.getOwnPropertyNames(at), ...names(prototypeOf(at))];
  return names(object).filter((name) => findMethod(object, name) !== null);
}

/** Object.prototype, of this realm or another. */
function isRoot(object: object): boolean {
  return Object.getPrototypeOf(object) === null;
}

async function findClass<W>(option: string, reference: unknown): Promise<WorkerClass<W>> {
  const found = await loadClass(reference);
  if (found !== undefined) return found as unknown as WorkerClass<W>;
  throw new ConfigError(
    `${option} must be a class or { module, export }, not ${inspect(reference)}`,
  );
}

/** A subclass of `base` that has the extension's methods too. */
function extendClass<W extends object>(
  base: WorkerClass<W>,
  extension: WorkerClass<object>,
): WorkerClass<W> {
  const taken = (name: string) =>
    new ConfigError(
      `workerExtensionCls ${extension.name} has a method ${name}, which ${base.name} has already`,
    );
  const methods = methodNames(extension.prototype as object);
  const extended = class extends (base as WorkerClass<object>) {
    constructor(args: WorkerArgs) {
      super(args);
      // Methods that the worker's constructor made would hide the extension's.
      for (const name of methods) if (Object.hasOwn(this, name)) throw taken(name);
    }
  };
  Object.defineProperty(extended, 'name', { value: `${base.name}With${extension.name}` });
  for (const name of methods) {
    if (name in base.prototype || name in WorkerWrapper.prototype) throw taken(name);
    const value = findMethod(extension.prototype as object, name);
    Object.defineProperty(extended.prototype, name, { value, writable: true, configurable: true });
  }
  return extended as WorkerClass<W>;
}
