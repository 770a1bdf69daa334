/**
 * Streaming versions of the decoders in tokenizer.json: each stage takes one piece at a time and
 * passes on final text. Stages work on a list of pieces, the tokens, until Fuse or ByteLevel joins
 * them; later stages take parts of the joined text. The results equal the `decode_chain` methods of
 * Hugging Face's tokenizers (Rust), which need all tokens at once.
 */
import { byteLevelBytes } from './byteLevel';
import { Utf8Stream } from './utf8Stream';

/** Replaces invalid UTF-8. */
const REPLACEMENT = '\ufffd';

/** Consumes pieces of a list, or parts of one text. */
export interface Stage {
  push(piece: string): void;
  /** Ends the input: passes on the buffered text. */
  finish(): void;
}

export type StageFactory = (next: Stage) => Stage;

/** Replaces each `pattern`, which must not be empty, in `text`. */
export const replaceAll = (text: string, pattern: string, content: string) =>
  text.includes(pattern) ? text.split(pattern).join(content) : text;

/** The replacements of WordPiece's and CTC's `cleanup`, applied in order. */
export const CLEANUP: readonly (readonly [pattern: string, content: string])[] = [
  [' .', '.'],
  [' ?', '?'],
  [' !', '!'],
  [' ,', ','],
  [" ' ", "'"],
  [" n't", "n't"],
  [" 'm", "'m"],
  [' do not', " don't"],
  [" 's", "'s"],
  [" 've", "'ve"],
  [" 're", "'re"],
];

export const cleanUp = (text: string) =>
  CLEANUP.reduce((cleaned, [pattern, content]) => replaceAll(cleaned, pattern, content), text);

/** Removes at most `start` leading and `stop` trailing repetitions of `content`. */
export function strip(text: string, content: string, start: number, stop: number): string {
  let from = 0;
  for (let i = 0; i < start && text.startsWith(content, from); i++) from += content.length;
  let to = text.length;
  for (let i = 0; i < stop && to - content.length >= from; i++) {
    if (!text.endsWith(content, to)) break;
    to -= content.length;
  }
  return text.slice(from, to);
}

/** Maps each piece. */
export const mapPieces =
  (map: (piece: string) => string): StageFactory =>
  (next) => ({ push: (piece) => next.push(map(piece)), finish: () => next.finish() });

/** Maps each piece; `isFirst` marks the first one. */
export const mapFirst =
  (map: (piece: string, isFirst: boolean) => string): StageFactory =>
  (next) => {
    let isFirst = true;
    return {
      push(piece) {
        next.push(map(piece, isFirst));
        isFirst = false;
      },
      finish: () => next.finish(),
    };
  };

/** BPEDecoder: replaces a word's suffix with a space, but removes it from the last piece. */
export const bpePieces =
  (suffix: string): StageFactory =>
  (next) => {
    let held: string | null = null;
    const release = (content: string) => {
      if (held !== null) next.push(replaceAll(held, suffix, content));
      held = null;
    };
    return {
      push(piece) {
        release(' ');
        if (piece.includes(suffix)) held = piece;
        else next.push(piece);
      },
      finish() {
        release('');
        next.finish();
      },
    };
  };

/** CTC: drops a piece equal to the previous one, and the pad token. */
export const ctcPieces =
  (padToken: string, wordDelimiter: string, cleanup: boolean): StageFactory =>
  (next) => {
    let previous: string | null = null;
    return {
      push(piece) {
        if (piece === previous) return;
        previous = piece;
        let text = replaceAll(piece, padToken, '');
        if (cleanup) text = replaceAll(cleanUp(text), wordDelimiter, ' ');
        if (text !== '') next.push(text);
      },
      finish: () => next.finish(),
    };
  };

const BYTE_TOKEN_LENGTH = 6;
const BYTE_TOKEN = /^<0x([\da-fA-F]{2}|\+[\da-fA-F])>$/;

/** The byte of a token such as <0x0A>; null for other tokens. */
export function fallbackByte(token: string): number | null {
  if (token.length !== BYTE_TOKEN_LENGTH || !token.startsWith('<0x')) return null;
  const byte = BYTE_TOKEN.exec(token);
  return byte === null ? null : parseInt(byte[1], 16);
}

/**
 * ByteFallback: decodes a run of byte tokens as UTF-8, or to one U+FFFD per byte if any of it is
 * invalid. No text is final until the run ends.
 */
