/** Deterministic automata over characters, for intersections and complements of regular languages. */
import { InvalidRequestError } from '../errors';
import {
  ANY_CHARACTER,
  type CodeRange,
  complementRanges,
  type Expression,
  intersectRanges,
  MAX_CODE_POINT,
  set,
} from './expression';

/** Most states of an automaton, and most positions of the expression that it is made of. */
const MAX_STATES = 8192;
const MAX_POSITIONS = 65_536;

interface Edge {
  readonly ranges: readonly CodeRange[];
  readonly to: number;
}

interface State {
  readonly accepts: boolean;
  /** Of disjoint ranges; other characters lead nowhere. */
  readonly edges: readonly Edge[];
}

/** A position of an expression: edges that read a character, and those that read nothing. */
interface Position {
  reads: { ranges: readonly CodeRange[]; to: number }[];
  free: number[];
}

function tooLarge(where: string): InvalidRequestError {
  return new InvalidRequestError(
    `${where}: too large to combine with other conditions; its automaton has more than ${MAX_STATES} states`,
  );
}

/** Thompson's construction. */
class Positions {
  readonly list: Position[] = [];

  constructor(private readonly where: string) {}

  add(): number {
    if (this.list.length >= MAX_POSITIONS) throw tooLarge(this.where);
    return this.list.push({ reads: [], free: [] }) - 1;
  }

  /** Adds `expression` from position `from`; returns its end. */
  append(expression: Expression, from: number): number {
    switch (expression.kind) {
      case 'text': {
        let at = from;
        for (const character of expression.text) {
          const code = character.codePointAt(0) as number;
          const to = this.add();
          this.list[at].reads.push({ ranges: [[code, code]], to });
          at = to;
        }
        return at;
      }
      case 'set': {
        const to = this.add();
        this.list[from].reads.push({ ranges: expression.ranges, to });
        return to;
      }
      case 'sequence':
        return expression.parts.reduce((at, part) => this.append(part, at), from);
      case 'choice': {
        const end = this.add();
        for (const option of expression.options) {
          const start = this.add();
          this.list[from].free.push(start);
          this.list[this.append(option, start)].free.push(end);
        }
        return end;
      }
      case 'repeat':
        return this.repetition(expression, from);
      case 'rule':
      case 'automaton':
        throw new TypeError('only a regular expression becomes an automaton');
    }
  }

  private repetition(
    { body, min, max }: Extract<Expression, { kind: 'repeat' }>,
    from: number,
  ): number {
    let at = from;
    for (let i = 0; i < min; i++) at = this.append(body, at);
    if (max === null) {
      const loop = this.add();
      this.list[at].free.push(loop);
      const start = this.add();
      this.list[loop].free.push(start);
      this.list[this.append(body, start)].free.push(loop);
      const end = this.add();
      this.list[loop].free.push(end);
      return end;
    }
    const end = this.add();
    for (let i = min; i < max; i++) {
      this.list[at].free.push(end);
      const start = this.add();
      this.list[at].free.push(start);
      at = this.append(body, start);
    }
    this.list[at].free.push(end);
    return end;
  }
}

/** Divides ranges into pieces of characters that are in the same ones of them. */
function pieces(all: readonly (readonly CodeRange[])[]): CodeRange[] {
  const starts = new Set<number>();
  for (const ranges of all) {
    for (const [from, to] of ranges) starts.add(from).add(to + 1);
  }
  const sorted = [...starts].sort((a, b) => a - b);
  return sorted.map((from, i) => [from, (sorted[i + 1] ?? MAX_CODE_POINT + 1) - 1] as const);
}

const contains = (ranges: readonly CodeRange[], code: number) =>
  ranges.some(([from, to]) => code >= from && code <= to);

export class Dfa {
  private constructor(private readonly states: readonly State[]) {}

