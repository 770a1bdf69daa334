/** Prefixes lines of output with the name of their process. */
import { Transform, type TransformCallback } from 'node:stream';

/** Maximum bytes of a buffered line; longer lines are split. */
const MAX_LINE_BYTES = 16 * 1024 * 1024;

const NEWLINE = 0x0a;

/**
 * Prefixes each line and emits whole lines only, so that lines of several processes do not mix. Adds
 * a newline to an unterminated last line.
 */
export class LinePrefixer extends Transform {
  readonly #prefix: Buffer;
  /** Chunks of the unterminated line. */
  #pieces: Buffer[] = [];
  #numBytes = 0;

  constructor(prefix: string) {
    super();
    this.#prefix = Buffer.from(prefix);
  }

  override _transform(chunk: Buffer, _: BufferEncoding, done: TransformCallback): void {
    const lines: Buffer[] = [];
    let start = 0;
    for (let end = chunk.indexOf(NEWLINE); end >= 0; end = chunk.indexOf(NEWLINE, start)) {
      const rest = chunk.subarray(start, end + 1);
      lines.push(Buffer.concat([this.#prefix, ...this.#pieces, rest]));
      this.#pieces = [];
      this.#numBytes = 0;
      start = end + 1;
    }
    if (start < chunk.length) {
      this.#pieces.push(chunk.subarray(start));
      this.#numBytes += chunk.length - start;
    }
    if (lines.length > 0) this.push(Buffer.concat(lines));
    if (this.#numBytes > MAX_LINE_BYTES) this.#endLine();
    done();
  }

  override _flush(done: TransformCallback): void {
    if (this.#numBytes > 0) this.#endLine();
    done();
  }

  #endLine(): void {
    this.push(Buffer.concat([this.#prefix, ...this.#pieces, Buffer.of(NEWLINE)]));
    this.#pieces = [];
    this.#numBytes = 0;
  }
}
