/** One worker in this process (vLLM V1's UniProcExecutor). */
import { type ExecutorFailedError, RpcTimeoutError, ShutdownError } from '../errors';
import type { NativeOutputThread } from '../native';
import { startTimer } from '../timer';
import type { AsyncModelRunnerOutput } from '../contract/modelRunnerOutput';
import type { Worker } from '../worker/worker';
import type { WorkerBase } from '../worker/workerBase';
import {
  type ReconfigureDistributedRequest,
  ReconfigureRankType,
} from '../config/reconfigureRequest';
import {
  Lock,
  mayAwaitSuper,
  runMethod,
  WorkerWrapper,
  type RpcMethod,
} from '../worker/workerWrapper';
import { type CreateOptions, type RpcOptions, timeoutOf } from './callOptions';
import { Executor } from './executor';
import { Future } from './future';
import { LaunchOrder } from './launchOrder';
import type { PeerWorker } from './peerGroup';
import { registerExecutorClass } from './namedClasses';
import { freePort, hostIp } from './network';
import { InOrderOutputs, isAsyncOutput, startOutputThread } from './workerAsyncOutput';

/** Error codes after which a worker cannot continue. */
const FATAL_CODES = new Set<unknown>(['DEVICE_FAILED', 'PEER_LOST', 'COMMUNICATOR_FAILED']);

/** A worker's rank and how it reaches the others. */
export interface DistributedArgs {
  /** `tcp://<ip>:<port>` or `env://`. */
  distributedInitMethod: string;
  rank: number;
  localRank: number;
}

/**
 * Runs steps on one worker in this process. Worker methods are called synchronously, so they start
 * in call order and must not block; their results (a value, a promise or an AsyncModelRunnerOutput)
 * are awaited here.
 */
export class UniProcExecutor<W extends WorkerBase = Worker> extends Executor {
  /** The worker's wrapper; training programs use `driverWorker.worker.modelRunner`. */
  readonly driverWorker = new WorkerWrapper<W>({ rpcRank: 0 });

  /** Pending calls. */
  readonly #pending = new Set<Future<unknown>>();
  readonly #launchOrder = new LaunchOrder((method) => mayAwaitSuper(this.driverWorker, method));
  /** By method, the last call with a promise that may still resolve to an async output. */
  readonly #promised = new Map<RpcMethod, Promise<void>>();
  #outputs: NativeOutputThread = new InOrderOutputs();
  #maxConcurrentBatches: number | undefined;
  #shutdown: Promise<void> | null = null;

  static override supportsAsyncScheduling(): boolean {
    return true;
  }

  /** 2 with async scheduling: the next step is launched before this one's tokens are known. */
  override get maxConcurrentBatches(): number {
    return (this.#maxConcurrentBatches ??= this.config.scheduler.asyncScheduling ? 2 : 1);
  }

  protected async initExecutor({ onProgress }: CreateOptions): Promise<void> {
    const kwargs = {
      config: this.config,
      ...(await this.distributedArgs()),
      isDriverWorker: true,
      sharedWorkerLock: new Lock(),
    };
    if (this.maxConcurrentBatches > 1) this.#outputs = startOutputThread();
    await this.collectiveRpc('initWorker', { args: [[kwargs]] });
    this.peers.setWorker(this.driverWorker.worker as PeerWorker);
    await this.collectiveRpc('initDevice');
    await this.peers.joined();
    await this.collectiveRpc('loadModel', { args: onProgress ? [onProgress] : [] });
  }

  /** Rank 0 of a world of size 1, on the device's index if named. */
  protected async distributedArgs(): Promise<DistributedArgs> {
    const distributedInitMethod = `tcp://${hostIp()}:${await freePort()}`;
    return { distributedInitMethod, rank: 0, localRank: this.config.device.index ?? 0 };
  }

  override collectiveRpc<T = unknown>(
    method: RpcMethod<W, T>,
    options: RpcOptions & { nonBlock: true },
  ): Future<T>[];
  override collectiveRpc<T = unknown>(
    method: RpcMethod<W, T>,
    options?: RpcOptions & { nonBlock?: false },
  ): Promise<T[]>;
  override collectiveRpc<T>(
    method: RpcMethod<W, T>,
    options: RpcOptions & { nonBlock?: boolean } = {},
  ): Future<T>[] | Promise<T[]> {
    const future = this.#call(method as RpcMethod, options) as Future<T>;
    return options.nonBlock ? [future] : future.result().then((result) => [result]);
  }

  #call(method: RpcMethod, options: RpcOptions): Future<unknown> {
    const { args = [], kwargs } = options;
    const future = new Future<unknown>();
    this.#pending.add(future);
    try {
      this.#requireRunning();
      const limit = timeoutOf(options) ?? this.peers.timeoutOf(method);
      if (limit !== undefined) {
        future.addDoneCallback(startTimer(limit, () => this.#expire(future, method, limit)));
      }
      if (this.#launchOrder.mustWait(method)) this.#startLater(future, method, args, kwargs);
      else this.#start(future, method, args, kwargs);
    } catch (error) {
      this.#reject(future, error);
    }
    this.peers.onCall(method, args, future);
    return future;
  }

  /** In a method of its own, so that a call that starts at once allocates nothing for it. */
  #startLater(
    future: Future<unknown>,
    method: RpcMethod,
    args: readonly unknown[],
    kwargs: object | undefined,
  ): void {
    this.#launchOrder.wait(method, () => this.#start(future, method, args, kwargs));
  }

  #start(
    future: Future<unknown>,
    method: RpcMethod,
    args: readonly unknown[],
    kwargs: object | undefined,
  ): void {
    try {
      // Also refuses calls that waited for a launch meanwhile.
      this.#requireRunning();
      this.#follow(future, method, runMethod(this.driverWorker, method, args, kwargs));
    } catch (error) {
      this.#reject(future, error);
    }
  }

  #requireRunning(): void {
    if (this.failure !== null) throw this.failure;
    if (this.#shutdown !== null) throw new ShutdownError('the executor is shut down');
  }

  /** Completes the future with the worker's result, now or later. */
  #follow(future: Future<unknown>, method: RpcMethod, answer: unknown): void {
    // Both phases of a step share one output order.
    const order = method === 'sampleTokens' ? 'executeModel' : method;
    if (isPromise(answer)) {
      this.#launchOrder.started(method, this.#followPromise(future, order, answer));
    } else if (!isAsyncOutput(answer)) this.#resolve(future, answer);
    else if (this.#promised.has(order)) {
      void this.#followPromise(future, order, Promise.resolve(answer));
    } else this.#awaitOutput(future, answer);
  }

