/** A synchronous socket without a network. */
import { EventEmitter } from 'node:events';
import type { Socket } from 'node:net';

class FakeSocket extends EventEmitter {
  destroyed = false;
  /** All written bytes. */
  readonly written: Buffer[] = [];
  /** Bytes received while paused. */
  #held: Buffer[] = [];
  #isPaused = false;
  #isClosed = false;

  get writable(): boolean {
    return !this.destroyed;
  }

  isPaused(): boolean {
    return this.#isPaused;
  }

  pause(): this {
    this.#isPaused = true;
    return this;
  }

  resume(): this {
    this.#isPaused = false;
    // Each chunk may pause it again.
    while (this.#held.length > 0 && !this.isPaused()) this.emit('data', this.#held.shift());
    return this;
  }

  write(bytes: Buffer, written?: (error?: Error | null) => void): boolean {
    if (!this.destroyed) this.written.push(Buffer.from(bytes));
    if (written) queueMicrotask(() => written(this.destroyed ? new Error('closed') : null));
    return true;
  }

  end(): this {
    this.destroy();
    return this;
  }

  destroy(error?: Error): this {
    if (this.destroyed) return this;
    this.destroyed = true;
    queueMicrotask(() => {
      if (error !== undefined) this.emit('error', error);
      this.close();
    });
    return this;
  }

  cork(): void {}
  uncork(): void {}
  ref(): this {
    return this;
  }
  unref(): this {
    return this;
  }
  setTimeout(): this {
    return this;
  }

  /** Receives bytes from the peer. */
  receive(bytes: Buffer): void {
    if (this.destroyed) return;
    if (this.#isPaused) this.#held.push(bytes);
    else this.emit('data', bytes);
  }

  /** Closes the connection on both sides. */
  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.destroyed = true;
    this.emit('close', false);
  }
}

export type { FakeSocket };

export function fakeSocket(): { fake: FakeSocket; socket: Socket } {
  const fake = new FakeSocket();
  return { fake, socket: fake as unknown as Socket };
}

/** Splits `bytes` into chunks; the byte `pattern` selects their sizes, from few bytes to all. */
export function inPieces(bytes: Buffer, pattern: number): Buffer[] {
  if (pattern % 4 === 0) return [bytes];
  const pieces: Buffer[] = [];
  let state = pattern;
  for (let at = 0; at < bytes.length;) {
    state = (state * 181 + 359) % 1021;
    const size = 1 + (state % (pattern % 4 === 1 ? 3 : 40));
    pieces.push(bytes.subarray(at, at + size));
    at += size;
  }
  return pieces;
}
