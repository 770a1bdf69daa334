/** The side of a TCPStore that has the keys. */
import { createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import { setImmediate } from 'node:timers/promises';
import { StoreListenError } from '../errors';
import { ENTRY_BYTES, KeyTable, type Wait } from './keyTable';
import {
  checkPort,
  MAX_KEY_BYTES,
  MAX_KEYS,
  MAX_VALUE_BYTES,
  Message,
  NOT_READY,
  Query,
  READY,
  SocketReader,
  STOP_WAITING,
  VALIDATION,
  WAIT_CANCELED,
} from './tcpStoreProtocol';

/** Requests of one client that are answered before others have their turn. */
const TURN = 64;

/** What a client costs before it has sent anything: a socket's objects. */
const CLIENT_BYTES = 8 * 1024;

const NOTHING = Buffer.alloc(0);

export interface ServeOptions {
  /** Name or address to listen on; without it every address of this machine, IPv6 and IPv4. */
  host?: string;
  /** 0: any that is free. */
  port: number;
  /** Milliseconds that a client may leave a handshake, a request or a reply half done. */
  stallTimeout?: number;
}

/**
 * Keys and values for the clients of a group: ours, and PyTorch's from 2.6 on (its TCPStore with
 * `is_master=False`).
 *
 * Whoever can reach the port can read and write everything, so it belongs in a network of trust;
 * but no client can bring it down. These cost a client its connection, and nobody else anything:
 * a first query that is not the handshake, a query that is not known, a key above 8 KiB, a value
 * above 8 MiB (also one grown by append), more than 131,072 keys in a request, an add to what is
 * not a number, a second wait before the first has ended, 5 minutes of silence in the middle of a
 * request, and what would take the memory in use above 256 MiB: that counts the values, what has
 * come of requests that are not complete, waits, replies that have not been read, and 8 KiB for
 * each client.
 */
export class TCPStoreServer {
  /** The address it listens on; `::` is every one. */
  readonly host: string;
  /** The port it listens on. */
  readonly port: number;
  readonly #server: Server;
  readonly #table = new KeyTable();
  readonly #clients = new Set<ServedClient>();
  #closed: Promise<void> | null = null;

  private constructor(server: Server, stallTimeout: number) {
    ({ address: this.host, port: this.port } = server.address() as AddressInfo);
    this.#server = server;
    // One that cannot be accepted, for want of file descriptors say, is nobody else's concern.
    server.on('error', () => {});
    server.on('connection', (socket) => {
      const client = new ServedClient(socket, this.#table, stallTimeout);
      this.#clients.add(client);
      void client.serve().then(() => this.#clients.delete(client));
    });
  }

  /** Rejects with StoreListenError; its `reason` is EADDRINUSE when another process has the port. */
  static listen({ host, port, stallTimeout = 300_000 }: ServeOptions): Promise<TCPStoreServer> {
    return new Promise((resolve, reject) => {
      checkPort(port, 0);
      const server = createServer({ noDelay: true, keepAlive: true });
      const refused = (cause: NodeJS.ErrnoException) =>
        reject(
          new StoreListenError(`${host ?? '*'}:${port}`, cause.code ?? cause.message, { cause }),
        );
      server.once('error', refused);
      server.listen({ host, port, backlog: 2048 }, () => {
        server.off('error', refused);
        resolve(new TCPStoreServer(server, stallTimeout));
      });
    });
  }

  /** What it holds now; `numBytes` as the limit above counts them, `numAwaited` in keys. */
  usage(): { numClients: number; numKeys: number; numAwaited: number; numBytes: number } {
    const { numKeys, numAwaited, numBytes } = this.#table;
    return { numClients: this.#clients.size, numKeys, numAwaited, numBytes };
  }

  /** Ends every connection and frees the port. May come more than once. */
  close(): Promise<void> {
    this.#closed ??= new Promise((resolve) => {
      this.#server.close(() => resolve());
      for (const client of this.#clients) client.drop();
    });
    return this.#closed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** One connection: its requests are answered in the order they come. */
export class ServedClient {
  readonly #socket: Socket;
  readonly #table: KeyTable;
  readonly #stallTimeout: number;
  readonly #reader: SocketReader;
  /** Bytes counted for the connection, for the request that is being answered, and for the wait. */
  #heldBytes = 0;
  #requestBytes = 0;
  #waitBytes = 0;
  #wait: Wait | null = null;
  /** Until the system has the answer to the wait before. */
  #woken: Promise<void> | null = null;

  constructor(socket: Socket, table: KeyTable, stallTimeout: number) {
    this.#socket = socket;
    this.#table = table;
    this.#stallTimeout = stallTimeout;
    this.#reader = new SocketReader(socket, (numBytes) => this.#hold(numBytes));
    socket.on('error', () => {});
    socket.on('timeout', () => socket.destroy());
    socket.on('close', () => this.#reader.fail(new Error('the client has gone')));
    socket.setTimeout(stallTimeout);
  }

  /** Until it leaves, or does what a client may not; never rejects. */
  async serve(): Promise<void> {
    try {
      this.#hold(CLIENT_BYTES);
      await this.#handshake();
      for (let turn = 1; ; turn++) {
        this.#socket.setTimeout(0);
        const query = await this.#reader.u8();
        this.#socket.setTimeout(this.#stallTimeout);
        await this.#woken;
        await this.#answer(query);
        if (turn % TURN === 0) await setImmediate();
        this.#table.give(this.#requestBytes);
        this.#requestBytes = 0;
      }
    } catch {
      // There is nothing to tell a client that broke the protocol, and nobody else to tell.
    } finally {
      this.drop();
      this.#endWait();
      this.#table.give(this.#requestBytes + this.#heldBytes);
    }
  }

  drop(): void {
    this.#socket.destroy();
  }

  async #handshake(): Promise<void> {
    const query = await this.#reader.u8();
    if (query !== Query.VALIDATE || (await this.#reader.u32()) !== VALIDATION) {
      throw new Error('not a client of a store');
    }
  }

  async #answer(query: number): Promise<void> {
    const table = this.#table;
    switch (query) {
      case Query.PING:
        return this.#reply(new Message().u32(await this.#reader.u32()));
      case Query.SET:
        table.set(await this.#key(), await this.#value());
        return;
      case Query.COMPARE_SET: {
        const [key, expected, desired] = [
          await this.#key(),
          await this.#value(),
          await this.#value(),
        ];
        const current = table.get(key);
        if (current === undefined ? expected.length > 0 : !current.equals(expected)) {
          return this.#reply(new Message().string(current ?? expected));
        }
        table.set(key, desired);
        return this.#reply(new Message().string(desired));
      }
      case Query.GET:
        return this.#reply(new Message().string(table.get(await this.#key()) ?? NOTHING));
      case Query.ADD: {
        const [key, amount] = [await this.#key(), await this.#reader.i64()];
        const sum = BigInt.asIntN(64, toInteger(table.get(key)) + amount);
        table.set(key, Buffer.from(sum.toString()));
        return this.#reply(new Message().i64(sum));
      }
      case Query.CHECK: {
        const keys = await this.#keys();
        const ready = keys.every((key) => table.has(key));
        return this.#reply(new Message().u8(ready ? READY : NOT_READY));
      }
      case Query.WAIT: {
        const keys = await this.#keys();
        if (this.#wait !== null) throw new Error('a wait within a wait');
        this.#wait = table.wait(keys, () => {
          this.#endWait();
          this.#woken = this.#write([Buffer.of(STOP_WAITING)]).catch(() => {});
        });
        if (this.#wait === null) return this.#reply(new Message().u8(STOP_WAITING));
        this.#waitBytes = this.#requestBytes;
        this.#requestBytes = 0;
        return;
      }
      case Query.CANCEL_WAIT:
        this.#endWait();
        return this.#reply(new Message().u8(WAIT_CANCELED));
      case Query.GETNUMKEYS:
        return this.#reply(new Message().i64(table.numKeys));
      case Query.DELETE_KEY:
        return this.#reply(new Message().i64(table.delete(await this.#key()) ? 1 : 0));
      case Query.APPEND: {
        const [key, value] = [await this.#key(), await this.#value()];
        const whole = Buffer.concat([table.get(key) ?? NOTHING, value]);
        if (whole.length > MAX_VALUE_BYTES) throw new RangeError('a value has grown too long');
        table.set(key, whole);
        return;
      }
      case Query.MULTI_GET: {
        const reply = new Message();
        for (const key of await this.#keys()) reply.string(table.get(key) ?? NOTHING);
        return this.#reply(reply);
      }
      case Query.MULTI_SET: {
        const entries: [key: string, value: Buffer][] = [];
        const numKeys = await this.#reader.length(MAX_KEYS);
        while (entries.length < numKeys) entries.push([await this.#key(), await this.#value()]);
        for (const [key, value] of entries) table.set(key, value);
        return;
      }
      default:
        throw new Error(`the query ${query} is not known`);
    }
  }

  async #key(): Promise<string> {
    return (await this.#bytes(MAX_KEY_BYTES)).toString('latin1');
  }

  async #keys(): Promise<string[]> {
    const numKeys = await this.#reader.length(MAX_KEYS);
    const keys: string[] = [];
    while (keys.length < numKeys) keys.push(await this.#key());
    return keys;
  }

  #value(): Promise<Buffer> {
    return this.#bytes(MAX_VALUE_BYTES);
  }

  async #bytes(most: number): Promise<Buffer> {
    const bytes = await this.#reader.bytes(await this.#reader.length(most));
    this.#take(bytes.length + ENTRY_BYTES);
    return bytes;
  }

  /** Counts memory until the request is answered. */
  #take(numBytes: number): void {
    this.#table.take(numBytes);
    this.#requestBytes += numBytes;
  }

  /** Counts memory until the client has gone. */
  #hold(numBytes: number): void {
    this.#table.take(numBytes);
    this.#heldBytes += numBytes;
  }

  #reply(message: Message): Promise<void> {
    const parts = message.parts();
    this.#take(parts.reduce((numBytes, { length }) => numBytes + length, 0));
    return this.#write(parts);
  }

  /** Until the system has it all: a client that does not read is not asked for more requests. */
  #write(parts: readonly Buffer[]): Promise<void> {
    if (parts.length === 0) return Promise.resolve();
    return new Promise((resolve, reject) => {
      const written = (error?: Error | null) => (error ? reject(error) : resolve());
      this.#socket.cork();
      parts.forEach((part, index) => {
        this.#socket.write(part, index === parts.length - 1 ? written : undefined);
      });
      this.#socket.uncork();
    });
  }

  #endWait(): void {
    if (this.#wait === null) return;
    this.#table.cancelWait(this.#wait);
    this.#wait = null;
    this.#table.give(this.#waitBytes);
    this.#waitBytes = 0;
  }
}

/** As C's strtoll reads it: what follows the digits is not looked at. 0 when there is nothing yet. */
function toInteger(value: Buffer | undefined): bigint {
  if (value === undefined) return 0n;
  const digits = /^\s*([+-]?\d{1,20})/.exec(value.toString('latin1', 0, 64))?.[1];
  if (digits === undefined) throw new RangeError('an add to what is not a number');
  const number = BigInt(digits.replace('+', ''));
  if (number !== BigInt.asIntN(64, number)) throw new RangeError('a number above 64 bits');
  return number;
}
