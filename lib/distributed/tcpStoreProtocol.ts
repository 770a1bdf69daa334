/**
 * TCPStore's wire format in PyTorch 2.6 to 2.13: little-endian, unframed; a string is a u64 length
 * and that many bytes, a list begins with a u64 count.
 */
import type { Socket } from 'node:net';
import { ConfigError, StoreRequestError } from '../errors';

/** A request's first byte. PyTorch's queues (14 to 16) and later requests are not supported. */
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

/** VALIDATE's payload, by which a server recognises the protocol. */
export const VALIDATION = 0x3c85f7ce;

/** CHECK's replies. */
export const READY = 0;
export const NOT_READY = 1;

/** WAIT's reply once all keys are set, and CANCEL_WAIT's. */
export const STOP_WAITING = 0;
export const WAIT_CANCELED = 1;

/** The count of workers; the only key without the prefix. */
export const INIT_KEY = 'init/';

/** Prefix of every other key. */
export const KEY_PREFIX = '/';

/** Maximum bytes of a key with its prefix. This limit and the next two are PyTorch's. */
export const MAX_KEY_BYTES = 8 * 1024;

/** Maximum bytes of a value. */
export const MAX_VALUE_BYTES = 8 * 1024 * 1024;

/** Maximum keys of one request. */
export const MAX_KEYS = 128 * 1024;

/** Builds a message field by field. */
export class Message {
  readonly #parts: Buffer[] = [];

  /** `query`: a request's first byte; replies have none. */
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
        `the key ${key.slice(0, 40)}… has ${bytes.length} bytes; the limit is ${MAX_KEY_BYTES}`,
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
        `the value has ${bytes.length} bytes; the limit is ${MAX_VALUE_BYTES}`,
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

  /** The count of the keys that follow. Throws StoreRequestError for more than 131,072. */
  count(numKeys: number): this {
    if (numKeys > MAX_KEYS) {
      throw new StoreRequestError(`the request has ${numKeys} keys; the limit is ${MAX_KEYS}`);
    }
    return this.i64(numKeys);
  }

  /** The message as one copied buffer. */
  bytes(): Buffer {
    return Buffer.concat(this.#parts);
  }

  /** The message's parts; values are not copied. */
  parts(): readonly Buffer[] {
    return this.#parts;
  }
}

/** Bytes read from a socket ahead of the reader. */
const READ_AHEAD = 64 * 1024;

/**
 * Reads a socket's bytes as fields, one at a time. Memory stays below twice the received bytes, and
 * is never allocated for an announced length.
 */
export class SocketReader {
  readonly #socket: Socket;
  readonly #onResize: (numBytes: number) => void;
  /** Received, unread bytes are from #start to #end. */
  #buffer: Buffer = Buffer.alloc(0);
  #start = 0;
  #end = 0;
  #waiting: { numBytes: number; resolve: () => void; reject: (error: Error) => void } | null = null;
  #failure: Error | null = null;

  /**
   * `onResize` is called with the number of bytes by which the buffer grows, negative when it
   * shrinks; if it throws, the socket is destroyed.
   */
  constructor(socket: Socket, onResize: (numBytes: number) => void = () => {}) {
    this.#socket = socket;
    this.#onResize = onResize;
    socket.on('data', (chunk: Buffer) => {
      try {
        this.#append(chunk);
      } catch (error) {
        socket.destroy(error as Error);
      }
    });
  }

  /** Makes reads beyond the received bytes reject with `error`. */
  fail(error: Error): void {
    this.#failure = error;
    this.#waiting?.reject(error);
    this.#waiting = null;
  }

  async u8(): Promise<number> {
    await this.#available(1);
    return this.#buffer[this.#advance(1)];
  }

  async u32(): Promise<number> {
    await this.#available(4);
    return this.#buffer.readUInt32LE(this.#advance(4));
  }

  async i64(): Promise<bigint> {
    await this.#available(8);
    return this.#buffer.readBigInt64LE(this.#advance(8));
  }

  /** A u64 length or count; throws RangeError above `max`. */
  async length(max: number): Promise<number> {
    await this.#available(8);
    const length = this.#buffer.readBigUInt64LE(this.#advance(8));
    if (length > max) throw new RangeError(`a length of ${length} is above the limit of ${max}`);
    return Number(length);
  }

  /** Returns a copy in memory of its own. */
  async bytes(numBytes: number): Promise<Buffer> {
    await this.#available(numBytes);
    const bytes = Buffer.allocUnsafeSlow(numBytes);
    const start = this.#advance(numBytes);
    this.#buffer.copy(bytes, 0, start, start + numBytes);
    return bytes;
  }

  /** Consumes `numBytes` and returns their start, valid until more is received. */
  #advance(numBytes: number): number {
    const start = this.#start;
    this.#start += numBytes;
    if (this.#start === this.#end) this.#start = this.#end = 0;
    return start;
  }

  /** Resolves when `numBytes` can be read. */
  async #available(numBytes: number): Promise<void> {
    if (this.#end - this.#start >= numBytes) return;
    if (this.#failure !== null) throw this.#failure;
    // Shrink the buffer that a long value needed.
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

  /** Moves unread bytes to the beginning of a buffer of `numBytes`. */
  #resize(numBytes: number): void {
    if (numBytes === this.#buffer.length) {
      this.#buffer.copyWithin(0, this.#start, this.#end);
    } else {
      this.#onResize(numBytes - this.#buffer.length);
      const buffer = Buffer.allocUnsafeSlow(numBytes);
      this.#buffer.copy(buffer, 0, this.#start, this.#end);
      this.#buffer = buffer;
    }
    this.#end -= this.#start;
    this.#start = 0;
  }
}

/** Throws ConfigError unless `port` is an integer from `min` to 65535. */
export function checkPort(port: number, min: number): void {
  if (!Number.isInteger(port) || port < min || port > 65535) {
    throw new ConfigError(`port is ${String(port)}; it must be an integer from ${min} to 65535`);
  }
}
