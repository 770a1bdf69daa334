/** Server of a TCPStore. */
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

/** Consecutive requests of one client before the server yields to the others. */
const REQUESTS_PER_TURN = 64;

/** Bytes counted for a connection itself. */
const CLIENT_BYTES = 8 * 1024;

const NOTHING = Buffer.alloc(0);

export interface ServeOptions {
  /** Name or address to listen on; default: every address of this machine, IPv6 and IPv4. */
  host?: string;
  /** 0: any free port. */
  port: number;
  /** Milliseconds of silence allowed within a handshake, request or reply. */
  stallTimeout?: number;
}

/**
 * A store for `TCPStore` clients and PyTorch's from 2.6 on (TCPStore with `is_master=False`).
 *
 * There is no authentication: any process that can reach the port can read and write every key, so
 * use it in a trusted network. The server closes the connection of a client, without effect on the
 * others, for: a first query other than the handshake, an unknown query, a key above 8 KiB, a value
 * above 8 MiB (also after append), more than 131,072 keys in a request, an add to a value that is not
 * a number, a second wait before the first has ended, 5 minutes of silence within a request, and a
 * request that would raise the memory in use above 256 MiB. That memory counts values, incomplete
 * requests, waits, unread replies, and 8 KiB for each client.
 */
export class TCPStoreServer {
  /** The address it listens on; `::` means every address. */
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
    // A connection that cannot be accepted (no file descriptors, say) does not affect the others.
    server.on('error', () => {});
    server.on('connection', (socket) => {
      const client = new ServedClient(socket, this.#table, stallTimeout);
      this.#clients.add(client);
      void client.serve().then(() => this.#clients.delete(client));
    });
  }

  /** Rejects with StoreListenError; its `reason` is EADDRINUSE when the port is in use. */
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

  /** Current usage: `numBytes` as the limit above counts memory, `numAwaited` in keys. */
  usage(): { numClients: number; numKeys: number; numAwaited: number; numBytes: number } {
    const { numKeys, numAwaited, numBytes } = this.#table;
    return { numClients: this.#clients.size, numKeys, numAwaited, numBytes };
  }

  /** Closes every connection and frees the port. Idempotent. */
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

/** One client connection; requests are answered in order. */
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
  /** Resolves when the previous wait's reply has been handed to the kernel. */
  #waitReply: Promise<void> | null = null;

  constructor(socket: Socket, table: KeyTable, stallTimeout: number) {
    this.#socket = socket;
    this.#table = table;
    this.#stallTimeout = stallTimeout;
    this.#reader = new SocketReader(socket, (numBytes) => this.#hold(numBytes));
    socket.on('error', () => {});
    socket.on('timeout', () => socket.destroy());
    socket.on('close', () => this.#reader.fail(new Error('the client disconnected')));
    socket.setTimeout(stallTimeout);
  }

  /** Resolves when the client disconnects or violates the protocol; never rejects. */
  async serve(): Promise<void> {
    try {
      this.#hold(CLIENT_BYTES);
      await this.#handshake();
      for (let request = 1; ; request++) {
        this.#socket.setTimeout(0);
        const query = await this.#reader.u8();
        this.#socket.setTimeout(this.#stallTimeout);
        await this.#waitReply;
        await this.#answer(query);
        if (request % REQUESTS_PER_TURN === 0) await setImmediate();
        this.#table.release(this.#requestBytes);
        this.#requestBytes = 0;
      }
    } catch {
      // The protocol has no error replies.
    } finally {
      this.drop();
      this.#endWait();
      this.#table.release(this.#requestBytes + this.#heldBytes);
    }
  }

  drop(): void {
    this.#socket.destroy();
  }

  async #handshake(): Promise<void> {
    const query = await this.#reader.u8();
    if (query !== Query.VALIDATE || (await this.#reader.u32()) !== VALIDATION) {
      throw new Error('not a TCPStore client');
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
        if (this.#wait !== null) throw new Error('a second wait before the first has ended');
        this.#wait = table.wait(keys, () => {
          this.#endWait();
          this.#waitReply = this.#write([Buffer.of(STOP_WAITING)]).catch(() => {});
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
        if (whole.length > MAX_VALUE_BYTES)
          throw new RangeError(`the appended value is above ${MAX_VALUE_BYTES} bytes`);
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
        throw new Error(`unknown query ${query}`);
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

  async #bytes(max: number): Promise<Buffer> {
    const bytes = await this.#reader.bytes(await this.#reader.length(max));
    this.#reserve(bytes.length + ENTRY_BYTES);
    return bytes;
  }

  /** Counts memory until the request is answered. */
  #reserve(numBytes: number): void {
    this.#table.reserve(numBytes);
    this.#requestBytes += numBytes;
  }

  /** Counts memory until the client disconnects. */
  #hold(numBytes: number): void {
    this.#table.reserve(numBytes);
    this.#heldBytes += numBytes;
  }

  #reply(message: Message): Promise<void> {
    const parts = message.parts();
    this.#reserve(parts.reduce((numBytes, { length }) => numBytes + length, 0));
    return this.#write(parts);
  }

  /** Resolves when the kernel has all bytes: no further requests are read from a slow client. */
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
    this.#table.release(this.#waitBytes);
    this.#waitBytes = 0;
  }
}

/** Parses as C's strtoll: ignores what follows the digits. 0 for a key that is not set. */
function toInteger(value: Buffer | undefined): bigint {
  if (value === undefined) return 0n;
  const digits = /^\s*([+-]?\d{1,20})/.exec(value.toString('latin1', 0, 64))?.[1];
  if (digits === undefined) throw new RangeError('add to a value that is not a number');
  const number = BigInt(digits.replace('+', ''));
  if (number !== BigInt.asIntN(64, number)) throw new RangeError('add to a number above 64 bits');
  return number;
}