  /** Throws InvalidRequestError if it becomes too large; `where` begins the message. */
  static from(expression: Expression, where: string): Dfa {
    const positions = new Positions(where);
    const start = positions.add();
    const end = positions.append(expression, start);
    const closure = (from: Iterable<number>): number[] => {
      const seen = new Set(from);
      for (const position of seen) for (const to of positions.list[position].free) seen.add(to);
      return [...seen].sort((a, b) => a - b);
    };
    return Dfa.explore(where, closure([start]), (set) => {
      const reads = set.flatMap((position) => positions.list[position].reads);
      const byTargets = new Map<string, { ranges: CodeRange[]; to: number[] }>();
      for (const [from, to] of pieces(reads.map(({ ranges }) => ranges))) {
        const targets = reads.filter(({ ranges }) => contains(ranges, from));
        if (targets.length === 0) continue;
        const next = closure(targets.map((read) => read.to));
        const key = next.join();
        const found = byTargets.get(key);
        if (found === undefined) byTargets.set(key, { ranges: [[from, to]], to: next });
        else found.ranges.push([from, to]);
      }
      return { accepts: set.includes(end), edges: [...byTargets.values()] };
    });
  }

  /** Builds the automaton of all states reachable from `start`, which `expand` describes. */
  private static explore(
    where: string,
    start: readonly number[],
    expand: (state: readonly number[]) => {
      accepts: boolean;
      edges: { ranges: readonly CodeRange[]; to: readonly number[] }[];
    },
  ): Dfa {
    const ids = new Map<string, number>([[start.join(), 0]]);
    const queue = [start];
    const states: State[] = [];
    for (let i = 0; i < queue.length; i++) {
      const { accepts, edges } = expand(queue[i]);
      states.push({
        accepts,
        edges: edges.map(({ ranges, to }) => {
          const key = to.join();
          let id = ids.get(key);
          if (id === undefined) {
            id = queue.push(to) - 1;
            ids.set(key, id);
            if (queue.length > MAX_STATES) throw tooLarge(where);
          }
          return { ranges, to: id };
        }),
      });
    }
    return new Dfa(states).trimmed();
  }

  /** Texts of both. */
  intersect(other: Dfa, where: string): Dfa {
    return Dfa.explore(where, [0, 0], ([a, b]) => {
      const edges: { ranges: CodeRange[]; to: number[] }[] = [];
      for (const left of this.states[a].edges) {
        for (const right of other.states[b].edges) {
          const ranges = intersectRanges(left.ranges, right.ranges);
          if (ranges.length > 0) edges.push({ ranges, to: [left.to, right.to] });
        }
      }
      return { accepts: this.states[a].accepts && other.states[b].accepts, edges };
    });
  }

  /** All other texts. */
  complement(): Dfa {
    const sink = this.states.length;
    const states: State[] = this.states.map(({ accepts, edges }) => {
      const rest = complementRanges(edges.flatMap(({ ranges }) => ranges));
      return {
        accepts: !accepts,
        edges: rest.length > 0 ? [...edges, { ranges: rest, to: sink }] : edges,
      };
    });
    states.push({ accepts: true, edges: [{ ranges: ANY_CHARACTER, to: sink }] });
    return new Dfa(states).trimmed();
  }

  get isEmpty(): boolean {
    return !this.states[0].accepts && this.states[0].edges.length === 0;
  }

  matches(text: string): boolean {
    let state = 0;
    for (const character of text) {
      const code = character.codePointAt(0) as number;
      const edge = this.states[state].edges.find(({ ranges }) => contains(ranges, code));
      if (edge === undefined) return false;
      state = edge.to;
    }
    return this.states[state].accepts;
  }

  /** Without states that lead to no text. */
  private trimmed(): Dfa {
    const { states } = this;
    const before: number[][] = states.map(() => []);
    for (const [i, { edges }] of states.entries()) for (const { to } of edges) before[to].push(i);
    const live = new Set([...states.keys()].filter((i) => states[i].accepts));
    for (const state of live) for (const previous of before[state]) live.add(previous);
    const kept = [...states.keys()].filter((i) => i === 0 || live.has(i));
    const ids = new Map(kept.map((old, id) => [old, id]));
    return new Dfa(
      kept.map((i) => ({
        accepts: states[i].accepts,
        edges: states[i].edges
          .filter(({ to }) => live.has(to))
          .map(({ ranges, to }) => ({ ranges, to: ids.get(to) as number })),
      })),
    );
  }

  /** As an expression; `write` gives the text that stands for a character of the ranges. */
  expression(write: (ranges: readonly CodeRange[]) => Expression = set): Expression {
    return {
      kind: 'automaton',
      states: this.states.map(({ accepts, edges }) => ({
        accepts,
        edges: edges.map(({ ranges, to }) => ({ on: write(ranges), to })),
      })),
    };
  }
}
