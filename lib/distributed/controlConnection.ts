/** The connection between two ranks by which each notices that the other is gone. */
import type { Socket } from 'node:net';
import { startTimer } from '../timer';
import { Message, SocketReader } from './tcpStoreProtocol';

/** A frame on the wire is this byte, a u64 length and that many bytes, little-endian. */
export const Kind = {
  /** Never sent: the connection is over, and the payload says why. */
  END: 0,
  /** To rank 0, first: the group's token, u32 rank, u32 world size. */
  HELLO: 1,
  /** From rank 0, until all are there: those that are not, as JSON. */
  MISSING: 2,
  /** From rank 0: all are there. */
  READY: 3,
  /** Nothing but a sign of life. */
  HEARTBEAT: 4,
  /** To rank 0: a gather's name, this rank's value. */
  VALUE: 5,
  /** From rank 0: a gather's name, each rank's value. */
  VALUES: 6,
  /** To rank 0: i64 step, the digest of its schedule. */
  DIGEST: 7,
  /** The group has failed: the error, as JSON. */
  FAIL: 8,
  /** From rank 0: i64 a rank that has left, i64 its progress. */
  LEFT: 9,
  /** The last word of a rank that leaves: i64 its progress. */
  GOODBYE: 10,
} as const;

export const TOKEN_BYTES = 16;

/** Bytes of a frame: of the first, from whom nobody knows yet, and of a rank's. */
const MAX_HELLO_BYTES = TOKEN_BYTES + 8;
const MAX_FRAME_BYTES = 2 ** 30;

/** Milliseconds that the other side may take to end its side of a connection. */
const LINGER = 1000;

const NOTHING = Buffer.alloc(0);

export interface Frame {
  kind: number;
  payload: Buffer;
}

/** Frames over a socket, each way in order; none is lost between one receiver and the next. */
export class ControlConnection {
  /** When anything was last received, as performance.now() has it. */
  heardAt = performance.now();
  /** When the socket is closed. */
  readonly ended: Promise<void>;
  readonly #socket: Socket;
  readonly #reader: SocketReader;
  #maxBytes = MAX_HELLO_BYTES;
  #receiver: ((frame: Frame) => void) | null = null;
  #backlog: Frame[] = [];

  constructor(socket: Socket) {
    this.#socket = socket;
    this.#reader = new SocketReader(socket);
    let cause: Error | undefined;
    socket.on('data', () => (this.heardAt = performance.now()));
    socket.on('error', (error) => (cause = error));
    this.ended = new Promise((resolve) => {
      socket.on('close', () => {
        this.#reader.fail(cause ?? new Error('its connection ended without a goodbye'));
        resolve();
      });
    });
    void this.#read();
  }

  /** From now on frames are a rank's, and may be long. */
  trust(): void {
    this.#maxBytes = MAX_FRAME_BYTES;
  }

  /** Who is given each frame, END the last; null: they are kept for the next receiver. */
  set receiver(receiver: ((frame: Frame) => void) | null) {
    this.#receiver = receiver;
    while (this.#receiver !== null && this.#backlog.length > 0) {
      this.#receiver(this.#backlog.shift() as Frame);
    }
  }

  /** Nothing happens when the connection is over. */
  send(kind: number, payload: Buffer = NOTHING): void {
    if (!this.#socket.writable) return;
    this.#socket.write(new Message().u8(kind).string(payload).bytes());
  }

  /** Whether the process stays for the connection's sake. */
  keepProcess(keeps: boolean): void {
    if (keeps) this.#socket.ref();
    else this.#socket.unref();
  }

  /** After what was sent, and when the other side has ended too, or not soon. */
  async close(): Promise<void> {
    this.#socket.end();
    const stopTimer = startTimer(LINGER, () => this.#socket.destroy());
    await this.ended;
    stopTimer();
  }

  destroy(): void {
    this.#socket.destroy();
  }

  async #read(): Promise<void> {
    try {
      for (;;) {
        const kind = await this.#reader.u8();
        const payload = await this.#reader.bytes(await this.#reader.length(this.#maxBytes));
        this.#deliver({ kind, payload });
      }
    } catch (error) {
      this.#socket.destroy();
      this.#deliver({ kind: Kind.END, payload: Buffer.from((error as Error).message) });
    }
  }

  #deliver(frame: Frame): void {
    if (this.#receiver === null) this.#backlog.push(frame);
    else this.#receiver(frame);
  }
}

/** The fields of a payload, in order. Each throws RangeError for what cannot be in a payload. */
export class Fields {
  #at = 0;

  constructor(private readonly payload: Buffer) {}

  i64(): number {
    const value = Number(this.payload.readBigInt64LE(this.#at));
    if (!Number.isSafeInteger(value)) throw new RangeError(`a number of ${value}`);
    this.#at += 8;
    return value;
  }

  /** One of a world's ranks. */
  rank(worldSize: number): number {
    const rank = this.i64();
    if (rank < 0 || rank >= worldSize) throw new RangeError(`rank ${rank} of ${worldSize} ranks`);
    return rank;
  }

  string(): Buffer {
    const length = this.i64();
    const left = this.payload.length - this.#at;
    if (length < 0 || length > left)
      throw new RangeError(`a length of ${length} where ${left} follow`);
    return this.payload.subarray(this.#at, (this.#at += length));
  }
}
