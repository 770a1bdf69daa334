/** Character sets of regular expressions; sampling decides whether two sets overlap. */

/** Characters of all Unicode blocks; small blocks and ASCII are sampled more densely. */
function samples(): string[] {
  const codes: number[] = [];
  const add = (from: number, to: number, step: number) => {
    for (let code = from; code < to; code += step) codes.push(code);
  };
  add(0, 0x250, 1);
  add(0x250, 0x3400, 8);
  add(0x3400, 0xa000, 0x100);
  add(0xa000, 0xac00, 8);
  add(0xac00, 0xd800, 0x100);
  add(0xe000, 0xf900, 0x100);
  add(0xf900, 0x10000, 8);
  add(0x10000, 0x20000, 32);
  add(0x20000, 0x110000, 0x1000);
  return codes.map((code) => String.fromCodePoint(code));
}

let allSamples: readonly string[] | null = null;

type Has = (character: string) => boolean;

export class CharacterSet {
  private found: { members: readonly string[]; has: Has } | null | undefined;

  /** `source`: the inside of a JavaScript character class; `negation` '^' complements it. */
  constructor(
    private readonly source: string,
    private readonly negation: '' | '^',
  ) {}

  /** The set of one character, in both cases. */
  static of(character: string): CharacterSet {
    const code = (character.codePointAt(0) as number).toString(16);
    return new CharacterSet(`\\u{${code}}`, '');
  }

  /** An unknown set, which overlaps every other. */
  static all(name: string): CharacterSet {
    const set = new CharacterSet(name, '');
    set.found = null;
    return set;
  }

  /** Whether the sets may share a character, ignoring case. True if unknown. */
  overlaps(other: CharacterSet): boolean {
    if (this.source === other.source && this.negation === other.negation) return true;
    const [mine, others] = [this.members(), other.members()];
    if (mine === null || others === null) return true;
    return mine.members.some(others.has) || others.members.some(mine.has);
  }

  /** The samples in the set; null if there are none or JavaScript cannot compile the set. */
  private members() {
    if (this.found !== undefined) return this.found;
    const has = this.compile();
    if (has === null) return (this.found = null);
    allSamples ??= samples();
    const literal = [...this.source.matchAll(/\\u\{([\da-f]+)\}/g)].map(([, code]) =>
      String.fromCodePoint(parseInt(code, 16)),
    );
    // Adds range ends and characters outside the samples.
    const members = [...allSamples, ...literal, ...Array.from(this.source)].filter(has);
    return (this.found = members.length === 0 ? null : { members, has });
  }

  /** Tests membership with and without case: ignoring case makes a negated set smaller. */
  private compile(): Has | null {
    const scripts = this.source.replace(/\\([pP])\{(\w+)\}/g, '\\$1{Script=$2}');
    for (const source of [this.source, scripts]) {
      try {
        const exact = new RegExp(`^[${this.negation}${source}]$`, 'u');
        const anyCase = new RegExp(exact.source, 'iu');
        return (character) => exact.test(character) || anyCase.test(character);
      } catch {
        // JavaScript has the property under another name, or not at all.
      }
    }
    return null;
  }
}
