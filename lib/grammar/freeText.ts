/** Free text up to texts that end or change it. */
import {
  ANY_CHARACTER,
  type AutomatonState,
  choice,
  complementRanges,
  type Expression,
  EMPTY,
  rangesOf,
  sequence,
  set,
  text,
} from './expression';

/** A text that free text does not contain, unless `after` follows it. */
export interface Stop {
  readonly text: string;
  /** Text after which the free text begins anew; null: the stop does not occur. */
  readonly after: Expression | null;
}

/** A special token that may stand in free text. */
export interface TokenStop {
  readonly text: Expression;
  readonly after: Expression;
}

/**
 * Free text in which each stop is followed by its `after`. The automaton is that of Aho and Corasick
 * (1975) over characters: a state is the longest beginning of a stop with which the text ends. Of stops
 * of which one begins with another, only the shorter one occurs.
 */
export function freeText(stops: readonly Stop[], tokens: readonly TokenStop[] = []): Expression {
  const nodes = [''];
  const ids = new Map([['', 0]]);
  const texts = stops.map(({ text: own }) => Array.from(own));
  for (const characters of texts) {
    for (let length = 1; length < characters.length; length++) {
      const prefix = characters.slice(0, length).join('');
      if (!ids.has(prefix)) ids.set(prefix, nodes.push(prefix) - 1);
    }
  }
  const alphabet = [...new Set(texts.flat())];
  const others = complementRanges(alphabet.flatMap((character) => rangesOf(character)));
  const states = nodes.map((node): AutomatonState => {
    const edges: { on: Expression; to: number }[] = [];
    const plain = new Map<number, string>();
    for (const character of alphabet) {
      const next = node + character;
      const ended = stops.filter((stop) => next.endsWith(stop.text));
      if (ended.length === 0) {
        const to = longestSuffix(next, ids);
        plain.set(to, (plain.get(to) ?? '') + character);
        continue;
      }
      const after = ended.flatMap((stop) => (stop.after === null ? [] : [stop.after]));
      if (after.length > 0) edges.push({ on: sequence(text(character), choice(after)), to: 0 });
    }
    for (const [to, characters] of plain) edges.push({ on: set(rangesOf(characters)), to });
    if (others.length > 0) edges.push({ on: set(others), to: 0 });
    for (const token of tokens) edges.push({ on: sequence(token.text, token.after), to: 0 });
    return { accepts: true, edges };
  });
  return { kind: 'automaton', states };
}

function longestSuffix(content: string, ids: ReadonlyMap<string, number>): number {
  for (let start = 0; ; start++) {
    const id = ids.get(content.slice(start));
    if (id !== undefined) return id;
  }
}

/** Any text that begins with none of `prefixes`. */
export function textNotStarting(prefixes: readonly string[]): Expression {
  const anything: Expression = { kind: 'repeat', body: set(ANY_CHARACTER), min: 0, max: null };
  const at = (rests: readonly string[]): Expression => {
    const firsts = new Map<string, string[]>();
    for (const rest of rests) {
      const [first] = rest;
      firsts.set(first, [...(firsts.get(first) ?? []), rest.slice(first.length)]);
    }
    const others = complementRanges([...firsts.keys()].flatMap((first) => rangesOf(first)));
    const options: Expression[] = [EMPTY, sequence(set(others), anything)];
    for (const [first, next] of firsts) {
      if (!next.includes('')) options.push(sequence(text(first), at(next)));
    }
    return choice(options);
  };
  return at(prefixes);
}