export class ByteFallbackStage implements Stage {
  private run: number[] = [];
  /** Text of the run's complete characters; null if the run has invalid UTF-8. */
  private text: string | null = '';
  private readonly characters = new Utf8Stream();

  constructor(private readonly next: Stage) {}

  /** The run's text if it ended here; null inside a character or for invalid UTF-8. */
  get heldText(): string | null {
    return this.characters.isBetweenCharacters ? this.text : null;
  }

  push(piece: string): void {
    const byte = fallbackByte(piece);
    if (byte === null) {
      if (this.run.length > 0) this.release();
      this.next.push(piece);
      return;
    }
    this.run.push(byte);
    if (this.text === null) return;
    if (byte < 0x80 && this.characters.isBetweenCharacters) {
      this.text += String.fromCharCode(byte);
      return;
    }
    const characters = this.characters.push(Uint8Array.of(byte));
    // The bytes distinguish an encoded U+FFFD from a replacement of invalid UTF-8.
    const isInvalid = characters.includes(REPLACEMENT) && !this.endsWithReplacement();
    this.text = isInvalid ? null : this.text + characters;
  }

  finish(): void {
    this.release();
    this.next.finish();
  }

  private endsWithReplacement(): boolean {
    const { length } = this.run;
    return [0xef, 0xbf, 0xbd].every((byte, i) => this.run[length - 3 + i] === byte);
  }

  private release(): void {
    const { run, text } = this;
    if (run.length === 0) return;
    this.run = [];
    this.text = '';
    const isValid = this.characters.isBetweenCharacters && text !== null;
    this.characters.finish();
    if (isValid) this.next.push(text);
    else for (let i = 0; i < run.length; i++) this.next.push(REPLACEMENT);
  }
}

/** ByteLevel: joins the pieces' bytes and decodes them as UTF-8. */
export class ByteLevelStage implements Stage {
  private readonly characters = new Utf8Stream();

  constructor(private readonly next: Stage) {}

  push(piece: string): void {
    this.pushBytes(byteLevelBytes(piece), null);
  }

  /** `text`: `bytes` decoded, if they hold only complete characters; else null. */
  pushBytes(bytes: Uint8Array, text: string | null): void {
    if (text !== null && this.characters.isBetweenCharacters) this.next.push(text);
    else this.next.push(this.characters.push(bytes));
  }

  finish(): void {
    this.next.push(this.characters.finish());
    this.next.finish();
  }
}

/** Length of the longest suffix of `text` that is a proper prefix of `pattern`. */
function overlap(text: string, pattern: string): number {
  let length = Math.min(text.length, pattern.length - 1);
  while (length > 0 && !text.endsWith(pattern.slice(0, length))) length--;
  return length;
}

/** Replaces `pattern` in a text; buffers a suffix that may start a match. */
export const replaceText =
  (pattern: string, content: string): StageFactory =>
  (next) => {
    let held = '';
    return {
      push(part) {
        const parts = (held + part).split(pattern);
        const rest = parts[parts.length - 1];
        const kept = overlap(rest, pattern);
        parts[parts.length - 1] = rest.slice(0, rest.length - kept);
        held = rest.slice(rest.length - kept);
        next.push(parts.join(content));
      },
      finish() {
        next.push(held);
        held = '';
        next.finish();
      },
    };
  };

/** Strips a text's beginning and end. */
export const stripText =
  (content: string, start: number, stop: number): StageFactory =>
  (next) => {
    let toStrip = start;
    /** Trailing repetitions of `content`, at most `stop`. */
    let held = '';
    return {
      push(part) {
        if (toStrip === 0 && stop === 0) {
          next.push(part);
          return;
        }
        let text = held + part;
        held = '';
        // `held` is empty while leading text is stripped.
        while (toStrip > 0 && text !== '') {
          if (!text.startsWith(content)) toStrip = 0;
          else {
            text = text.slice(content.length);
            toStrip--;
          }
        }
        const kept = strip(text, content, 0, stop).length;
        held = text.slice(kept);
        next.push(text.slice(0, kept));
      },
      finish() {
        held = '';
        next.finish();
      },
    };
  };

/** Buffers all pieces and passes on their `decode` at the end. */
export const bufferAll =
  (isText: boolean, decode: (pieces: readonly string[]) => string): StageFactory =>
  (next) => {
    let pieces: string[] = [];
    return {
      push: (piece) => void pieces.push(piece),
      finish() {
        next.push(decode(isText ? [pieces.join('')] : pieces));
        pieces = [];
        next.finish();
      },
    };
  };
