/** What a store's server holds. */

/** Bytes of memory that a server may have in use for all its clients together. */
export const MAX_MEMORY_BYTES = 256 * 1024 * 1024;

/** What an entry, or a key of a request, costs besides its bytes: objects, a slot in a map. */
export const ENTRY_BYTES = 512;

/** Someone who waits for keys that are not there. */
export interface Wait {
  readonly missing: Set<string>;
  /** Called once, when each has been set. */
  readonly done: () => void;
}

/**
 * Keys and their values, those who wait for them, and the count of the memory in use. Keys are
 * bytes, as latin1 strings.
 */
export class KeyTable {
  readonly #values = new Map<string, Buffer>();
  readonly #waits = new Map<string, Set<Wait>>();
  #numBytes = 0;

  get numKeys(): number {
    return this.#values.size;
  }

  /** Keys that somebody waits for. */
  get numAwaited(): number {
    return this.#waits.size;
  }

  /** Memory in use, by `take`'s count. */
  get numBytes(): number {
    return this.#numBytes;
  }

  /** Counts memory that is about to be used. Throws RangeError when that would be too much. */
  take(numBytes: number): void {
    if (this.#numBytes + numBytes > MAX_MEMORY_BYTES) {
      throw new RangeError(`${numBytes} bytes more than the ${this.#numBytes} in use are too many`);
    }
    this.#numBytes += numBytes;
  }

  /** Counts memory that is no longer used. */
  give(numBytes: number): void {
    this.#numBytes -= numBytes;
  }

  has(key: string): boolean {
    return this.#values.has(key);
  }

  get(key: string): Buffer | undefined {
    return this.#values.get(key);
  }

  /** Whoever waited for the key, and for no other, is called. Throws RangeError as `take` does. */
  set(key: string, value: Buffer): void {
    const before = this.#values.get(key);
    this.take(value.length - (before?.length ?? -key.length - ENTRY_BYTES));
    this.#values.set(key, inOwnMemory(value));
    for (const wait of this.#waits.get(key) ?? []) {
      wait.missing.delete(key);
      if (wait.missing.size === 0) wait.done();
    }
    this.#waits.delete(key);
  }

  /** Whether it was there. */
  delete(key: string): boolean {
    const value = this.#values.get(key);
    if (value === undefined) return false;
    this.give(value.length + key.length + ENTRY_BYTES);
    return this.#values.delete(key);
  }

  /** Null, and nobody is called, when all the keys are there. */
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

/** A piece of Buffer's pool would keep all of it in memory, which nobody counts. */
function inOwnMemory(value: Buffer): Buffer {
  if (value.length === value.buffer.byteLength) return value;
  const copy = Buffer.allocUnsafeSlow(value.length);
  value.copy(copy);
  return copy;
}
