/** The JavaScript thread's end of a Tokenizer's thread. */
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import { CheckpointError, nativeError, ShutdownError, UniprocError } from '../errors';
import type { Answer, Failure, Requests } from './threadMessages';

interface Pending {
  resolve: (value: unknown) => void;
  reject: (error: Error) => void;
}

/** Of sources that are not compiled, as in tests: what makes Node read TypeScript. */
const SOURCE_LOADER = path.join(__dirname, '..', '..', 'test', 'executor', 'requireTypescript.js');

export class ThreadClient {
  private readonly worker: Worker;
  private readonly pending = new Map<number, Pending>();
  private numRequests = 0;
  private closesWhenIdle = false;
  /** Why there are no more answers. */
  private ended: Error | null = null;

  constructor() {
    const extension = path.extname(__filename);
    this.worker = new Worker(path.join(__dirname, `tokenizerThread${extension}`), {
      name: 'uniproc tokenizer',
      ...(extension === '.ts' ? { execArgv: ['--require', SOURCE_LOADER] } : {}),
    });
    // Only a call that waits keeps the process.
    this.worker.unref();
    this.worker.on('message', (answer: Answer) => this.take(answer));
    this.worker.on('error', (cause) => {
      this.end(
        new UniprocError('TOKENIZER_FAILED', `the tokenizer's thread failed: ${cause}`, { cause }),
      );
    });
    this.worker.on('exit', () => {
      this.end(new UniprocError('TOKENIZER_FAILED', "the tokenizer's thread has ended"));
    });
  }

  /** Rejects with what the thread throws, and with ShutdownError after `close`. */
  request<Method extends keyof Requests>(
    method: Method,
    input: Requests[Method]['input'],
    transfer: readonly ArrayBuffer[] = [],
  ): Promise<Requests[Method]['output']> {
    if (this.ended !== null) return Promise.reject(this.ended);
    const number = this.numRequests++;
    return new Promise((resolve, reject) => {
      this.worker.postMessage({ number, method, input }, transfer);
      if (this.pending.size === 0) this.worker.ref();
      this.pending.set(number, { resolve: resolve as Pending['resolve'], reject });
    });
  }

  /** Resolves once the thread is gone. */
  async close(): Promise<void> {
    this.end(new ShutdownError('the tokenizer was closed'));
    await this.worker.terminate();
  }

  /** `close`, once the calls that wait have their answers: they may outlive the tokenizer. */
  closeWhenIdle(): void {
    this.closesWhenIdle = true;
    if (this.pending.size === 0) void this.close();
  }

  private take(answer: Answer): void {
    // `close` waits for the thread, and must keep the process until it is gone.
    if (this.ended !== null) return;
    const pending = this.pending.get(answer.number);
    this.pending.delete(answer.number);
    if (this.pending.size === 0) {
      this.worker.unref();
      if (this.closesWhenIdle) void this.close();
    }
    if ('value' in answer) pending?.resolve(answer.value);
    else pending?.reject(errorOf(answer.failure));
  }

  private end(error: Error): void {
    this.ended ??= error;
    for (const { reject } of this.pending.values()) reject(error);
    this.pending.clear();
    this.worker.unref();
  }
}

function errorOf({ message, code, file }: Failure): Error {
  if (file !== undefined) return new CheckpointError(file, message.slice(`${file}: `.length));
  return code === null ? new UniprocError('TOKENIZER_FAILED', message) : nativeError(code, message);
}
