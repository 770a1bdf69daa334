/** The tokens of a vocabulary by id, packed so that another thread can hand them over without a copy. */

/** What crosses threads. `kinds`: by id, ABSENT, TOKEN or SPECIAL. */
export interface PackedVocabulary {
  /** All tokens' UTF-8, one after the other. */
  bytes: Uint8Array;
  /** [size + 1] where the token of an id begins in `bytes`; it ends where the next begins. */
  offsets: Uint32Array;
  /** [size] */
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
  /** Above all ids. */
  readonly size: number;
  private readonly bytes: Buffer;
  private readonly offsets: Uint32Array;
  private readonly kinds: Uint8Array;

  constructor({ bytes, offsets, kinds }: PackedVocabulary) {
    this.bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.offsets = offsets;
    this.kinds = kinds;
    this.size = kinds.length;
  }

  /** Whether there is a token of that id. */
  has(id: number): boolean {
    return (this.kinds[id] ?? ABSENT) !== ABSENT;
  }

  isSpecial(id: number): boolean {
    return this.kinds[id] === SPECIAL;
  }

  /** The token as tokenizer.json writes it; '' for an id without one. */
  token(id: number): string {
    return this.has(id) ? this.bytes.toString('utf8', this.offsets[id], this.offsets[id + 1]) : '';
  }
}
