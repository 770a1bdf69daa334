/**
 * What goes over a TCPStore's wire, as PyTorch 2.6 to 2.13 have it (torch/distributed TCPStore):
 * little-endian and unframed, strings a u64 length and that many bytes, lists a u64 count first.
 */
import type { Socket } from 'node:net';
import { ConfigError, StoreRequestError } from '../errors';

/** A request's first byte. PyTorch's queues (14 to 16) and what came after them are not here. */
export const Query = {
  VALIDATE: 0,
  SET: 1,
  COMPARE_SET: 2,
  GET: 3,
  ADD: 4,
  CHECK: 5,
  WAIT: 6,
  GETNUMKEYS: 7,
  DELETE_KEY: 8,
  APPEND: 9,
  MULTI_GET: 10,
  MULTI_SET: 11,
  CANCEL_WAIT: 12,
  PING: 13,
} as const;

/** What VALIDATE carries, so that a server knows a store's client from another protocol's. */
export const VALIDATION = 0x3c85f7ce;

/** CHECK's answers. */
export const READY = 0;
export const NOT_READY = 1;

/** WAIT's answer once all keys are there, and CANCEL_WAIT's. */
export const STOP_WAITING = 0;
export const WAIT_CANCELED = 1;

/** Under which clients count themselves in; the only key without the prefix. */
export const INIT_KEY = 'init/';

/** Before every other key. */
export const KEY_PREFIX = '/';

/** Bytes of a key, with its prefix. This limit and the next two are those of PyTorch's server. */
export const MAX_KEY_BYTES = 8 * 1024;

/** Bytes of a value. */
export const MAX_VALUE_BYTES = 8 * 1024 * 1024;

/** Keys of one request. */
export const MAX_KEYS = 128 * 1024;

/** One message, put together field by field. */
export class Message {
  readonly #parts: Buffer[] = [];

  /** `query`: the first byte of a request; replies have none. */
  constructor(query?: number) {
    if (query !== undefined) this.u8(query);
  }

  u8(value: number): this {
    this.#parts.push(Buffer.of(value));
    return this;
  }

  u32(value: number): this {
    const bytes = Buffer.allocUnsafe(4);
    bytes.writeUInt32LE(value);
    this.#parts.push(bytes);
    return this;
  }

  i64(value: bigint | number): this {
    const bytes = Buffer.allocUnsafe(8);
    bytes.writeBigInt64LE(BigInt(value));
    this.#parts.push(bytes);
    return this;
  }

  /** A length and the bytes. */
  string(bytes: Buffer): this {
    this.i64(bytes.length);
    this.#parts.push(bytes);
    return this;
  }

  /** As `string`. Throws StoreRequestError for more than 8 KiB. */
  key(key: string): this {
    const bytes = Buffer.from(key);
    if (bytes.length > MAX_KEY_BYTES) {
      throw new StoreRequestError(
        `the key ${key.slice(0, 40)}… is ${bytes.length} bytes long; a store takes ${MAX_KEY_BYTES}`,
      );
    }
    return this.string(bytes);
  }

  /** As `string`. Throws StoreRequestError for more than 8 MiB. */
  value(value: string | Uint8Array): this {
    const bytes =
      typeof value === 'string'
        ? Buffer.from(value)
        : Buffer.from(value.buffer, value.byteOffset, value.byteLength);
    if (bytes.length > MAX_VALUE_BYTES) {
      throw new StoreRequestError(
        `the value is ${bytes.length} bytes long; a store takes ${MAX_VALUE_BYTES}`,
      );
    }
    return this.string(bytes);
  }

  /** A count and the keys. Throws StoreRequestError for more than 131,072. */
  keys(keys: readonly string[]): this {
    this.count(keys.length);
    for (const key of keys) this.key(key);
    return this;
  }

  /** Of keys that follow. Throws StoreRequestError for more than 131,072. */
  count(numKeys: number): this {
    if (numKeys > MAX_KEYS) {
      throw new StoreRequestError(`${numKeys} keys in one request; a store takes ${MAX_KEYS}`);
    }
    return this.i64(numKeys);
  }

  /** A copy of it all. */
  bytes(): Buffer {
    return Buffer.concat(this.#parts);
  }

  /** The pieces, values among them not copied. */
  parts(): readonly Buffer[] {
    return this.#parts;
  }
}

/** Bytes taken from a socket before anybody asks for them. */
const READ_AHEAD = 64 * 1024;

/**
 * A socket's bytes as fields, whatever pieces they come in. A field can be asked for when the one
 * before is there. It takes memory for what has come, at most twice that, never for what a length
 * promises.
 */
export class SocketReader {
  readonly #socket: Socket;
  readonly #grown: (numBytes: number) => void;
  /** What was received and not read is from #start to #end. */
  #buffer: Buffer = Buffer.alloc(0);
  #start = 0;
  #end = 0;
  #waiting: { numBytes: number; resolve: () => void; reject: (error: Error) => void } | null = null;
  #failure: Error | null = null;

