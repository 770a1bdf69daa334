/**
 * Text that arrives in pieces, for parsers that are generators: a parser yields where it needs more, and
 * reads the same whatever the pieces are.
 */

/** Yields when more text is needed; returns its result. */
export type Parsing<T = void> = Generator<void, T, void>;

type Emit = (text: string) => void;

const SPACE = ' \t\r\n';

export class Cursor {
  private buffer = '';
  private at = 0;
  /** Where the part of `markedText` in the buffer begins; Infinity: there is no mark. */
  private mark = 0;
  /** The part of `markedText` that the buffer has no more: what is searched stays short. */
  private past = '';
  private isEnded = false;

  /** Appends text; the parser goes on when it is resumed. */
  push(text: string): void {
    if (this.mark !== Infinity) {
      this.past += this.buffer.slice(this.mark, this.at);
      this.mark = 0;
    }
    this.buffer = this.buffer.slice(this.at) + text;
    this.at = 0;
  }

  end(): void {
    this.isEnded = true;
  }

  setMark(): void {
    this.mark = this.at;
    this.past = '';
  }

  /** What was read since the mark. */
  get markedText(): string {
    return this.past + this.buffer.slice(this.mark, this.at);
  }

  rewind(): void {
    this.buffer = this.past + this.buffer.slice(this.mark);
    this.past = '';
    this.mark = this.at = 0;
  }

  /** Lets text behind the mark be dropped. */
  releaseMark(): void {
    this.mark = Infinity;
    this.past = '';
  }

  /** The next character; '' at the end. */
  *peek(): Parsing<string> {
    while (this.at >= this.buffer.length && !this.isEnded) yield;
    return this.buffer.charAt(this.at);
  }

  /** Reads `text` if it is next. */
  *takes(text: string): Parsing<boolean> {
    for (;;) {
      const next = this.buffer.slice(this.at, this.at + text.length);
      if (next === text) {
        this.at += text.length;
        return true;
      }
      if (this.isEnded || !text.startsWith(next)) return false;
      yield;
    }
  }

  *skipSpace(): Parsing {
    for (;;) {
      const next = yield* this.peek();
      if (next === '' || !SPACE.includes(next)) return;
      this.at++;
    }
  }

  /**
   * Reads to the first of `stops`, which it reads too and returns, and sets the mark before it; null at
   * the end. `emit` gets the text in between as soon as no stop can begin in it.
   */
  *until(stops: readonly string[], emit: Emit): Parsing<string | null> {
    let searched = this.at;
    for (;;) {
      const found = firstOf(this.buffer, stops, searched);
      if (found !== null) {
        this.emit(found.index, emit);
        this.setMark();
        this.at += found.stop.length;
        return found.stop;
      }
      this.emit(this.isEnded ? this.buffer.length : heldFrom(this.buffer, stops, this.at), emit);
      if (this.isEnded) return null;
      this.releaseMark();
      yield;
      searched = this.at;
    }
  }

  /** As `until`, with the text in between; keeps the mark. */
  *textUntil(stops: readonly string[]): Parsing<{ text: string; stop: string | null }> {
    let text = '';
    const read = (end: number) => {
      text += this.buffer.slice(this.at, end);
      this.at = end;
    };
    for (;;) {
      const found = firstOf(this.buffer, stops, this.at);
      if (found !== null) {
        read(found.index);
        this.at += found.stop.length;
        return { text, stop: found.stop };
      }
      read(this.isEnded ? this.buffer.length : heldFrom(this.buffer, stops, this.at));
      if (this.isEnded) return { text, stop: null };
      yield;
    }
  }

  /** Reads the last `count` characters again. */
  stepBack(count: number): void {
    this.at -= count;
  }

  /** A JSON string; null if there is none, or it has no end. */
  *jsonString(): Parsing<string | null> {
    if ((yield* this.peek()) !== '"') return null;
    let raw = '';
    if (!(yield* this.jsonValue((text) => (raw += text)))) return null;
    try {
      return JSON.parse(raw) as string;
    } catch {
      return null;
    }
  }

  /** Reads a JSON value to its end by its brackets and quotes; returns whether it has one. */
  *jsonValue(emit: Emit): Parsing<boolean> {
    const first = yield* this.peek();
    if (first === '' || ',:]}'.includes(first)) return false;
    const isScalar = !'"{['.includes(first);
    let depth = 0;
    let isString = false;
    let isEscaped = false;
    let end = this.at;
    for (;;) {
      for (; end < this.buffer.length; end++) {
        const character = this.buffer[end];
        if (isScalar) {
          if (!',]}<; \t\r\n'.includes(character)) continue;
          this.emit(end, emit);
          return true;
        }
        if (isEscaped) isEscaped = false;
        else if (isString && character === '\\') isEscaped = true;
        else if (character === '"') isString = !isString;
        else if (isString) continue;
        else if (character === '{' || character === '[') depth++;
        else if (character === '}' || character === ']') depth--;
        if (depth > 0 || isString) continue;
        this.emit(end + 1, emit);
        return true;
      }
      this.emit(end, emit);
      if (this.isEnded) return isScalar;
      yield;
      end = this.at;
    }
  }

  private emit(end: number, emit: Emit): void {
    if (end > this.at) emit(this.buffer.slice(this.at, end));
    this.at = end;
  }
}

function firstOf(
  buffer: string,
  stops: readonly string[],
  from: number,
): { index: number; stop: string } | null {
  let first: { index: number; stop: string } | null = null;
  for (const stop of stops) {
    const index = buffer.indexOf(stop, from);
    if (index >= 0 && (first === null || index < first.index)) first = { index, stop };
  }
  return first;
}

/** Where a stop may have begun that is not complete yet; the buffer's end if none has. */
function heldFrom(buffer: string, stops: readonly string[], from: number): number {
  const longest = Math.max(0, ...stops.map(({ length }) => length)) - 1;
  for (let at = Math.max(from, buffer.length - longest); at < buffer.length; at++) {
    const rest = buffer.slice(at);
    if (stops.some((stop) => stop.startsWith(rest))) return at;
  }
  return buffer.length;
}
