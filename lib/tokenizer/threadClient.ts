/** Client of a Tokenizer's thread, for the JavaScript thread. */
import path from 'node:path';
import { type ResourceLimits, Worker } from 'node:worker_threads';
import { CheckpointError, ShutdownError, TokenizerFailedError, type UniprocError } from '../errors';
import { nativeError } from '../nativeError';
import type { Failure, Methods, ThreadResponse } from './threadMessages';

interface Pending {
  resolve: (value: unknown) => void;
  reject: (error: Error) => void;
}

/** Makes Node load uncompiled TypeScript sources, as in tests. */
const SOURCE_LOADER = path.join(__dirname, '..', '..', 'test', 'executor', 'requireTypescript.js');

/** The number of a request without a pending call. */
const NO_CALLER = -1;

/**
 * The first request starts the thread. If the thread dies, its pending requests reject, and the next
 * request starts another.
 */
export class ThreadClient<Requests extends Methods<Requests>> {
  private worker: Worker | null = null;
  private initialRequest: { method: keyof Requests; input: unknown } | null = null;
  private readonly pending = new Map<number, Pending>();
  private numRequests = 0;
  private closesWhenIdle = false;
  /** The error of requests after `close`. */
  private closedError: Error | null = null;

  constructor(
    /** The thread's file beside this one, without its extension. */
    private readonly entry: string,
    /** For debuggers and errors. */
    private readonly name: string,
    private readonly resourceLimits?: ResourceLimits,
  ) {}

  get isRunning(): boolean {
    return this.worker !== null;
  }

  /** Sets the first request of each new thread. If it fails, later requests report its error. */
  setInitialRequest<Method extends keyof Requests>(
    method: Method,
    input: Requests[Method]['input'],
  ): void {
    this.initialRequest = { method, input };
  }

  /**
   * Rejects with the error that the thread throws, with TokenizerFailedError if it dies, with
   * ShutdownError after `close`, and with DataCloneError for an input that cannot be cloned.
   */
  async request<Method extends keyof Requests>(
    method: Method,
    input: Requests[Method]['input'],
    transfer: readonly ArrayBuffer[] = [],
  ): Promise<Requests[Method]['output']> {
    if (this.closedError !== null) throw this.closedError;
    const worker = this.worker ?? this.start();
    const number = this.numRequests++;
    return new Promise((resolve, reject) => {
      worker.postMessage({ number, method, input }, transfer);
      if (this.pending.size === 0) worker.ref();
      this.pending.set(number, { resolve, reject });
    });
  }

  private start(): Worker {
    const extension = path.extname(__filename);
    const worker = new Worker(path.join(__dirname, `${this.entry}${extension}`), {
      name: this.name,
      ...(this.resourceLimits && { resourceLimits: this.resourceLimits }),
      ...(extension === '.ts' ? { execArgv: ['--require', SOURCE_LOADER] } : {}),
    });
    // Only pending requests keep the process alive.
    worker.unref();
    worker.on('message', (response: ThreadResponse) => this.settle(worker, response));
    worker.on('error', (cause: unknown) => {
      const reason = cause instanceof Error ? cause.message : String(cause);
      this.detach(
        worker,
        new TokenizerFailedError(`${this.name}: the thread failed: ${reason}`, { cause }),
      );
    });
    worker.on('exit', () => {
      this.detach(worker, new TokenizerFailedError(`${this.name}: the thread exited`));
    });
    this.worker = worker;
    if (this.initialRequest !== null) {
      worker.postMessage({ number: NO_CALLER, ...this.initialRequest });
    }
    return worker;
  }

  /** Terminates the thread and rejects its pending requests with `error`. */
  kill(error: Error): void {
    const { worker } = this;
    if (worker === null) return;
    this.detach(worker, error);
    void worker.terminate();
  }

  /** Resolves after the thread has exited. */
  async close(): Promise<void> {
    this.closedError ??= new ShutdownError('the tokenizer was closed');
    const { worker } = this;
    if (worker === null) return;
    this.detach(worker, this.closedError);
    await worker.terminate();
  }

  /** Closes after the pending requests, which may outlive the tokenizer, have settled. */
  closeWhenIdle(): void {
    this.closesWhenIdle = true;
    if (this.pending.size === 0) void this.close();
  }

  private settle(worker: Worker, response: ThreadResponse): void {
    const pending = this.pending.get(response.number);
    if (worker !== this.worker || pending === undefined) return;
    this.pending.delete(response.number);
    if (this.pending.size === 0) {
      worker.unref();
      if (this.closesWhenIdle) void this.close();
    }
    if ('value' in response) pending.resolve(response.value);
    else pending.reject(errorOf(response.failure));
  }

  /** Detaches a thread that has exited or is about to, and rejects its pending requests. */
  private detach(worker: Worker, error: Error): void {
    if (worker !== this.worker) return;
    this.worker = null;
    worker.unref();
    const pending = [...this.pending.values()];
    this.pending.clear();
    for (const { reject } of pending) reject(error);
  }
}

/** Recreates the error of a thread's failure. */
export function errorOf({ message, code, file, cause }: Failure): UniprocError {
  const error =
    file !== undefined
      ? new CheckpointError(file, message.slice(`${file}: `.length))
      : code === null
        ? new TokenizerFailedError(message)
        : nativeError(code, message);
  if (cause !== undefined) error.cause = cause;
  return error;
}
