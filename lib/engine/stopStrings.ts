/** Incremental stop string matching. */

/**
 * Matches all stop strings of a request at once (Aho and Corasick 1975). A node is a prefix of some
 * stop string; the current node is the longest one that the text ends with. The cost per character
 * is independent of the number and length of strings.
 */
class StopStringAutomaton {
  /** By node, the root first: child nodes by UTF-16 code unit. */
  private readonly children = [new Map<number, number>()];
  /** By node: its length, and its longest proper suffix that is a node. */
  readonly depth: number[] = [0];
  readonly suffix: number[] = [0];
  /** By node: whether it is a stop string, and whether it is or ends with one. */
  readonly isStop: boolean[] = [false];
  /** By node that is a stop string: the string. */
  readonly stopString = new Map<number, string>();
  readonly endsStop: boolean[] = [false];

  constructor(stop: readonly string[]) {
    for (const string of stop) this.insert(string);
    this.linkSuffixes();
  }

  private insert(string: string): void {
    let node = 0;
    for (let i = 0; i < string.length; i++) {
      const unit = string.charCodeAt(i);
      let child = this.children[node].get(unit);
      if (child === undefined) {
        child = this.children.push(new Map()) - 1;
        this.depth.push(i + 1);
        this.suffix.push(0);
        this.isStop.push(false);
        this.endsStop.push(false);
        this.children[node].set(unit, child);
      }
      node = child;
    }
    this.isStop[node] = this.endsStop[node] = true;
    this.stopString.set(node, string);
  }

  /** Breadth first: a node's suffix is shorter than the node. */
  private linkSuffixes(): void {
    const nodes = [...this.children[0].values()];
    for (let i = 0; i < nodes.length; i++) {
      for (const [unit, child] of this.children[nodes[i]]) {
        const suffix = this.next(this.suffix[nodes[i]], unit);
        this.suffix[child] = suffix;
        if (this.endsStop[suffix]) this.endsStop[child] = true;
        nodes.push(child);
      }
    }
  }

  /** The node after one more code unit. */
  next(node: number, unit: number): number {
    for (;;) {
      const child = this.children[node].get(unit);
      if (child !== undefined) return child;
      if (node === 0) return 0;
      node = this.suffix[node];
    }
  }

  /** Whether the node is a proper prefix of a stop string. */
  hasChildren(node: number): boolean {
    return this.children[node].size > 0;
  }
}

/** Cached by list: a call's prompts and samples share their parameters. */
const automatons = new WeakMap<readonly string[], StopStringAutomaton>();

function automatonOf(stop: readonly string[]): StopStringAutomaton {
  let automaton = automatons.get(stop);
  if (automaton === undefined) automatons.set(stop, (automaton = new StopStringAutomaton(stop)));
  return automaton;
}

/**
 * Feeds text to an automaton. Hidden parts are matched but are not in the output. Positions are in
 * code units, of all text or of the visible text alone.
 */
class Reader {
  node = 0;
  private length = 0;
  /** Hidden parts that a match may still include, and the total length of earlier ones. */
  private readonly hidden: { start: number; end: number }[] = [];
  private numHiddenBefore = 0;

  constructor(private readonly automaton: StopStringAutomaton) {}

  /** A copy with the same state. */
  copy(): Reader {
    const copy = new Reader(this.automaton);
    copy.node = this.node;
    copy.length = this.length;
    copy.hidden.push(...this.hidden);
    copy.numHiddenBefore = this.numHiddenBefore;
    return copy;
  }

  read(unit: number): void {
    this.node = this.automaton.next(this.node, unit);
    this.length++;
  }

  /** Reads a hidden part; stop strings match it whole or not at all. */
  readHidden(text: string): void {
    this.hidden.push({ start: this.length, end: this.length + text.length });
    for (let i = 0; i < text.length; i++) this.read(text.charCodeAt(i));
  }

  /** Visible position where the longest stop string ending here starts; Infinity if none. */
  get stopStart(): number {
    const node = this.stopNode();
    return node === null ? Infinity : this.visible(this.length - this.automaton.depth[node]);
  }

  /** The longest stop string ending here; null if none. */
  get stopString(): string | null {
    const node = this.stopNode();
    return node === null ? null : (this.automaton.stopString.get(node) ?? null);
  }

  private stopNode(): number | null {
    const { depth, suffix, isStop, endsStop } = this.automaton;
    for (let node = this.node; endsStop[node]; node = suffix[node]) {
      if (isStop[node] && this.isWhole(depth[node])) return node;
    }
    return null;
  }

