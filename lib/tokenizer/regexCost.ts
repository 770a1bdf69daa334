/**
 * Bounds the backtracking of a regular expression in tokenizer.json. Oniguruma stops after 10^7 retries
 * of one match, and Hugging Face's library then panics. Only expressions that backtrack at most
 * linearly are accepted: a conservative form of the criterion of Weideman, van der Merwe, Berglund and
 * Watson 2016 that no text can be split in several ways between two quantifiers.
 */
import { alternativesOf, type Atom, type Node, parseRegex, RegexError } from './regexParser';

export { RegexError };

/** Oniguruma's ONIG_DEFAULT_RETRY_LIMIT_IN_MATCH. */
const MAX_RETRIES = 10_000_000;

/** Most ways to match a text of constant length. */
const MAX_WAYS = 1000;

/** More repetitions than this count as unbounded. */
const MAX_BOUNDED = 100;

export interface RegexCost {
  /** Whether it can match an empty string. */
  matchesEmpty: boolean;
  /** Longest text, in characters, that cannot exceed the retry limit; Infinity without backtracking. */
  maxTextLength: number;
  /** Whether it has an unbounded lookahead, which makes a search quadratic in the text. */
  looksFar: boolean;
}

/** A backtracking point: it may release characters when a later node fails to match. */
interface Choice {
  atoms: readonly Atom[] | null;
  /** Infinity for any number of characters. */
  ways: number;
}

/**
 * The cost of `pattern`, in Oniguruma's syntax. Throws RegexError with the reason if it is more than
 * linear in the text, or if the pattern's syntax is not supported here.
 */
export function regexCost(pattern: string): RegexCost {
  const root = parseRegex(pattern);
  const analysis = new Analysis();
  analysis.alternatives(root, [], false);
  const { retries, looksFar } = analysis;
  return {
    matchesEmpty: root.some((nodes) => nodes.every(isNullable)),
    maxTextLength: retries === 0 ? Infinity : Math.floor(MAX_RETRIES / (retries + 1)),
    looksFar,
  };
}

function isNullable(node: Node): boolean {
  switch (node.kind) {
    case 'atom':
      return node.min === 0;
    case 'assertion':
    case 'look':
      return true;
    case 'group':
      return node.min === 0 || node.alternatives.some((nodes) => nodes.every(isNullable));
  }
}

/** Whether a match can fail at `node`. */
function isFallible(node: Node): boolean {
  return node.kind === 'assertion' || node.kind === 'look' || !isNullable(node);
}

/** The atoms that a match of `nodes` may begin with; null if unknown. */
function firstAtoms(nodes: readonly Node[]): Atom[] | null {
  const first: Atom[] = [];
  for (const node of nodes) {
    if (node.kind === 'assertion' || node.kind === 'look') continue;
    if (node.kind === 'atom') first.push(node);
    else {
      for (const alternative of node.alternatives) {
        const inner = firstAtoms(alternative);
        if (inner === null) return null;
        first.push(...inner);
      }
    }
    if (!isNullable(node)) return first;
  }
  return null;
}

/** All atoms in `nodes`, at any depth. */
function allAtoms(nodes: readonly Node[]): Atom[] {
  return nodes.flatMap((node) => {
    if (node.kind === 'atom') return [node];
    return alternativesOf(node).flatMap(allAtoms);
  });
}

const overlaps = (a: readonly Atom[] | null, b: readonly Atom[] | null) =>
  a === null || b === null || a.some((one) => b.some((other) => one.set.overlaps(other.set)));

/** Whether the first character determines the matching alternative. */
function areDistinct(alternatives: readonly (readonly Node[])[]): boolean {
  const firsts = alternatives.map(firstAtoms);
  return firsts.every((first, i) => firsts.slice(i + 1).every((other) => !overlaps(first, other)));
}

/** Whether `nodes` match any text in one way only. */
function isRigid(nodes: readonly Node[]): boolean {
  return nodes.every((node) => {
    if (node.kind === 'atom') return node.min === node.max;
    if (node.kind !== 'group') return false;
    const isFixed = node.min === node.max;
    return isFixed && areDistinct(node.alternatives) && node.alternatives.every(isRigid);
  });
}

