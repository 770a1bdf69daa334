/** Client of a key-value store shared by the ranks of a group (torch.distributed.TCPStore). */
import { connect, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  ShutdownError,
  StoreConnectionError,
  StoreRequestError,
  StoreTimeoutError,
} from '../errors';
import { checkTimeout, startTimer } from '../timer';
import { addressOf } from './address';
import { MAX_MEMORY_BYTES } from './keyTable';
import {
  checkPort,
  INIT_KEY,
  KEY_PREFIX,
  Message,
  Query,
  READY,
  SocketReader,
  STOP_WAITING,
  VALIDATION,
} from './tcpStoreProtocol';

/** Milliseconds before a refused connection is retried: the first time, and at most. */
const FIRST_BACKOFF = 10;
const MAX_BACKOFF = 1000;

/** Milliseconds between two polls of the number of clients. */
const POLL_INTERVAL = 10;

export interface ConnectOptions {
  host: string;
  port: number;
  /** Milliseconds to connect, and each operation's default timeout. */
  timeout?: number;
}

/** An operation, from the call until its reply has arrived, also after it expired. */
interface Call {
  expired: boolean;
  /** Called on expiry, after the caller's promise has been rejected. */
  onExpiry: (() => void) | null;
}

/**
 * A client of `TCPStoreServer` or of PyTorch's TCPStore from 2.6 on.
 *
 * Operations run one at a time in the order of the calls: while one waits for a key, later ones are
 * queued, and their timeouts run. Keys take at most 8 KiB as UTF-8, including PyTorch's `/` prefix,
 * values at most 8 MiB.
 *
 * Each rejects with StoreTimeoutError `timeout` milliseconds after the call (a `set` or `add` that
 * had been sent may have taken effect, a queued one has not), with StoreRequestError for a request
 * that exceeds a limit, with StoreConnectionError when the connection has closed, and with
 * ShutdownError after `close`.
 */
export class TCPStore {
  /** The server's host:port. */
  readonly address: string;
  /** Default timeout of an operation in milliseconds. */
  readonly timeout: number;
  readonly #socket: Socket;
  readonly #reader: SocketReader;
  readonly #ended: Promise<void>;
  /** Why the connection closed. */
  #failure: Error | null = null;
  #closing = false;
  #numCalls = 0;
  /** Resolves when the last queued call has finished; never rejects. */
  #lastCall: Promise<unknown> = Promise.resolve();