  /** Visible position where the longest stop string prefix ending here starts. */
  get prefixStart(): number {
    const { depth, suffix } = this.automaton;
    let { node } = this;
    while (node > 0 && !(this.automaton.hasChildren(node) && this.isWhole(depth[node]))) {
      node = suffix[node];
    }
    this.dropHiddenBefore(this.length - depth[this.node]);
    return this.visible(this.length - depth[node]);
  }

  /** Whether the last `depth` code units do not start within a hidden part. */
  private isWhole(depth: number): boolean {
    const at = this.length - depth;
    return !this.hidden.some(({ start, end }) => start < at && at < end);
  }

  private visible(at: number): number {
    let numHidden = this.numHiddenBefore;
    for (const { start, end } of this.hidden)
      if (start < at) numHidden += Math.min(end, at) - start;
    return at - numHidden;
  }

  private dropHiddenBefore(at: number): void {
    while (this.hidden.length > 0 && this.hidden[0].end <= at) {
      const { start, end } = this.hidden.shift() as { start: number; end: number };
      this.numHiddenBefore += end - start;
    }
  }
}

export class StopStringMatcher {
  /** Readers of the visible text and, once there is hidden text, of all text. */
  private readonly visible: Reader;
  private all: Reader | null = null;
  /** Visible text held back because it may be part of a stop string. */
  private held = '';
  /** Length of the visible text already emitted. */
  private numEmitted = 0;
  private found: string | null = null;

  /** `stop` must not change. */
  constructor(
    stop: readonly string[],
    /** Whether to emit the stop string itself. */
    private readonly includeStopString: boolean,
  ) {
    this.visible = new Reader(automatonOf(stop));
  }

  /** Length of the visible text that is held back. */
  get numHeld(): number {
    return this.held.length;
  }

  /** The stop string found; null if none yet. */
  get matched(): string | null {
    return this.found;
  }

  /**
   * Appends text and returns the text that can be emitted: up to the first complete stop string
   * (the longest if several end there), else all that cannot be part of one. With `counts` false, a
   * stop string that ends in `piece` is ignored, but one that starts there and ends later is not.
   * The result is independent of how the text is split.
   */
  push(piece: string, counts = true): string {
    const { visible, all } = this;
    const before = this.numEmitted + this.held.length;
    this.held += piece;
    for (let i = 0; i < piece.length; i++) {
      const unit = piece.charCodeAt(i);
      visible.read(unit);
      all?.read(unit);
      if (!counts) continue;
      const start = Math.min(visible.stopStart, all === null ? Infinity : all.stopStart);
      if (start < Infinity) return this.stop(start, before + i + 1);
    }
    return this.emitSafe();
  }

  /**
   * Appends a special token's text, which is not emitted and matches only as a whole. Stop strings
   * may also match the text around it as if it were absent.
   */
  pushHidden(text: string, counts = true): string {
    if (text === '') return '';
    this.all ??= this.visible.copy();
    this.all.readHidden(text);
    const start = counts ? this.all.stopStart : Infinity;
    if (start < Infinity) return this.stop(start, this.numEmitted + this.held.length);
    return this.emitSafe();
  }

  /** Whether a stop string would end in `text` if it came next. Changes nothing. */
  wouldMatch(text: string): boolean {
    if (text === '') return false;
    const readers = [this.visible.copy(), ...(this.all === null ? [] : [this.all.copy()])];
    for (let i = 0; i < text.length; i++) {
      for (const reader of readers) {
        reader.read(text.charCodeAt(i));
        if (reader.stopStart < Infinity) return true;
      }
    }
    return false;
  }

  /** Returns the held-back text once the output is complete. */
  flush(): string {
    const { held } = this;
    this.held = '';
    return held;
  }

  /** Handles a stop string from `start` to `end` of the visible text. */
  private stop(start: number, end: number): string {
    const text = this.held.slice(0, (this.includeStopString ? end : start) - this.numEmitted);
    // The reader that found the earlier start.
    const readers = this.all === null ? [this.visible] : [this.visible, this.all];
    this.found = readers.find((reader) => reader.stopStart === start)?.stopString ?? null;
    this.held = '';
    return text;
  }

  private emitSafe(): string {
    const safe = Math.min(
      this.visible.prefixStart,
      this.all === null ? Infinity : this.all.prefixStart,
    );
    const text = this.held.slice(0, safe - this.numEmitted);
    this.held = this.held.slice(text.length);
    this.numEmitted += text.length;
    return text;
  }
}