/** Whether each alternative begins with a character that nothing else in the group matches. */
function isSeparated(alternatives: readonly (readonly Node[])[]): boolean {
  return alternatives.every((nodes, i) => {
    const first = nodes.at(0);
    const rest = nodes.slice(1);
    if (first?.kind !== 'atom' || first.min !== 1 || first.max !== 1) return false;
    const others = [...rest, ...alternatives.filter((_, j) => j !== i).flat()];
    return !overlaps([first], allAtoms(others));
  });
}

class Analysis {
  /** Retries per character of the text, for a match from one position. */
  retries = 0;
  looksFar = false;

  /** Analyzes consecutive nodes. `choices` precede them; `fallibleAfter`: whether later nodes can fail. */
  private sequence(
    nodes: readonly Node[],
    choices: readonly Choice[],
    fallibleAfter: boolean,
  ): Choice[] {
    let active = [...choices];
    nodes.forEach((node, i) => {
      const canFail = fallibleAfter || nodes.slice(i + 1).some(isFallible);
      if (node.kind === 'atom') active = this.atom(node, active, canFail);
      else if (node.kind === 'group') active = this.group(node, active, canFail);
      else if (node.kind === 'look') {
        const isFar = hasUnbounded(alternativesOf(node).flat());
        if (isFar && node.isBehind) throw new RegexError('a lookbehind of unbounded length');
        this.looksFar ||= isFar;
        this.alternatives(node.alternatives, active, false);
      }
    });
    return active;
  }

  alternatives(
    alternatives: readonly (readonly Node[])[],
    choices: readonly Choice[],
    fallibleAfter: boolean,
  ): Choice[] {
    const after = alternatives.map((nodes) => this.sequence(nodes, choices, fallibleAfter));
    return [...new Set(after.flat())];
  }

  private atom(atom: Atom, choices: readonly Choice[], canFail: boolean): Choice[] {
    const kept = atom.min > 0 ? choices.filter(({ atoms }) => overlaps(atoms, [atom])) : choices;
    if (atom.min === atom.max) return [...kept];
    return this.choose({ atoms: [atom], ways: waysOf(atom) }, kept, canFail && !atom.isAtomic);
  }

  private group(
    node: Extract<Node, { kind: 'group' }>,
    choices: readonly Choice[],
    canFail: boolean,
  ): Choice[] {
    const { alternatives, min, max } = node;
    const atoms = allAtoms(alternatives.flat());
    const tail = canFail && !node.isAtomic;
    // A failed repetition ends the group, unless the minimum requires more.
    const mustMatch = tail || min > 1;
    if (max > 1) {
      const isOne = alternatives.every(isRigid) && areDistinct(alternatives);
      if (mustMatch && !isOne && !isSeparated(alternatives)) {
        throw new RegexError('a repeated group that can match a text in several ways');
      }
      this.alternatives(alternatives, [], mustMatch && !isOne);
      return this.choose(
        { atoms, ways: min === max && isOne ? 1 : waysOf(node) },
        choices,
        mustMatch,
      );
    }
    let after = this.alternatives(alternatives, choices, tail);
    if (node.isAtomic) after = [...choices];
    if (min === 0) after = [...new Set([...after, ...choices])];
    const ways = (areDistinct(alternatives) ? 1 : alternatives.length) + (min === 0 ? 1 : 0);
    return ways === 1 ? after : this.choose({ atoms: null, ways }, after, tail);
  }

  private choose(choice: Choice, choices: readonly Choice[], canFail: boolean): Choice[] {
    if (!canFail || choice.ways === 1) return [...choices];
    const shared = [choice, ...choices.filter(({ atoms }) => overlaps(atoms, choice.atoms))];
    const numUnbounded = shared.filter(({ ways }) => ways === Infinity).length;
    if (numUnbounded > 1) {
      throw new RegexError('two quantifiers that can split a text between them in many ways');
    }
    const ways = shared.reduce((all, one) => (one.ways === Infinity ? all : all * one.ways), 1);
    if (ways > MAX_WAYS) throw new RegexError(`${ways} ways to match the same text`);
    if (numUnbounded === 1) this.retries += ways;
    return [...choices, choice];
  }
}

const hasUnbounded = (nodes: readonly Node[]): boolean =>
  nodes.some((node) => {
    const isRepeated = node.kind === 'atom' || node.kind === 'group';
    return (isRepeated && node.max > MAX_BOUNDED) || hasUnbounded(alternativesOf(node).flat());
  });

const waysOf = ({ min, max }: { min: number; max: number }) =>
  max - min > MAX_BOUNDED ? Infinity : max - min + 1;
