/**
 * Decoders of tokenizer.json as streams: each stage takes pieces one by one and hands on what is final. A
 * decoder works on a list of pieces, the tokens, until Fuse or ByteLevel makes one text of them;
 * what comes after takes that text in parts. The arithmetic is that of the `decode_chain` methods
 * in Hugging Face's tokenizers (Rust), which need all the tokens at once.
 */
import { byteLevelBytes } from './byteLevel';
import { Utf8Stream } from './utf8Stream';

/** What stands for bytes that are no UTF-8. */
const REPLACEMENT = '\ufffd';

/** Takes pieces of a list, or parts of one text. */
export interface Stage {
  push(piece: string): void;
  /** No more comes: hands on what was held back. */
  finish(): void;
}

export type StageFactory = (next: Stage) => Stage;

/** All of `text` with `pattern`, which must not be empty, replaced. */
export const replaceAll = (text: string, pattern: string, content: string) =>
  text.includes(pattern) ? text.split(pattern).join(content) : text;

/** WordPiece's and CTC's `cleanup`: one replacement after the other. */
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

/** At most `start` times `content` less at the beginning, and `stop` times at the end. */
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

/** Each piece on its own. */
export const mapPieces =
  (map: (piece: string) => string): StageFactory =>
  (next) => ({ push: (piece) => next.push(map(piece)), finish: () => next.finish() });

/** Each piece, which may be the first. */
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

/** BPEDecoder: the suffix of a word is a space, except in the last piece. */
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

/** CTC: a piece that repeats the one before it, and the pad token, stand for nothing. */
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

/** The byte of a token such as <0x0A>; null of other tokens. */
export function fallbackByte(token: string): number | null {
  if (token.length !== BYTE_TOKEN_LENGTH || !token.startsWith('<0x')) return null;
  const byte = BYTE_TOKEN.exec(token);
  return byte === null ? null : parseInt(byte[1], 16);
}

/**
 * ByteFallback: a run of byte tokens is its text or, when any of it is no UTF-8, U+FFFD for each of
 * its bytes. So nothing of a run is final before it ends.
 */
export class ByteFallbackStage implements Stage {
  private run: number[] = [];
  /** The text of the run's whole characters; null when some of it is broken. */
  private text: string | null = '';
  private readonly characters = new Utf8Stream();

  constructor(private readonly next: Stage) {}

  /** What the run held back would be, if it ended here; null inside a character and when it is broken. */
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
    // U+FFFD is whole characters', too: what bytes they are tells.
    this.text = characters.includes(REPLACEMENT) && !this.isWhole() ? null : this.text + characters;
  }

  finish(): void {
    this.release();
    this.next.finish();
  }

  private isWhole(): boolean {
    const { length } = this.run;
    return [0xef, 0xbf, 0xbd].every((byte, i) => this.run[length - 3 + i] === byte);
  }

  private release(): void {
    const { run, text } = this;
    if (run.length === 0) return;
    this.run = [];
    this.text = '';
    const isWhole = this.characters.isBetweenCharacters && text !== null;
    this.characters.finish();
    if (isWhole) this.next.push(text);
    else for (let i = 0; i < run.length; i++) this.next.push(REPLACEMENT);
  }
}

/** ByteLevel, which makes one text of the pieces' bytes. */
export class ByteLevelStage implements Stage {
  private readonly characters = new Utf8Stream();

  constructor(private readonly next: Stage) {}

  push(piece: string): void {
    this.pushBytes(byteLevelBytes(piece), null);
  }

  /** `text`: what the bytes are where they begin with a character, if they also end with one. */
  pushBytes(bytes: Uint8Array, text: string | null): void {
    if (text !== null && this.characters.isBetweenCharacters) this.next.push(text);
    else this.next.push(this.characters.push(bytes));
  }

  finish(): void {
    this.next.push(this.characters.finish());
    this.next.finish();
  }
}

/** Length of the longest end of `text` that `pattern` begins with and is longer than. */
function overlap(text: string, pattern: string): number {
  let length = Math.min(text.length, pattern.length - 1);
  while (length > 0 && !text.endsWith(pattern.slice(0, length))) length--;
  return length;
}

/** Replaces `pattern` in a text; holds back what may be the beginning of one. */
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
    /** The text's end, if it is `content` alone: `stop` times at most. */
    let held = '';
    return {
      push(part) {
        if (toStrip === 0 && stop === 0) {
          next.push(part);
          return;
        }
        let text = held + part;
        held = '';
        // What was held back has passed the beginning.
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

/** Collects all that comes, and hands on what `decode` makes of it in the end. */
export const whole =
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
