/** Looks for stop strings in text that comes piece by piece. */
export class StopStringMatcher {
  /** The text's end that may turn out to be the beginning of a stop string. */
  private held = '';
  private found = false;

  constructor(
    private readonly stop: readonly string[],
    /** Whether the stop string itself is given out. */
    private readonly includeStopString: boolean,
  ) {}

  get matched(): boolean {
    return this.found;
  }

  /** Whether a stop string would end in `text`, if that came next: where only its end is new. */
  wouldMatch(text: string): boolean {
    const longest = Math.max(0, ...this.stop.map((stop) => stop.length));
    const end = (this.held + text.slice(-2 * longest)).slice(-2 * longest);
    return this.stop.some((stop) => end.includes(stop));
  }

  /**
   * Takes more text and returns what can be given out: all up to the first stop string to be
   * complete (the longest, if several end there), else all that cannot be part of one. The result
   * does not depend on how the text was cut into pieces.
   */
  push(piece: string): string {
    const text = this.held + piece;
    let start = 0;
    let end = Infinity;
    for (const stop of this.stop) {
      const at = text.indexOf(stop);
      if (at < 0 || at + stop.length > end) continue;
      start = at + stop.length < end ? at : Math.min(at, start);
      end = at + stop.length;
    }
    if (end < Infinity) {
      this.found = true;
      this.held = '';
      return text.slice(0, this.includeStopString ? end : start);
    }
    const safe = text.length - Math.max(...this.stop.map((stop) => overlap(text, stop)));
    this.held = text.slice(safe);
    return text.slice(0, safe);
  }

  /** The text is complete: what was held back. */
  flush(): string {
    const { held } = this;
    this.held = '';
    return held;
  }
}

/** Length of the longest end of `text` that `stop` begins with and does not end with. */
function overlap(text: string, stop: string): number {
  let length = Math.min(text.length, stop.length - 1);
  while (length > 0 && !text.endsWith(stop.slice(0, length))) length--;
  return length;
}
