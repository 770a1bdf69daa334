/**
 * Creates and holds a worker; executors call the methods of both by name (vLLM's
 * WorkerWrapperBase).
 */
import { inspect } from 'node:util';
import { ConfigError, InvalidStateError, UnknownMethodError } from '../errors';
import type { KVCacheConfig } from '../contract/kvCache';
import { loadClass } from './loadClass';
import { Worker } from './worker';
import type { WorkerArgs } from './workerBase';

/** A mutex; waiters acquire it in FIFO order. */
export class Lock {
  #last: Promise<void> = Promise.resolve();

  /** Resolves with the release function once the lock is held. */
  acquire(): Promise<() => void> {
    const before = this.#last;
    let release!: () => void;
    this.#last = new Promise((resolve) => (release = resolve));
    return before.then(() => release);
  }
}

/** A worker's arguments plus the wrapper's. */
export interface WorkerKwargs extends WorkerArgs {
  /** Shared by the workers of one process. */
  sharedWorkerLock: Lock;
}

type WorkerClass<W> = new (args: WorkerArgs) => W;

/**
 * A wrapper of one worker, created by `initWorker`, with the methods that executors call before
 * that.
 */
export class WorkerWrapper<W extends object = Worker> {
  /** Index of this worker's arguments in `initWorker`. */
  readonly rpcRank: number;
  /** Index of this worker's KV cache config. */
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
    if (this.#worker === null)
      throw new InvalidStateError('there is no worker yet; call initWorker first');
    return this.#worker;
  }

  /** Null before `initWorker`. */
  get sharedWorkerLock(): Lock | null {
    return this.#sharedWorkerLock;
  }

  /**
   * Creates the worker from `allKwargs[rpcRank]`: of class `config.parallel.workerCls` or Worker,
   * with the methods of `workerExtensionCls` added. Rejects with ConfigError if a class cannot be
   * loaded or an extension's method name is taken, and with the constructor's errors.
   */
  async initWorker(allKwargs: readonly WorkerKwargs[]): Promise<void> {
    if (this.#worker !== null) throw new InvalidStateError('initWorker was called twice');
    const { sharedWorkerLock, ...args } = allKwargs[this.rpcRank];
    const { workerCls, workerExtensionCls } = args.config.parallel;
    let workerClass = await findClass<W>('workerCls', workerCls ?? Worker);
    if (workerExtensionCls !== null) {
      workerClass = extendClass(
        workerClass,
        await findClass('workerExtensionCls', workerExtensionCls),
      );
    }
    this.#worker = new workerClass(args);
    this.#sharedWorkerLock = sharedWorkerLock;
  }

  /** Passes the worker its own KV cache config. Throws ConfigError if there is none. */
  initializeFromConfig(kvCacheConfigs: readonly KVCacheConfig[]): unknown {
    const kvCacheConfig = kvCacheConfigs.at(this.globalRank);
    if (kvCacheConfig === undefined) {
      throw new ConfigError(
        `initializeFromConfig got ${kvCacheConfigs.length} KV cache configs and none for rank ${this.globalRank}`,
      );
    }
    return workerMethod(this, 'initializeFromConfig').call(this.worker, kvCacheConfig);
  }

  /** Shuts the worker down, if created. */
  async shutdown(): Promise<void> {
    if (this.#worker !== null) await workerMethod(this, 'shutdown').call(this.#worker);
  }
}

type Method = (...args: unknown[]) => unknown;

/** A method name, or a function called with the wrapper of a `W` before `args`. */
export type RpcMethod<W extends object = Worker, T = unknown> =
  string | ((wrapper: WorkerWrapper<W>, ...args: never[]) => T | PromiseLike<T>);

/**
 * Calls the wrapper's method of that name, else the worker's, with `args` and then `kwargs` if
 * given; or calls a function with the wrapper first. Throws UnknownMethodError if neither has the
 * method.
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

/**
 * Whether a promise of this method may be of an override that has not called `super` yet: always of
 * a Worker, which launches steps synchronously; else of an override that is async or names `super`.
 */
export function mayAwaitSuper({ worker }: WorkerWrapper<object>, method: RpcMethod): boolean {
  if (worker instanceof Worker) return true;
  if (typeof method === 'function' || !isOverride(worker, method)) return false;
  const override = findMethod(worker, method);
  // Compiled to a language version without `async`, it still names `super`, or `_super`.
  return tagOf(override) === '[object AsyncFunction]' || String(override).includes('super');
}

function workerMethod(wrapper: WorkerWrapper<object>, name: string): Method {
  const method = findMethod(wrapper.worker, name);
  if (method !== null) return method;
  const known = [...methodNames(prototypeOf(wrapper)), ...methodNames(wrapper.worker)];
  throw new UnknownMethodError(name, [...new Set(known)].sort());
}

const prototypeOf = (object: object) => Object.getPrototypeOf(object) as object;
const tagOf = (value: unknown) => Object.prototype.toString.call(value);

/** Finds a method of the object or its classes, except those of every object. */
function findMethod(object: object, name: string): Method | null {
  const owner = name === 'constructor' ? null : ownerOf(object, name);
  if (owner === null) return null;
  // owner[name] would run a getter.
  const method: unknown = Object.getOwnPropertyDescriptor(owner, name)?.value;
  return typeof method === 'function' ? (method as Method) : null;
}

/** The object or the first of its classes that has the property; null: none, or every object. */
function ownerOf(object: object, name: string): object | null {
  for (let at = object; !isRoot(at); at = prototypeOf(at)) if (Object.hasOwn(at, name)) return at;
  return null;
}

/** Whether the object or one of its classes redefines a property of another. */
function isOverride(object: object, name: string): boolean {
  const owner = ownerOf(object, name);
  return owner !== null && ownerOf(prototypeOf(owner), name) !== null;
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

/** A subclass of `base` with the extension's methods. */
function extendClass<W extends object>(
  base: WorkerClass<W>,
  extension: WorkerClass<object>,
): WorkerClass<W> {
  const taken = (name: string) =>
    new ConfigError(
      `workerExtensionCls ${extension.name} has a method ${name}, but ${base.name} already has that name; ` +
        'rename it',
    );
  const methods = methodNames(extension.prototype as object);
  const extended = class extends (base as WorkerClass<object>) {
    constructor(args: WorkerArgs) {
      super(args);
      // A property set by the worker's constructor would shadow the extension's method.
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
