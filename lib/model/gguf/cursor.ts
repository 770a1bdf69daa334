/** Reads the numbers and strings of a GGUF file's header one after another. */
import { reasonOf } from '../../config/jsonFile';
import { CheckpointError } from '../../errors';

/**
 * Bytes read at once. Other work of the JavaScript thread runs while they are read, so that a header
 * with a vocabulary of any size holds the thread for a fraction of a millisecond at a time.
 */
const CHUNK_BYTES = 1 << 16;

const decoder = new TextDecoder('utf-8', { ignoreBOM: true });

/** What a cursor reads from: FileHandle's method. */
export interface Readable {
  read(
    buffer: Buffer,
    offset: number,
    length: number,
    position: number,
  ): Promise<{ bytesRead: number; buffer: Buffer }>;
}

export class Cursor {
  private chunk: Buffer = Buffer.alloc(0);
  /** The chunk's place in the file, and the next byte's place in the chunk. */
  private start = 0;
  private at = 0;

  constructor(
    private readonly handle: Readable,
    readonly file: string,
    /** Bytes of the file. */
    readonly size: number,
  ) {}

  get position(): number {
    return this.start + this.at;
  }

  /** Bytes of the file after the position. */
  get remaining(): number {
    return this.size - this.position;
  }

  has(bytes: number): boolean {
    return this.at + bytes <= this.chunk.length;
  }

  /** Makes `bytes` bytes readable. Throws CheckpointError, which names `what`, if the file ends. */
  async need(bytes: number, what: string): Promise<void> {
    if (this.has(bytes)) return;
    if (bytes > this.remaining) {
      throw new CheckpointError(
        this.file,
        `${what} needs ${bytes} bytes from byte ${this.position}, but the file has ${this.size}; ` +
          'it is truncated or damaged',
      );
    }
    const { position } = this;
    const length = Math.min(this.remaining, Math.max(CHUNK_BYTES, bytes));
    const { bytesRead, buffer } = await this.handle
      .read(Buffer.allocUnsafe(length), 0, length, position)
      .catch((cause: unknown) => {
        throw new CheckpointError(this.file, `it cannot be read: ${reasonOf(cause)}`, { cause });
      });
    if (bytesRead < bytes) {
      throw new CheckpointError(
        this.file,
        `it ended after ${position + bytesRead} bytes while it was read`,
      );
    }
    this.chunk = buffer.subarray(0, bytesRead);
    this.start = position;
    this.at = 0;
  }

  /** Passes over bytes, of which there must be as many in the file. */
  skip(bytes: number): void {
    if (this.has(bytes)) {
      this.at += bytes;
      return;
    }
    this.start = this.position + bytes;
    this.chunk = Buffer.alloc(0);
    this.at = 0;
  }

  // The functions below require as many readable bytes.

  uint32(): number {
    this.at += 4;
    return this.chunk.readUInt32LE(this.at - 4);
  }

  uint64(): bigint {
    this.at += 8;
    return this.chunk.readBigUInt64LE(this.at - 8);
  }

  /** The next byte, which stays the next. */
  peek(): number {
    return this.chunk[this.at];
  }

  /** The bytes themselves, valid until the next `need`. */
  bytes(count: number): Buffer {
    this.at += count;
    return this.chunk.subarray(this.at - count, this.at);
  }

  text(count: number): string {
    return decoder.decode(this.bytes(count));
  }
}
