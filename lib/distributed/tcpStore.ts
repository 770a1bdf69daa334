/** How the ranks of a group tell each other things (torch.distributed.TCPStore). */
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

/** Milliseconds before a refused connection is tried again: the first time, and at most. */
const FIRST_BACKOFF = 10;
const LAST_BACKOFF = 1000;

/** Milliseconds between two looks at how many clients there are. */
const POLL_INTERVAL = 10;

export interface ConnectOptions {
  host: string;
  port: number;
  /** Milliseconds to connect within, and those of each operation that is given none. */
  timeout?: number;
}

/** A call of the client's, from when it is made until its answer has come, wanted or not. */
interface Call {
  expired: boolean;
  /** What to do when it expires, besides telling the caller. */
  onExpiry: (() => void) | null;
}

/**
 * A client of a store: of `TCPStoreServer`, or of PyTorch's from 2.6 on.
 *
 * Operations are done in the order they are called, one at a time: while one waits for a key, those
 * called after it stand behind it, and their timeouts count. Keys are of at most 8 KiB as UTF-8
 * with the `/` that PyTorch puts before them, values of at most 8 MiB.
 *
 * Each rejects with StoreTimeoutError when it is not done `timeout` milliseconds after the call (a
 * `set` or `add` that was sent by then may have happened, one that stood behind others has not),
 * with StoreRequestError for what a store does not take, with StoreConnectionError when the
 * connection has ended, and with ShutdownError after `close`.
 */