  /**
   * `grown` is told by how many bytes the memory held grows, or shrinks when it is less than 0; if
   * it throws, the socket is destroyed.
   */
  constructor(socket: Socket, grown: (numBytes: number) => void = () => {}) {
    this.#socket = socket;
    this.#grown = grown;
    socket.on('data', (chunk: Buffer) => {
      try {
        this.#append(chunk);
      } catch (error) {
        socket.destroy(error as Error);
      }
    });
  }

  /** Whoever reads beyond what has come gets `error`. */
  fail(error: Error): void {
    this.#failure = error;
    this.#waiting?.reject(error);
    this.#waiting = null;
  }

  async u8(): Promise<number> {
    await this.#arrival(1);
    return this.#buffer[this.#advance(1)];
  }

  async u32(): Promise<number> {
    await this.#arrival(4);
    return this.#buffer.readUInt32LE(this.#advance(4));
  }

  async i64(): Promise<bigint> {
    await this.#arrival(8);
    return this.#buffer.readBigInt64LE(this.#advance(8));
  }

  /** A u64 that says how much follows; throws RangeError above `most`. */
  async length(most: number): Promise<number> {
    await this.#arrival(8);
    const length = this.#buffer.readBigUInt64LE(this.#advance(8));
    if (length > most) throw new RangeError(`a length of ${length}, and ${most} is the most`);
    return Number(length);
  }

  /** Bytes in memory of their own. */
  async bytes(numBytes: number): Promise<Buffer> {
    await this.#arrival(numBytes);
    const bytes = Buffer.allocUnsafeSlow(numBytes);
    const start = this.#advance(numBytes);
    this.#buffer.copy(bytes, 0, start, start + numBytes);
    return bytes;
  }

  /** Where the next `numBytes` begin; they stay there until more is received. */
  #advance(numBytes: number): number {
    const start = this.#start;
    this.#start += numBytes;
    if (this.#start === this.#end) this.#start = this.#end = 0;
    return start;
  }

  /** Until `numBytes` are there to be read. */
  async #arrival(numBytes: number): Promise<void> {
    if (this.#end - this.#start >= numBytes) return;
    if (this.#failure !== null) throw this.#failure;
    // What a long value took is not needed for the short fields that follow.
    const kept = this.#end - this.#start;
    if (this.#buffer.length > 4 * READ_AHEAD && Math.max(numBytes, kept) <= READ_AHEAD) {
      this.#resize(kept);
    }
    await new Promise<void>((resolve, reject) => {
      this.#waiting = { numBytes, resolve, reject };
      if (this.#socket.isPaused()) this.#socket.resume();
    });
  }

  #append(chunk: Buffer): void {
    const numBytes = this.#end - this.#start + chunk.length;
    const wanted = this.#waiting?.numBytes ?? 0;
    const enough = Math.max(wanted, READ_AHEAD);
    if (numBytes > this.#buffer.length) {
      this.#resize(Math.max(numBytes, Math.min(numBytes * 2, enough)));
    } else if (this.#end + chunk.length > this.#buffer.length) {
      this.#resize(this.#buffer.length);
    }
    this.#end += chunk.copy(this.#buffer, this.#end);
    if (numBytes >= enough) this.#socket.pause();
    if (this.#waiting !== null && numBytes >= wanted) {
      this.#waiting.resolve();
      this.#waiting = null;
    }
  }

  /** Moves what is there to the beginning of a buffer of `numBytes`. */
  #resize(numBytes: number): void {
    if (numBytes === this.#buffer.length) {
      this.#buffer.copyWithin(0, this.#start, this.#end);
    } else {
      this.#grown(numBytes - this.#buffer.length);
      const buffer = Buffer.allocUnsafeSlow(numBytes);
      this.#buffer.copy(buffer, 0, this.#start, this.#end);
      this.#buffer = buffer;
    }
    this.#end -= this.#start;
    this.#start = 0;
  }
}

/** Throws ConfigError for what is not a port. */
export function checkPort(port: number, least: number): void {
  if (!Number.isInteger(port) || port < least || port > 65535) {
    throw new ConfigError(`port must be a whole number, ${least} to 65535, not ${String(port)}`);
  }
}
