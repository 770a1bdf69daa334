/** The connection between two ranks, over which each detects that the other has died. */
import type { Socket } from 'node:net';
import { startTimer } from '../timer';
import { Message, SocketReader } from './tcpStoreProtocol';

/** A frame on the wire: this byte, a u64 payload length and the payload, little-endian. */
export const Kind = {
  /** Never sent: reports to the receiver that the connection closed; the payload is the reason. */
  END: 0,
  /** First frame to rank 0: the group's token, u32 rank, u32 world size. */
  HELLO: 1,
  /** From rank 0 during rendezvous: the missing ranks, as JSON. */
  MISSING: 2,
  /** From rank 0: all ranks have joined. */
  READY: 3,
  HEARTBEAT: 4,
  /** To rank 0: the gather's name, this rank's value. */
  VALUE: 5,
  /** From rank 0: the gather's name, each rank's value. */
  VALUES: 6,
  /** To rank 0: i64 step, digest of the step's schedule. */
  DIGEST: 7,
  /** The group has failed: the error, as JSON. */
  FAIL: 8,
  /** From rank 0: i64 the rank that left, i64 its progress. */
  LEFT: 9,
  /** Last frame of a rank that leaves: i64 its progress. */
  LEAVE: 10,
} as const;

export const TOKEN_BYTES = 16;

/** Maximum frame sizes in bytes: before the sender has authenticated (HELLO), and after. */
const MAX_HELLO_BYTES = TOKEN_BYTES + 8;
const MAX_FRAME_BYTES = 2 ** 30;

/** Milliseconds that the peer may take to close its side. */
const CLOSE_TIMEOUT = 1000;

const NOTHING = Buffer.alloc(0);

export interface Frame {
  kind: number;
  payload: Buffer;
}

/** Ordered frames over a socket; frames that arrive without a receiver are queued for the next one. */
export class ControlConnection {
  /** When data was last received, as performance.now(). */
  lastReceivedAt = performance.now();
  /** Resolves when the socket has closed. */
  readonly closed: Promise<void>;
  readonly #socket: Socket;
  readonly #reader: SocketReader;
  #maxBytes = MAX_HELLO_BYTES;
  #receiver: ((frame: Frame) => void) | null = null;
  #backlog: Frame[] = [];

  constructor(socket: Socket) {
    this.#socket = socket;
    this.#reader = new SocketReader(socket);
    let cause: Error | undefined;
    socket.on('data', () => (this.lastReceivedAt = performance.now()));
    socket.on('error', (error) => (cause = error));
    this.closed = new Promise((resolve) => {
      socket.on('close', () => {
        this.#reader.fail(cause ?? new Error('its connection closed before it left the group'));
        resolve();
      });
    });
    void this.#read();
  }

  /** The sender has authenticated: accept frames up to MAX_FRAME_BYTES. */
  acceptLongFrames(): void {
    this.#maxBytes = MAX_FRAME_BYTES;
  }

  /** Called with each frame, END the last; null: frames are queued for the next receiver. */
  set receiver(receiver: ((frame: Frame) => void) | null) {
    this.#receiver = receiver;
    while (this.#receiver !== null && this.#backlog.length > 0) {
      this.#receiver(this.#backlog.shift() as Frame);
    }
  }

  /** Does nothing after the connection has closed. */
  send(kind: number, payload: Buffer = NOTHING): void {
    if (!this.#socket.writable) return;
    this.#socket.write(new Message().u8(kind).string(payload).bytes());
  }

  /** Whether the connection keeps the process alive. */
  setRef(ref: boolean): void {
    if (ref) this.#socket.ref();
    else this.#socket.unref();
  }

  /** Flushes sent frames and waits for the peer to close, at most CLOSE_TIMEOUT. */
  async close(): Promise<void> {
    this.#socket.end();
    const stopTimer = startTimer(CLOSE_TIMEOUT, () => this.#socket.destroy());
    await this.closed;
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

/** Reads the fields of a payload in order. Each throws RangeError for a malformed field. */
export class Fields {
  #at = 0;

  constructor(private readonly payload: Buffer) {}

  i64(): number {
    const value = Number(this.payload.readBigInt64LE(this.#at));
    if (!Number.isSafeInteger(value)) throw new RangeError(`${value} is not a safe integer`);
    this.#at += 8;
    return value;
  }

  rank(worldSize: number): number {
    const rank = this.i64();
    if (rank < 0 || rank >= worldSize)
      throw new RangeError(`rank ${rank} is outside the world of ${worldSize}`);
    return rank;
  }

  string(): Buffer {
    const length = this.i64();
    const left = this.payload.length - this.#at;
    if (length < 0 || length > left)
      throw new RangeError(`a field of ${length} bytes, but ${left} remain`);
    return this.payload.subarray(this.#at, (this.#at += length));
  }
}