  /** Waits for a promised output only after those of earlier calls. */
  #followPromise(
    future: Future<unknown>,
    order: RpcMethod,
    promise: PromiseLike<unknown>,
  ): Promise<void> {
    const before = this.#promised.get(order);
    const followed = Promise.resolve(promise)
      .then(async (answer) => {
        if (isAsyncOutput(answer)) {
          await before;
          this.#awaitOutput(future, answer);
        } else {
          this.#resolve(future, answer);
        }
      })
      .catch((error: unknown) => this.#reject(future, error));
    // A timed out or cancelled call does not delay later ones.
    const settled = Promise.race([followed, future.exception().catch(() => {})])
      .then(() => before)
      .then(() => {
        if (this.#promised.get(order) === settled) this.#promised.delete(order);
      });
    this.#promised.set(order, settled);
    return followed;
  }

  /** Throws if `output.ready` is not a valid event. */
  #awaitOutput(future: Future<unknown>, output: AsyncModelRunnerOutput): void {
    this.#outputs.submit(output.ready, (error) => {
      try {
        if (error !== null) throw error;
        // Also if cancelled: reading the output releases its staging buffers.
        this.#resolve(future, output.getOutput());
      } catch (failed) {
        this.#reject(future, failed);
      }
    });
  }

  #resolve(future: Future<unknown>, value: unknown): void {
    this.#pending.delete(future);
    if (!future.done()) future.setResult(value);
  }

  /** Rejects a call; the error may also fail the executor. */
  #reject(future: Future<unknown>, error: unknown): void {
    if (this.peers.defersRejection(future, error, () => this.#end(future, error))) return;
    this.#end(future, error);
  }

  #end(future: Future<unknown>, error: unknown): void {
    this.#pending.delete(future);
    if (!future.done()) future.setException(error);
    if (FATAL_CODES.has((error as { code?: unknown } | null | undefined)?.code)) this.fail(error);
  }

  #expire(future: Future<unknown>, method: RpcMethod, timeoutMs: number): void {
    const name = typeof method === 'string' ? method : method.name || 'a function';
    const error = new RpcTimeoutError(name, timeoutMs);
    this.#reject(future, error);
    if (this.#isFatalWhenLate(method)) this.fail(error);
  }

  /** The device state is unknown within a step, or other ranks are waiting. */
  #isFatalWhenLate(method: RpcMethod): boolean {
    const isStep = method === 'executeModel' || method === 'sampleTokens';
    return isStep || this.peers.timeoutOf(method) !== undefined;
  }

  protected override onFailure(failure: ExecutorFailedError): void {
    this.peers.abort(failure.cause ?? failure);
    this.#rejectPending(failure);
  }

  #rejectPending(error: Error): void {
    for (const future of [...this.#pending]) this.#reject(future, error);
  }

  /** Forwards to the worker, which joins the new group or, if its rank leaves, is shut down. */
  override async reinitializeDistributed(request: ReconfigureDistributedRequest): Promise<void> {
    const leaves = request.newDataParallelRank === ReconfigureRankType.SHUTDOWN_CURRENT_RANK;
    try {
      await super.reinitializeDistributed(request);
    } catch (error) {
      const { code } = error as { code?: unknown };
      if (!leaves || (code !== 'NOT_SUPPORTED' && code !== 'UNKNOWN_METHOD')) throw error;
    }
    if (leaves) await this.shutdown();
    else await this.peers.joined(request.newDataParallelSize);
  }

  /** With a cause, launched steps fail on every rank; else all ranks complete them. */
  override shutdown(cause?: unknown): Promise<void> {
    if (cause !== undefined) this.peers.abort(cause);
    return (this.#shutdown ??= this.#shutDown());
  }

  async #shutDown(): Promise<void> {
    await this.#outputs.shutdown();
    try {
      await this.driverWorker.shutdown();
    } catch (error) {
      // Closing a failed device may fail too; its failure has already been reported.
      if (this.failure === null) throw error;
    } finally {
      this.#rejectPending(
        new ShutdownError('the executor was shut down before the call completed'),
      );
    }
  }
}

registerExecutorClass('uni', UniProcExecutor);

function isPromise(answer: unknown): answer is PromiseLike<unknown> {
  return typeof (answer as { then?: unknown } | null | undefined)?.then === 'function';
}
