/** Looks for stop strings in text that comes piece by piece. */

/**
 * All stop strings of a request at once (Aho and Corasick 1975). A node stands for the beginning of
 * some stop string; after any text the automaton is at the longest one that the text ends with. Each
 * character costs the same, however many and long the strings are.
 */
class StopStringAutomaton {
  /** By node, the root first: the nodes that one more UTF-16 code unit leads to. */
  private readonly children = [new Map<number, number>()];
  /** By node, both: its length; the longest other node that it ends with. */
  readonly depth: number[] = [0];
  readonly suffix: number[] = [0];
  /** By node, both: whether it is a whole stop string; whether it is or ends with one. */
  readonly isStop: boolean[] = [false];
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

  /** Whether some stop string goes on after this node. */
  goesOn(node: number): boolean {
    return this.children[node].size > 0;
  }
}

/** One for each list: a call's prompts and their samples share their parameters. */
const automatons = new WeakMap<readonly string[], StopStringAutomaton>();

function automatonOf(stop: readonly string[]): StopStringAutomaton {
  let automaton = automatons.get(stop);
  if (automaton === undefined) automatons.set(stop, (automaton = new StopStringAutomaton(stop)));
  return automaton;
}

/**
 * Text that an automaton reads. Parts of it may be hidden: they are looked at, but are not in the
 * output. Positions are in code units: of all text, and of the visible text alone.
 */
class Reader {
  node = 0;
  private length = 0;
  /** Hidden parts that a stop string may still reach back to, and how long those before are. */
  private readonly hidden: { start: number; end: number }[] = [];
  private numHiddenBefore = 0;

  constructor(private readonly automaton: StopStringAutomaton) {}

  /** Another at the same place of the text. */
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

  /** Reads a part of which no stop string is to match less than the whole. */
  readHidden(text: string): void {
    this.hidden.push({ start: this.length, end: this.length + text.length });
    for (let i = 0; i < text.length; i++) this.read(text.charCodeAt(i));
  }

  /** Where, in visible text, the longest stop string that ends here begins; Infinity when none does. */
  get stopStart(): number {
    const { depth, suffix, isStop, endsStop } = this.automaton;
    for (let node = this.node; endsStop[node]; node = suffix[node]) {
      if (isStop[node] && this.isWhole(depth[node])) return this.visible(this.length - depth[node]);
    }
    return Infinity;
  }

  /** Where, in visible text, the longest beginning of a stop string stands that the text ends with. */
  get beginningStart(): number {
    const { depth, suffix } = this.automaton;
    let { node } = this;
    while (node > 0 && !(this.automaton.goesOn(node) && this.isWhole(depth[node]))) {
      node = suffix[node];
    }
    this.forgetHiddenBefore(this.length - depth[this.node]);
    return this.visible(this.length - depth[node]);
  }

  /** Whether the last `depth` code units begin outside of all hidden parts, or where one begins. */
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

  private forgetHiddenBefore(at: number): void {
    while (this.hidden.length > 0 && this.hidden[0].end <= at) {
      const { start, end } = this.hidden.shift() as { start: number; end: number };
      this.numHiddenBefore += end - start;
    }
  }
}

export class StopStringMatcher {
  /** Of the visible text, and, once there is hidden text, of all text. */
  private readonly visible: Reader;
  private all: Reader | null = null;
  /** Visible text that may turn out to be part of a stop string. */
  private held = '';
  /** Length of the visible text that was given out. */
  private numGiven = 0;
  private found = false;

  /** `stop` must not change. */
  constructor(
    stop: readonly string[],
    /** Whether the stop string itself is given out. */
    private readonly includeStopString: boolean,
  ) {
    this.visible = new Reader(automatonOf(stop));
  }

  get matched(): boolean {
    return this.found;
  }

  /**
   * Takes more text and returns what can be given out: all up to the first stop string to be
   * complete (the longest, if several end there), else all that cannot be part of one. A stop string
   * that ends in text that does not count is none, one that begins there and ends later is. The
   * result does not depend on how the text was cut into pieces.
   */
  push(piece: string, counts = true): string {
    const { visible, all } = this;
    const before = this.numGiven + this.held.length;
    this.held += piece;
    for (let i = 0; i < piece.length; i++) {
      const unit = piece.charCodeAt(i);
      visible.read(unit);
      all?.read(unit);
      if (!counts) continue;
      const start = Math.min(visible.stopStart, all === null ? Infinity : all.stopStart);
      if (start < Infinity) return this.stop(start, before + i + 1);
    }
    return this.giveOut();
  }

  /**
   * Takes text that is not given out, a special token's, and is found by a stop string that has the
   * whole of it. Text before and after it is found as if it were not there, too.
   */
  pushHidden(text: string, counts = true): string {
    if (text === '') return '';
    this.all ??= this.visible.copy();
    this.all.readHidden(text);
    const start = counts ? this.all.stopStart : Infinity;
    if (start < Infinity) return this.stop(start, this.numGiven + this.held.length);
    return this.giveOut();
  }

  /** Whether a stop string would end in `text` if that came next. It changes nothing. */
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

  /** The text is complete: what was held back. */
  flush(): string {
    const { held } = this;
    this.held = '';
    return held;
  }

  /** A stop string stands from `start` to `end` of the visible text. */
  private stop(start: number, end: number): string {
    const text = this.held.slice(0, (this.includeStopString ? end : start) - this.numGiven);
    this.found = true;
    this.held = '';
    return text;
  }

  private giveOut(): string {
    const safe = Math.min(
      this.visible.beginningStart,
      this.all === null ? Infinity : this.all.beginningStart,
    );
    const text = this.held.slice(0, safe - this.numGiven);
    this.held = this.held.slice(text.length);
    this.numGiven += text.length;
    return text;
  }
}
