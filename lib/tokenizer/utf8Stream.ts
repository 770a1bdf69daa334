/** Incremental UTF-8 decoding. */

/** Number of trailing bytes, 0 to 3, that form an incomplete character. */
export function unfinishedBytes(bytes: Uint8Array): number {
  const { length } = bytes;
  for (let count = 1; count <= 3 && count <= length; count++) {
    const lead = bytes[length - count];
    if (lead >= 0x80 && lead < 0xc0) continue;
    const size = lead >= 0xf5 ? 0 : lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc2 ? 2 : 0;
    if (size <= count) return 0;
    // The second byte decides whether the character can be completed (Unicode, table 3-7).
    if (count > 1) {
      const second = bytes[length - count + 1];
      const least = lead === 0xe0 ? 0xa0 : lead === 0xf0 ? 0x90 : 0x80;
      const most = lead === 0xed ? 0x9f : lead === 0xf4 ? 0x8f : 0xbf;
      if (second < least || second > most) return 0;
    }
    return count;
  }
  return 0;
}

/** Decodes UTF-8 like Rust's from_utf8_lossy: U+FFFD for each maximal part of an invalid sequence. */
export function utf8(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('utf8');
}

/** Returns complete characters, and U+FFFD as soon as bytes are invalid. */
export class Utf8Stream {
  private static readonly NONE = new Uint8Array(0);
  private pending = Utf8Stream.NONE;

  get isBetweenCharacters(): boolean {
    return this.pending.length === 0;
  }

  push(bytes: Uint8Array): string {
    const all = this.isBetweenCharacters ? bytes : Buffer.concat([this.pending, bytes]);
    const unfinished = unfinishedBytes(all);
    if (unfinished === 0) {
      this.pending = Utf8Stream.NONE;
      return utf8(all);
    }
    this.pending = Uint8Array.from(all.subarray(all.length - unfinished));
    return utf8(all.subarray(0, all.length - unfinished));
  }

  /** Returns U+FFFD for an incomplete character. */
  finish(): string {
    const rest = utf8(this.pending);
    this.pending = Utf8Stream.NONE;
    return rest;
  }
}
