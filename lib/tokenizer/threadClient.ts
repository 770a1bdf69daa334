/** The JavaScript thread's end of a Tokenizer's thread. */
import path from 'node:path';
import { type ResourceLimits, Worker } from 'node:worker_threads';
import {
  CheckpointError,
  nativeError,
  ShutdownError,
  TokenizerFailedError,
  type UniprocError,
} from '../errors';
import type { Answer, Failure, Methods } from './threadMessages';

interface Pending {
  resolve: (value: unknown) => void;
  reject: (error: Error) => void;
}

/** Of sources that are not compiled, as in tests: what makes Node read TypeScript. */
const SOURCE_LOADER = path.join(__dirname, '..', '..', 'test', 'executor', 'requireTypescript.js');

/** The number of a question that nobody waits for. */
const UNASKED = -1;

/**
 * Starts a thread for the first request. One that dies takes the requests along that it had; the next
 * request starts another.
 */
export class ThreadClient<Requests extends Methods<Requests>> {
  private worker: Worker | null = null;
  private opening: { method: keyof Requests; input: unknown } | null = null;
  private readonly pending = new Map<number, Pending>();
  private numRequests = 0;
  private closesWhenIdle = false;
  /** Why there are no more answers. */
  private ended: Error | null = null;

  constructor(
    /** The thread's file beside this one, without its extension. */
    private readonly entry: string,
    /** For debuggers and errors. */
    private readonly name: string,
    private readonly resourceLimits?: ResourceLimits,
  ) {}

  /** Whether there is a thread. */
  get isRunning(): boolean {
    return this.worker !== null;
  }

  /** What each thread from the next on is told before anything else. Where that fails, the requests say so. */
  openWith<Method extends keyof Requests>(method: Method, input: Requests[Method]['input']): void {
    this.opening = { method, input };
  }

  /**
   * Rejects with what the thread throws, with TokenizerFailedError when it dies, and with ShutdownError
   * after `close`. What cannot be cloned is thrown.
   */
  async request<Method extends keyof Requests>(
    method: Method,
    input: Requests[Method]['input'],
    transfer: readonly ArrayBuffer[] = [],
  ): Promise<Requests[Method]['output']> {
    if (this.ended !== null) throw this.ended;
    const worker = this.worker ?? this.start();
    const number = this.numRequests++;
    return new Promise((resolve, reject) => {
      worker.postMessage({ number, method, input }, transfer);
      if (this.pending.size === 0) worker.ref();
      this.pending.set(number, { resolve: resolve, reject });
    });
  }

  private start(): Worker {
    const extension = path.extname(__filename);
    const worker = new Worker(path.join(__dirname, `${this.entry}${extension}`), {
      name: this.name,
      ...(this.resourceLimits && { resourceLimits: this.resourceLimits }),
      ...(extension === '.ts' ? { execArgv: ['--require', SOURCE_LOADER] } : {}),
    });
    // Only a call that waits keeps the process.
    worker.unref();
    worker.on('message', (answer: Answer) => this.take(worker, answer));
    worker.on('error', (cause: unknown) => {
      const why = cause instanceof Error ? cause.message : String(cause);
      this.lose(
        worker,
        new TokenizerFailedError(`${this.name}: the thread failed: ${why}`, { cause }),
      );
    });
    worker.on('exit', () => {
      this.lose(worker, new TokenizerFailedError(`${this.name}: the thread has ended`));
    });
    this.worker = worker;
    if (this.opening !== null) worker.postMessage({ number: UNASKED, ...this.opening });
    return worker;
  }

  /** Ends the thread, whatever it does: what waits for it rejects with `error`. */
  kill(error: Error): void {
    const { worker } = this;
    if (worker === null) return;
    this.lose(worker, error);
    void worker.terminate();
  }

  /** Resolves once the thread is gone. */
  async close(): Promise<void> {
    this.ended ??= new ShutdownError('the tokenizer was closed');
    const { worker } = this;
    if (worker === null) return;
    this.lose(worker, this.ended);
    await worker.terminate();
  }

  /** `close`, once the calls that wait have their answers: they may outlive the tokenizer. */
  closeWhenIdle(): void {
    this.closesWhenIdle = true;
    if (this.pending.size === 0) void this.close();
  }

  private take(worker: Worker, answer: Answer): void {
    const pending = this.pending.get(answer.number);
    if (worker !== this.worker || pending === undefined) return;
    this.pending.delete(answer.number);
    if (this.pending.size === 0) {
      worker.unref();
      if (this.closesWhenIdle) void this.close();
    }
    if ('value' in answer) pending.resolve(answer.value);
    else pending.reject(errorOf(answer.failure));
  }

  /** `worker` is gone, or is about to be. */
  private lose(worker: Worker, error: Error): void {
    if (worker !== this.worker) return;
    this.worker = null;
    worker.unref();
    const pending = [...this.pending.values()];
    this.pending.clear();
    for (const { reject } of pending) reject(error);
  }
}

/** The error that a thread's failure tells of. */
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
