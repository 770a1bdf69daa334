/** Caches each token's piece, bytes and text on first use. */
import { completeText, StreamDecoder } from './streamDecoder';
import { Vocabulary } from './vocabulary';

export class TokenTable {
  private names: Set<string> | null = null;
  private readonly pieces: string[];
  private readonly byteStrings: Uint8Array[];
  private readonly texts: (string | null | undefined)[];

  constructor(
    readonly vocabulary: Vocabulary,
    readonly decoder: StreamDecoder,
  ) {
    this.pieces = new Array<string>(vocabulary.size);
    this.byteStrings = new Array<Uint8Array>(vocabulary.size);
    this.texts = new Array<string | null | undefined>(vocabulary.size);
  }

  has(id: number): boolean {
    return this.vocabulary.has(id);
  }

  isSpecial(id: number): boolean {
    return this.vocabulary.isSpecial(id);
  }

  /** Names of the special tokens. */
  get specialNames(): ReadonlySet<string> {
    if (this.names === null) {
      const { vocabulary } = this;
      this.names = new Set();
      for (let id = 0; id < vocabulary.size; id++) {
        if (vocabulary.has(id) && vocabulary.isSpecial(id)) this.names.add(vocabulary.token(id));
      }
    }
    return this.names;
  }

  /** The token as input of the decoder's stages. */
  piece(id: number): string {
    return (this.pieces[id] ??= this.decoder.piece(this.vocabulary.token(id)));
  }

  /** The token's bytes, in a byte-level vocabulary. */
  bytes(id: number): Uint8Array {
    return (this.byteStrings[id] ??= this.decoder.bytes(this.piece(id)) as Uint8Array);
  }

  /** The text of `bytes` after a complete character; null if they end inside a character. */
  text(id: number): string | null {
    let text = this.texts[id];
    if (text === undefined) text = this.texts[id] = completeText(this.bytes(id));
    return text;
  }
}