  private constructor(address: string, timeout: number, socket: Socket) {
    this.address = address;
    this.timeout = timeout;
    this.#socket = socket;
    this.#reader = new SocketReader(socket);
    let cause: Error | undefined;
    socket.on('error', (error) => (cause = error));
    this.#ended = new Promise((resolve) => {
      socket.on('close', () => {
        this.#failure = this.#closing
          ? new ShutdownError(`the store at ${address} was closed by this process`)
          : new StoreConnectionError(
              address,
              cause?.message ?? 'the server closed the connection',
              {
                cause,
              },
            );
        this.#reader.fail(this.#failure);
        resolve();
      });
    });
  }

  /**
   * Retries until the server answers; the server may start later. Rejects with StoreConnectionError
   * after `timeout` milliseconds, with the last attempt's error as `cause`.
   */
  static async connect({ host, port, timeout = 300_000 }: ConnectOptions): Promise<TCPStore> {
    const address = addressOf(host, port);
    checkTimeout(timeout);
    checkPort(port, 1);
    const deadline = performance.now() + timeout;
    let cause: Error | undefined;
    for (let backoff = FIRST_BACKOFF; ; backoff = Math.min(2 * backoff, MAX_BACKOFF)) {
      const socket = connect({ host, port, noDelay: true, keepAlive: true });
      const store = new TCPStore(address, timeout, socket);
      try {
        await store.#handshake(deadline - performance.now());
        return store;
      } catch (error) {
        socket.destroy();
        await store.#ended;
        const remaining = deadline - performance.now();
        // The error of an attempt that the deadline cut short says less than the previous one.
        if (remaining > 0 || !cause) cause = ((error as Error).cause ?? error) as Error;
        if (remaining <= 0) {
          throw new StoreConnectionError(
            address,
            `no answer within ${timeout} ms (${cause.message}); check that the process that serves it ` +
              'is running, and the host and port',
            { cause },
          );
        }
        await sleep(Math.min(backoff, remaining));
      }
    }
  }

  async set(key: string, value: string | Uint8Array): Promise<void> {
    const request = new Message(Query.SET).key(prefixed(key)).value(value).bytes();
    return this.#call('set', [key], this.timeout, () => this.#send(request));
  }

  /** Waits until the key is set. */
  async get(key: string, timeout = this.timeout): Promise<Buffer> {
    const wait = waitRequest([key]);
    const request = new Message(Query.GET).key(prefixed(key)).bytes();
    return this.#call('get', [key], timeout, async (call) => {
      await this.#waitFor(wait, call);
      await this.#send(request);
      return this.#readString();
    });
  }

  /**
   * Adds an integer to the key's value, initially 0; returns the sum. Also rejects with
   * StoreRequestError when the sum is not a safe integer.
   */
  async add(key: string, amount: number): Promise<number> {
    if (!Number.isSafeInteger(amount)) {
      throw new StoreRequestError(
        `add to ${key}: the amount is ${String(amount)}; it must be a safe integer`,
      );
    }
    const request = new Message(Query.ADD).key(prefixed(key)).i64(amount).bytes();
    return this.#call('add', [key], this.timeout, async () => {
      await this.#send(request);
      const sum = await this.#reader.i64();
      if (Number.isSafeInteger(Number(sum))) return Number(sum);
      throw new StoreRequestError(
        `add to ${key}: the sum is now ${sum}, which is not a safe integer`,
      );
    });
  }

  /**
   * Sets the key if its value is `expected`, or if it is not set and `expected` is empty. Returns the
   * value after the call; `expected` if the key is still not set.
   */
  async compareSet(
    key: string,
    expected: string | Uint8Array,
    desired: string | Uint8Array,
  ): Promise<Buffer> {
    const request = new Message(Query.COMPARE_SET)
      .key(prefixed(key))
      .value(expected)
      .value(desired)
      .bytes();
    return this.#call('compareSet', [key], this.timeout, async () => {
      await this.#send(request);
      return this.#readString();
    });
  }

  /** Whether all keys are set. */
  async check(keys: readonly string[]): Promise<boolean> {
    const request = new Message(Query.CHECK).keys(keys.map(prefixed)).bytes();
    return this.#call('check', keys, this.timeout, async () => {
      await this.#send(request);
      return (await this.#reader.u8()) === READY;
    });
  }

  /** Resolves when all keys are set. */
  async wait(keys: readonly string[], timeout = this.timeout): Promise<void> {
    const request = waitRequest(keys);
    return this.#call('wait', keys, timeout, (call) => this.#waitFor(request, call));
  }

  /** Appends bytes to the key's value, initially empty. */
  async append(key: string, value: string | Uint8Array): Promise<void> {
    const request = new Message(Query.APPEND).key(prefixed(key)).value(value).bytes();
    return this.#call('append', [key], this.timeout, () => this.#send(request));
  }

  /** Gets the values of several keys; waits until all are set. */
  async multiGet(keys: readonly string[], timeout = this.timeout): Promise<Buffer[]> {
    const wait = waitRequest(keys);
    const request = new Message(Query.MULTI_GET).keys(keys.map(prefixed)).bytes();
    return this.#call('multiGet', keys, timeout, async (call) => {
      await this.#waitFor(wait, call);
      await this.#send(request);
      const values: Buffer[] = [];
      while (values.length < keys.length) values.push(await this.#readString());
      return values;
    });
  }

  async multiSet(
    entries: readonly (readonly [key: string, value: string | Uint8Array])[],
  ): Promise<void> {
    const message = new Message(Query.MULTI_SET).count(entries.length);
    for (const [key, value] of entries) message.key(prefixed(key)).value(value);
    const request = message.bytes();
    const keys = entries.map(([key]) => key);
    return this.#call('multiSet', keys, this.timeout, () => this.#send(request));
  }

  /** The number of keys on the server, including PyTorch's internal ones. */
  async numKeys(): Promise<number> {
    const request = new Message(Query.GETNUMKEYS).bytes();
    return this.#call('numKeys', [], this.timeout, async () => {
      await this.#send(request);
      return Number(await this.#reader.i64());
    });
  }

  /** Returns whether the key was set. */
  async deleteKey(key: string): Promise<boolean> {
    const request = new Message(Query.DELETE_KEY).key(prefixed(key)).bytes();
    return this.#call('deleteKey', [key], this.timeout, async () => {
      await this.#send(request);
      return (await this.#reader.i64()) === 1n;
    });
  }

  /**
   * Increments the count of workers and waits until it reaches `worldSize`. PyTorch's clients that
   * are given a world size increment it on construction, and its serving rank waits for them.
   */
  async waitForWorkers(worldSize: number, timeout = this.timeout): Promise<void> {
    return this.#call('waitForWorkers', [INIT_KEY], timeout, async (call) => {
      for (let amount = 1; !call.expired; amount = 0) {
        await this.#send(new Message(Query.ADD).key(INIT_KEY).i64(amount).bytes());
        if ((await this.#reader.i64()) >= worldSize) return;
        await sleep(POLL_INTERVAL, undefined, { ref: false });
      }
    });
  }

  /** Closes the connection; pending operations reject with ShutdownError. Idempotent. */
  async close(): Promise<void> {
    this.#closing = true;
    // A completed `set` may still be in the socket's buffer: end after flushing it.
    if (this.#numCalls === 0) this.#socket.end(() => this.#socket.destroy());
    else this.#socket.destroy();
    await this.#ended;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #handshake(timeout: number): Promise<void> {
    const stopTimer = startTimer(Math.max(timeout, 0), () => {
      this.#socket.destroy(new Error('the handshake timed out'));
    });
    try {
      await this.#send(new Message(Query.VALIDATE).u32(VALIDATION).bytes());
      await this.#send(new Message(Query.PING).u32(process.pid).bytes());
      const echo = await this.#reader.u32();
      if (echo !== process.pid) throw new Error('the server is not a TCPStore');
    } finally {
      stopTimer();
    }
  }

  /** Queues an operation. */
  #call<T>(
    name: string,
    keys: readonly string[],
    timeout: number,
    operation: (call: Call) => Promise<T>,
  ): Promise<T> {
    checkTimeout(timeout);
    const call: Call = { expired: false, onExpiry: null };
    this.#numCalls++;
    return new Promise<T>((resolve, reject) => {
      const expire = () => {
        call.expired = true;
        reject(new StoreTimeoutError(this.address, name, keys, timeout));
        call.onExpiry?.();
      };
      const stopTimer = startTimer(timeout, expire);
      const over = () => {
        stopTimer();
        this.#numCalls--;
      };
      this.#lastCall = this.#lastCall.then(() =>
        call.expired ? over() : operation(call).finally(over).then(resolve, reject),
      );
    });
  }

  /** On expiry cancels the wait on the server and reads the reply before the next call. */
  async #waitFor(request: Buffer, call: Call): Promise<void> {
    call.onExpiry = () => {
      // If the connection has closed, the read below rejects.
      this.#send(new Message(Query.CANCEL_WAIT).bytes()).catch(() => {});
    };
    await this.#send(request);
    const answer = await this.#reader.u8();
    call.onExpiry = null;
    if (!call.expired) return;
    // The keys may have been set before the server read CANCEL_WAIT: read its reply too.
    if (answer === STOP_WAITING) await this.#reader.u8();
    throw new Error('the call has expired');
  }

  /** Resolves when all bytes have been handed to the kernel. */
  #send(bytes: Buffer): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.#failure !== null) throw this.#failure;
      this.#socket.write(bytes, (error) => {
        if (!error) {
          resolve();
          return;
        }
        void this.#ended.then(() => reject(this.#failure ?? error));
      });
    });
  }

  async #readString(): Promise<Buffer> {
    try {
      return await this.#reader.bytes(await this.#reader.length(MAX_MEMORY_BYTES));
    } catch (error) {
      // After an invalid length the stream cannot be parsed further.
      this.#socket.destroy(error as Error);
      await this.#ended;
      throw this.#failure ?? error;
    }
  }
}

function prefixed(key: string): string {
  return KEY_PREFIX + key;
}

function waitRequest(keys: readonly string[]): Buffer {
  return new Message(Query.WAIT).keys(keys.map(prefixed)).bytes();
}
