/** The key-value table of a store server. */

/** Maximum bytes of memory that a server uses for all its clients together. */
export const MAX_MEMORY_BYTES = 256 * 1024 * 1024;

/** Overhead in bytes of an entry or of a key in a request: objects, a slot in a map. */
export const ENTRY_BYTES = 512;

/** A client's wait for keys that are not set. */
export interface Wait {
  readonly missing: Set<string>;
  /** Called once, when all keys have been set. */
  readonly done: () => void;
}

/**
 * Keys and values, pending waits, and the count of the memory in use. Keys are bytes, as latin1
 * strings.
 */
export class KeyTable {
  readonly #values = new Map<string, Buffer>();
  readonly #waits = new Map<string, Set<Wait>>();
  #numBytes = 0;

  get numKeys(): number {
    return this.#values.size;
  }

  /** Keys with at least one pending wait. */
  get numAwaited(): number {
    return this.#waits.size;
  }

  /** Memory in use, as `reserve` counts it. */
  get numBytes(): number {
    return this.#numBytes;
  }

  /** Counts memory as used. Throws RangeError above MAX_MEMORY_BYTES. */
  reserve(numBytes: number): void {
    if (this.#numBytes + numBytes > MAX_MEMORY_BYTES) {
      throw new RangeError(
        `${numBytes} more bytes exceed the limit of ${MAX_MEMORY_BYTES}; ${this.#numBytes} are in use`,
      );
    }
    this.#numBytes += numBytes;
  }

  /** Counts memory as free again. */
  release(numBytes: number): void {
    this.#numBytes -= numBytes;
  }

  has(key: string): boolean {
    return this.#values.has(key);
  }

  get(key: string): Buffer | undefined {
    return this.#values.get(key);
  }

  /** Completes waits that lack no other key. Throws RangeError as `reserve`. */
  set(key: string, value: Buffer): void {
    const before = this.#values.get(key);
    this.reserve(value.length - (before?.length ?? -key.length - ENTRY_BYTES));
    this.#values.set(key, withoutPool(value));
    for (const wait of this.#waits.get(key) ?? []) {
      wait.missing.delete(key);
      if (wait.missing.size === 0) wait.done();
    }
    this.#waits.delete(key);
  }

  /** Returns whether the key was set. */
  delete(key: string): boolean {
    const value = this.#values.get(key);
    if (value === undefined) return false;
    this.release(value.length + key.length + ENTRY_BYTES);
    return this.#values.delete(key);
  }

  /** Returns null, without calling `done`, when all keys are set. */
  wait(keys: readonly string[], done: () => void): Wait | null {
    const wait: Wait = { missing: new Set(keys.filter((key) => !this.has(key))), done };
    if (wait.missing.size === 0) return null;
    for (const key of wait.missing) {
      const others = this.#waits.get(key);
      if (others === undefined) this.#waits.set(key, new Set([wait]));
      else others.add(wait);
    }
    return wait;
  }

  cancelWait(wait: Wait): void {
    for (const key of wait.missing) {
      const waits = this.#waits.get(key);
      waits?.delete(wait);
      if (waits?.size === 0) this.#waits.delete(key);
    }
  }
}

/** A slice of Buffer's pool would keep the whole pool in memory uncounted. */
function withoutPool(value: Buffer): Buffer {
  if (value.length === value.buffer.byteLength) return value;
  const copy = Buffer.allocUnsafeSlow(value.length);
  value.copy(copy);
  return copy;
}
