/** A vocabulary's tokens by id, packed into buffers that can be transferred between threads. */

export interface PackedVocabulary {
  /** The concatenated UTF-8 of all tokens. */
  bytes: Uint8Array;
  /** [size + 1]: token `id` is bytes [offsets[id], offsets[id + 1]). */
  offsets: Uint32Array;
  /** [size]: ABSENT, TOKEN or SPECIAL. */
  kinds: Uint8Array;
}

const ABSENT = 0;
const TOKEN = 1;
const SPECIAL = 2;

export function packVocabulary(
  tokens: ReadonlyMap<number, string>,
  specialTokens: ReadonlySet<string>,
): PackedVocabulary {
  let size = 0;
  let numBytes = 0;
  for (const [id, token] of tokens) {
    size = Math.max(size, id + 1);
    numBytes += Buffer.byteLength(token);
  }
  const bytes = Buffer.from(new ArrayBuffer(numBytes));
  const offsets = new Uint32Array(size + 1);
  const kinds = new Uint8Array(size);
  let end = 0;
  for (let id = 0; id < size; id++) {
    const token = tokens.get(id);
    if (token !== undefined) {
      end += bytes.write(token, end);
      kinds[id] = specialTokens.has(token) ? SPECIAL : TOKEN;
    }
    offsets[id + 1] = end;
  }
  return { bytes: new Uint8Array(bytes.buffer), offsets, kinds };
}

export class Vocabulary {
  /** Largest id + 1. */
  readonly size: number;
  private readonly bytes: Buffer;
  private readonly offsets: Uint32Array;
  private readonly kinds: Uint8Array;

  constructor(readonly packed: PackedVocabulary) {
    const { bytes, offsets, kinds } = packed;
    this.bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.offsets = offsets;
    this.kinds = kinds;
    this.size = kinds.length;
  }

  has(id: number): boolean {
    return (this.kinds[id] ?? ABSENT) !== ABSENT;
  }

  isSpecial(id: number): boolean {
    return this.kinds[id] === SPECIAL;
  }

  /** The token as in tokenizer.json; '' for an id without a token. */
  token(id: number): string {
    return this.has(id) ? this.bytes.toString('utf8', this.offsets[id], this.offsets[id + 1]) : '';
  }
}