export class TCPStore {
  /** The server's host:port. */
  readonly address: string;
  /** Milliseconds that an operation without a timeout of its own may take. */
  readonly timeout: number;
  readonly #socket: Socket;
  readonly #reader: SocketReader;
  readonly #ended: Promise<void>;
  /** Why there is no connection any more. */
  #failure: Error | null = null;
  #closing = false;
  #numCalls = 0;
  /** Settles when the last call made is over; never rejects. */
  #lastTurn: Promise<unknown> = Promise.resolve();

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
          : new StoreConnectionError(address, cause?.message ?? 'the server ended the connection', {
              cause,
            });
        this.#reader.fail(this.#failure);
        resolve();
      });
    });
  }

  /**
   * Tries until the server answers, which may start later. Rejects with StoreConnectionError when
   * it has not within `timeout`; its `cause` is what went wrong.
   */
  static async connect({ host, port, timeout = 300_000 }: ConnectOptions): Promise<TCPStore> {
    const address = addressOf(host, port);
    checkTimeout(timeout);
    checkPort(port, 1);
    const deadline = performance.now() + timeout;
    let cause: Error | undefined;
    for (let backoff = FIRST_BACKOFF; ; backoff = Math.min(2 * backoff, LAST_BACKOFF)) {
      const socket = connect({ host, port, noDelay: true, keepAlive: true });
      const store = new TCPStore(address, timeout, socket);
      try {
        await store.#handshake(deadline - performance.now());
        return store;
      } catch (error) {
        socket.destroy();
        await store.#ended;
        const remaining = deadline - performance.now();
        // An attempt that the deadline cut short tells less than the one before.
        if (remaining > 0 || !cause) cause = ((error as Error).cause ?? error) as Error;
        if (remaining <= 0) {
          throw new StoreConnectionError(
            address,
            `no answer within ${timeout} ms (${cause.message}); is the process that serves it ` +
              'running, and are host and port right?',
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

  /** Waits until the key is there. */
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
   * Adds a whole number to the key's, which is 0 before; gives the sum. Rejects with
   * StoreRequestError too when that is beyond what a number counts exactly.
   */
  async add(key: string, amount: number): Promise<number> {
    if (!Number.isSafeInteger(amount)) {
      throw new StoreRequestError(`add to ${key}: ${String(amount)} is not a whole number`);
    }
    const request = new Message(Query.ADD).key(prefixed(key)).i64(amount).bytes();
    return this.#call('add', [key], this.timeout, async () => {
      await this.#send(request);
      const sum = await this.#reader.i64();
      if (Number.isSafeInteger(Number(sum))) return Number(sum);
      throw new StoreRequestError(`${key} is ${sum} now, more than a number counts exactly`);
    });
  }

  /**
   * Sets the key if its value is `expected`, or if there is none and `expected` is empty. Gives the
   * value it then has; `expected` when there is none.
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

  /** Whether all keys are there. */
  async check(keys: readonly string[]): Promise<boolean> {
    const request = new Message(Query.CHECK).keys(keys.map(prefixed)).bytes();
    return this.#call('check', keys, this.timeout, async () => {
      await this.#send(request);
      return (await this.#reader.u8()) === READY;
    });
  }

  /** Until each key has been set. */
  async wait(keys: readonly string[], timeout = this.timeout): Promise<void> {
    const request = waitRequest(keys);
    return this.#call('wait', keys, timeout, (call) => this.#waitFor(request, call));
  }

  /** Adds bytes to the end of the key's value, which is empty before. */
  async append(key: string, value: string | Uint8Array): Promise<void> {
    const request = new Message(Query.APPEND).key(prefixed(key)).value(value).bytes();
    return this.#call('append', [key], this.timeout, () => this.#send(request));
  }

  /** The values of several keys; waits until all are there. */
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

  /** How many keys the server has, those that PyTorch makes for itself among them. */
  async numKeys(): Promise<number> {
    const request = new Message(Query.GETNUMKEYS).bytes();
    return this.#call('numKeys', [], this.timeout, async () => {
      await this.#send(request);
      return Number(await this.#reader.i64());
    });
  }

  /** Whether it was there. */
  async deleteKey(key: string): Promise<boolean> {
    const request = new Message(Query.DELETE_KEY).key(prefixed(key)).bytes();
    return this.#call('deleteKey', [key], this.timeout, async () => {
      await this.#send(request);
      return (await this.#reader.i64()) === 1n;
    });
  }

  /**
   * Counts this client in, and waits until `worldSize` have been. PyTorch's clients count
   * themselves in when they are made with a world size, and its serving rank waits for them.
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

  /** Ends the connection; what is not done rejects with ShutdownError. May come more than once. */
  async close(): Promise<void> {
    this.#closing = true;
    // A set that is done may still be on its way: the end is sent after it.
    if (this.#numCalls === 0) this.#socket.end(() => this.#socket.destroy());
    else this.#socket.destroy();
    await this.#ended;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #handshake(timeout: number): Promise<void> {
    const stopTimer = startTimer(Math.max(timeout, 0), () => {
      this.#socket.destroy(new Error('connecting took too long'));
    });
    try {
      await this.#send(new Message(Query.VALIDATE).u32(VALIDATION).bytes());
      await this.#send(new Message(Query.PING).u32(process.pid).bytes());
      const echo = await this.#reader.u32();
      if (echo !== process.pid) throw new Error('what answers there is not a store');
    } finally {
      stopTimer();
    }
  }

  /** Has the operation done when its turn comes. */
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
      this.#lastTurn = this.#lastTurn.then(() =>
        call.expired ? over() : operation(call).finally(over).then(resolve, reject),
      );
    });
  }

  /** On expiry the server is told, and its answer to that read, before the next call's turn. */
  async #waitFor(request: Buffer, call: Call): Promise<void> {
    call.onExpiry = () => {
      // Of a connection that has ended the wait itself learns.
      this.#send(new Message(Query.CANCEL_WAIT).bytes()).catch(() => {});
    };
    await this.#send(request);
    const answer = await this.#reader.u8();
    call.onExpiry = null;
    if (!call.expired) return;
    // The keys may have come as the server was told: then this is the answer to that.
    if (answer === STOP_WAITING) await this.#reader.u8();
    throw new Error('the call has expired');
  }

  /** Until the system has it all. */
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
      // Of a length that cannot be one: what follows would be read wrongly.
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
