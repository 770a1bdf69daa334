/** Parses the part of Oniguruma's Ruby syntax that checkpoints' tokenizers use. */
import { CharacterSet } from './characterSet';

/** The reason why an expression is not accepted. */
export class RegexError extends Error {}

/** A repeated character of a set. */
export interface Atom {
  kind: 'atom';
  set: CharacterSet;
  min: number;
  /** Infinity if unbounded. */
  max: number;
  /** Possessive: does not backtrack. */
  isAtomic: boolean;
}

export type Node =
  | Atom
  | { kind: 'assertion' }
  | { kind: 'look'; isBehind: boolean; alternatives: Node[][] }
  | { kind: 'group'; alternatives: Node[][]; min: number; max: number; isAtomic: boolean };

export const alternativesOf = (node: Node): readonly Node[][] =>
  node.kind === 'group' || node.kind === 'look' ? node.alternatives : [];

const MAX_DEPTH = 32;
const MAX_LENGTH = 16_384;

/** Letters with multi-character case folding: sharp s, ligatures, Greek letters with marks. */
const MULTI_CHARACTER_FOLDS =
  /[\u00df\u0149\u01f0\u0390\u03b0\u0587\u1e96-\u1e9e\u1f50-\u1fff\ufb00-\ufb17]/;

/** The alternatives of `pattern`. Throws RegexError for invalid or unsupported syntax. */
export function parseRegex(pattern: string): Node[][] {
  if (pattern.length > MAX_LENGTH) {
    throw new RegexError(`${pattern.length} characters; at most ${MAX_LENGTH} are supported`);
  }
  const decoded = pattern.replace(/\\[xu]\{?([\da-fA-F]{2,6})\}?/g, (_, hex: string) =>
    String.fromCodePoint(Math.min(parseInt(hex, 16), 0x10ffff)),
  );
  if (/\(\?[a-z]*i/.test(pattern) && MULTI_CHARACTER_FOLDS.test(decoded)) {
    throw new RegexError('a case-insensitive letter that folds to several characters');
  }
  const parser = new Parser(pattern);
  const alternatives = parser.alternatives(0);
  if (!parser.isAtEnd) throw new RegexError(`an unexpected ) at ${parser.at}`);
  return alternatives;
}

/** Escapes of character sets as JavaScript classes. Oniguruma's \w and \d are Unicode-aware. */
const SETS: Readonly<Record<string, string>> = {
  d: '\\p{Nd}',
  D: '\\P{Nd}',
  s: '\\s\\u0085',
  S: '\\S',
  w: '\\p{L}\\p{M}\\p{N}\\p{Pc}',
  h: '0-9a-fA-F',
};

const SIMPLE: Readonly<Record<string, readonly [min: number, max: number] | undefined>> = {
  '?': [0, 1],
  '*': [0, Infinity],
  '+': [1, Infinity],
};

const CONTROLS: Readonly<Record<string, number>> = {
  t: 9,
  n: 10,
  v: 11,
  f: 12,
  r: 13,
  a: 7,
  e: 27,
};

class Parser {
  at = 0;

  constructor(private readonly text: string) {}

  get isAtEnd(): boolean {
    return this.at >= this.text.length;
  }

  private takes(word: string): boolean {
    if (!this.text.startsWith(word, this.at)) return false;
    this.at += word.length;
    return true;
  }

  /** Consumes a match of `rule`, a sticky expression. */
  private match(rule: RegExp): RegExpExecArray | null {
    rule.lastIndex = this.at;
    const found = rule.exec(this.text);
    if (found !== null) this.at = rule.lastIndex;
    return found;
  }

  alternatives(depth: number): Node[][] {
    if (depth > MAX_DEPTH) throw new RegexError(`groups nested more than ${MAX_DEPTH} deep`);
    const all: Node[][] = [[]];
    while (!this.isAtEnd && this.text[this.at] !== ')') {
      if (this.takes('|')) {
        all.push([]);
        continue;
      }
      const isFlags = this.match(/\(\?[im]*(?:-[im]+)?\)/y) !== null;
      if (isFlags) {
        // The flags hold until the group's end, across alternatives.
        const rest = this.alternatives(depth + 1);
        all[all.length - 1].push({
          kind: 'group',
          alternatives: rest,
          min: 1,
          max: 1,
          isAtomic: false,
        });
        return all;
      }
      const node = this.item(depth);
      if (node !== null) all[all.length - 1].push(this.quantified(node));
    }
    return all;
  }

  /** Applies the quantifiers that follow `node`. */
  private quantified(node: Node): Node {
    for (;;) {
      const found = this.match(/([?*+])([?+]?)|\{(\d*)(,?)(\d*)\}(\??)/y);
      if (found === null) return node;
      const [, simple = '', suffix = '', least = '', comma = '', most = ''] = found as (
        string | undefined
      )[];
      if (simple === '' && least === '' && most === '') {
        throw new RegexError(`the invalid quantifier ${found[0]}`);
      }
      const [min, max] = SIMPLE[simple] ?? [
        Number(least),
        most === '' && comma !== '' ? Infinity : Number(most || least),
      ];
      if (min > max) throw new RegexError(`the invalid quantifier ${found[0]}`);
      const isAtomic = suffix === '+';
      if (node.kind === 'assertion' || node.kind === 'look') {
        throw new RegexError('a quantifier after an assertion');
      }
      const isPlain = node.min === 1 && node.max === 1 && !node.isAtomic;
      node = isPlain
        ? { ...node, min, max, isAtomic }
        : { kind: 'group', alternatives: [[node]], min, max, isAtomic };
    }
  }

  /** Null for a comment. */
  private item(depth: number): Node | null {
    const character = this.text[this.at];
    if (character === '(') return this.group(depth);
    if (character === '[') return atom(this.bracket());
    if (character === '\\') return this.escape();
    this.at += String.fromCodePoint(this.text.codePointAt(this.at) as number).length;
    if (character === '^' || character === '$') return { kind: 'assertion' };
    if ('?*+'.includes(character)) throw new RegexError(`a ${character} with nothing to repeat`);
    // Includes line breaks, as with the flag m.
    if (character === '.') return atom(new CharacterSet('\\s\\S', ''));
    return literal(
      this.text.slice(this.at - (character >= '\ud800' && character < '\udc00' ? 2 : 1), this.at),
    );
  }

  private group(depth: number): Node | null {
    if (this.match(/\(\?#[^)]*\)/y)) return null;
    const opening = this.match(
      /\((?:\?(?:[im]*(?:-[im]+)?:|=|!|<=|<!|>|<[A-Za-z_]\w*>)|(?![?*]))/y,
    );
    if (opening === null) {
      throw new RegexError(`the unsupported group ${this.text.slice(this.at, this.at + 3)}…`);
    }
    const [open] = opening;
    const alternatives = this.alternatives(depth + 1);
    if (!this.takes(')')) throw new RegexError('an unclosed (');
    if (/^\(\?<?[=!]$/.test(open)) {
      return { kind: 'look', isBehind: open.includes('<'), alternatives };
    }
    return { kind: 'group', alternatives, min: 1, max: 1, isAtomic: open === '(?>' };
  }

  /** A bracketed class; unsupported syntax in it counts as every character. */
  private bracket(): CharacterSet {
    const start = this.at;
    let depth = 0;
    do {
      if (this.isAtEnd) throw new RegexError('an unclosed [');
      const character = this.text[this.at++];
      if (character === '\\') this.at++;
      else if (character === '[') {
        depth++;
        this.takes('^');
        this.takes(']');
      } else if (character === ']') depth--;
    } while (depth > 0);
    const text = this.text.slice(start, this.at);
    const isNegated = text[1] === '^';
    const inner = text.slice(isNegated ? 2 : 1, -1);
    // Nested classes, intersections, escapes without a counterpart.
    if (/&&|\[|^\]|\\[WHxucCM0-9bBRXNOKG]|\\[pP]\{\^/.test(inner)) return CharacterSet.all(text);
    const translated = inner.replace(/\\([a-zA-Z])/g, (escape, letter: string) => {
      if (letter === 'a' || letter === 'e') return letter === 'a' ? '\\u0007' : '\\u001b';
      return SETS[letter] ?? escape;
    });
    const source = translated.replace(/\\([^a-zA-Z\\\]^\-[(){}/.*+?|$])/gu, '$1');
    return new CharacterSet(source, isNegated ? '^' : '');
  }

  private escape(): Node {
    this.at++;
    const letter = this.text.charAt(this.at++);
    if (letter === '') throw new RegexError('a \\ at the end');
    if ('bBAzZ'.includes(letter)) return { kind: 'assertion' };
    if (letter === 'p' || letter === 'P') {
      const name = this.match(/\{(\^?)[\w -]+\}/y);
      if (name === null) throw new RegexError(`\\${letter} without a property name`);
      return atom(new CharacterSet(`\\${letter}${name[0].replace('^', '')}`, name[1] ? '^' : ''));
    }
    if (letter === 'W' || letter === 'H') {
      return atom(new CharacterSet(SETS[letter.toLowerCase()], '^'));
    }
    if (letter in SETS) return atom(new CharacterSet(SETS[letter], ''));
    if (letter in CONTROLS) return literal(String.fromCharCode(CONTROLS[letter]));
    if (letter === 'x' || letter === 'u') {
      const hex = this.match(
        letter === 'u' ? /([\da-fA-F]{4})/y : /\{([\da-fA-F]{1,6})\}|([\da-fA-F]{2})/y,
      );
      const digits = hex?.at(1) ?? hex?.at(2) ?? '';
      const code = parseInt(digits, 16);
      // A byte above 7f is part of a character.
      if (!(code <= 0x10ffff) || (hex?.at(1) === undefined && code > 0x7f)) {
        throw new RegexError(`\\${letter} without a valid code point`);
      }
      return literal(String.fromCodePoint(code));
    }
    // References, subroutines, \K, \G, \X, \R and others.
    if (/[a-zA-Z0-9]/.test(letter)) throw new RegexError(`the unsupported escape \\${letter}`);
    return literal(letter);
  }
}

function atom(set: CharacterSet): Atom {
  return { kind: 'atom', set, min: 1, max: 1, isAtomic: false };
}

function literal(character: string): Atom {
  return atom(CharacterSet.of(character));
}
