/** Compiles expressions to the program that native/grammar/program.h describes. */
import { InvalidRequestError } from '../errors';
import { bytesOf, type CodeRange, type Expression, type RuleSet } from './expression';
import { Productivity } from './productivity';
import { utf8Ranges } from './utf8';

/** Most instructions of a program. */
const MAX_INSTRUCTIONS = 1 << 19;
/** Most copies of a small body that replace a counted loop. */
const MAX_COPIES = 4;
/** Most repetitions of a body that may be empty: each is a way to read the same text. */
const MAX_EMPTY_REPETITIONS = 32;

/** More repetitions than any text has: a count of 32 bits. */
const UNLIMITED = 2 ** 30;

const BYTES = 0;
const SPLIT = 1;
const CALL = 2;
const RETURN = 3;
const LOOP = 4;
const LOOP_END = 5;

type Instruction = [op: number, a: number, b: number, c: number, d: number];

class ProgramBuilder {
  private readonly instructions: Instruction[] = [];
  private readonly sets: number[] = [];
  private numSets = 0;
  private readonly targets: number[] = [];
  private readonly setIndex = new Map<string, number>();
  /** Equal instructions are shared, so that alternatives share their ends. */
  private readonly shared = new Map<string, number>();
  private readonly entries = new Map<string, number>();
  private readonly pending: string[] = [];
  private readonly productivity: Productivity;
  private readonly dead: number;
  private readonly returns: number;

  constructor(private readonly ruleSet: RuleSet) {
    this.productivity = new Productivity(ruleSet);
    // Instruction 0 goes to the root.
    this.reserve();
    this.returns = this.add([RETURN, 0, 0, 0, 0]);
    this.dead = this.split([]);
  }

  build(): Int32Array {
    const { ruleSet, productivity } = this;
    productivity.check();
    if (!productivity.canMatch(ruleSet.root)) {
      throw new InvalidRequestError('structuredOutputs: no text satisfies the grammar');
    }
    this.patchSplit(0, [this.compile(ruleSet.root, this.returns)]);
    for (let name = this.pending.pop(); name !== undefined; name = this.pending.pop()) {
      const body = ruleSet.rules.get(name) as Expression;
      this.patchSplit(this.entries.get(name) as number, [this.compile(body, this.returns)]);
    }
    const { instructions, numSets, sets, targets } = this;
    return concatenate([instructions.length, numSets, targets.length], instructions, sets, targets);
  }

  private add(instruction: Instruction): number {
    const key = instruction.join();
    let pc = this.shared.get(key);
    if (pc === undefined) {
      pc = this.reserve();
      this.instructions[pc] = instruction;
      this.shared.set(key, pc);
    }
    return pc;
  }

  /** An instruction to be filled in later. */
  private reserve(): number {
    if (this.instructions.length >= MAX_INSTRUCTIONS) {
      throw new InvalidRequestError(
        `structuredOutputs: the grammar is too large: it has more than ${MAX_INSTRUCTIONS} steps`,
      );
    }
    return this.instructions.push([SPLIT, 0, 0, 0, 0]) - 1;
  }

  private split(targets: readonly number[]): number {
    const unique = [...new Set(targets)].filter((target) => target !== this.dead);
    if (unique.length === 1) return unique[0];
    const key = `split ${unique.join()}`;
    let pc = this.shared.get(key);
    if (pc === undefined) {
      pc = this.reserve();
      this.patchSplit(pc, unique);
      this.shared.set(key, pc);
    }
    return pc;
  }

  private patchSplit(pc: number, targets: readonly number[]): void {
    this.instructions[pc] = [SPLIT, this.targets.length, targets.length, 0, 0];
    for (const target of targets) this.targets.push(target);
  }

  /** Instructions that read `expression` and go on at `next`; returns the first. */
  private compile(expression: Expression, next: number): number {
    if (!this.productivity.canMatch(expression)) return this.dead;
    switch (expression.kind) {
      case 'text':
        return bytesOf(expression.text).reduceRight(
          (after, byte) => this.bytes([[byte, byte]], after),
          next,
        );
      case 'set':
        return this.characters(expression.ranges, next);
      case 'sequence':
        return expression.parts.reduceRight((after, part) => this.compile(part, after), next);
      case 'choice':
        return this.choice(expression.options, next);
      case 'repeat':
        return this.repetition(expression.body, expression.min, expression.max, next);
      case 'rule':
        return this.call(expression.name, next);
      case 'automaton': {
        const { states } = expression;
        const pcs = states.map(() => this.reserve());
        for (const [i, { accepts, edges }] of states.entries()) {
          const targets = edges.map(({ on, to }) => this.compile(on, pcs[to]));
          this.patchSplit(pcs[i], [...new Set(accepts ? [...targets, next] : targets)]);
        }
        return pcs[0];
      }
    }
  }

  private choice(options: readonly Expression[], next: number): number {
    const texts: Buffer[] = [];
    const targets: number[] = [];
    for (const option of options) {
      if (option.kind === 'text') texts.push(bytesOf(option.text));
      else targets.push(this.compile(option, next));
    }
    if (texts.length > 0)
      targets.push(
        this.texts(
          texts.sort((a, b) => a.compare(b)),
          0,
          next,
        ),
      );
    return this.split(targets);
  }

  /**
   * Any of the sorted texts, which are alike up to `start`, from there on. Those that begin alike share
   * their first bytes: a list of thousands is read in one way, not in thousands.
   */
  private texts(texts: readonly Buffer[], start: number, next: number): number {
    const first = texts[0];
    const last = texts[texts.length - 1];
    let common = start;
    while (common < first.length && first[common] === last[common]) common++;
    const targets: number[] = [];
    for (let from = 0, to = 0; from < texts.length; from = to) {
      const byte = texts[from].at(common);
      while (to < texts.length && texts[to].at(common) === byte) to++;
      if (byte === undefined) targets.push(next);
      else {
        const rest = this.texts(texts.slice(from, to), common + 1, next);
        targets.push(this.bytes([[byte, byte]], rest));
      }
    }
    let at = this.split(targets);
    for (let i = common - 1; i >= start; i--) at = this.bytes([[first[i], first[i]]], at);
    return at;
  }

  private call(name: string, next: number): number {
    let entry = this.entries.get(name);
    if (entry === undefined) {
      entry = this.reserve();
      this.entries.set(name, entry);
      this.pending.push(name);
    }
    return this.add([CALL, entry, next, 0, 0]);
  }

  private repetition(body: Expression, min: number, max: number | null, next: number): number {
    min = Math.min(min, UNLIMITED);
    if (max !== null && max >= UNLIMITED) max = null;
    if (this.productivity.isNullable(body)) {
      min = 0;
      if (max !== null && max > MAX_EMPTY_REPETITIONS) {
        throw new InvalidRequestError(
          `structuredOutputs: a part that may be empty is repeated up to ${max} times; the limit ` +
            `is ${MAX_EMPTY_REPETITIONS}; make the part not empty, or the repetition unlimited`,
        );
      }
    }
    const copies = this.productivity.isNullable(body) ? MAX_EMPTY_REPETITIONS : MAX_COPIES;
    if (max === null && min <= 1) {
      const loop = this.reserve();
      const first = this.compile(body, loop);
      this.patchSplit(loop, [first, next]);
      return min === 1 ? first : loop;
    }
    if (max !== null && max <= copies) {
      let at = next;
      for (let i = max; i > 0; i--) {
        const first = this.compile(body, at);
        at = i > min ? this.split([first, next]) : first;
      }
      return at;
    }
    const loop = this.reserve();
    const end = this.add([LOOP_END, loop, 0, 0, 0]);
    this.instructions[loop] = [LOOP, this.compile(body, end), min, max ?? -1, next];
    return loop;
  }

  /** Reads one byte of the ranges. */
  private bytes(ranges: readonly CodeRange[], next: number): number {
    if (next === this.dead) return next;
    const words = [0, 0, 0, 0, 0, 0, 0, 0];
    for (const [from, to] of ranges) {
      for (let byte = from; byte <= to; byte++) words[byte >> 5] |= 1 << (byte & 31);
    }
    const key = words.join();
    let index = this.setIndex.get(key);
    if (index === undefined) {
      index = this.numSets++;
      this.setIndex.set(key, index);
      this.sets.push(...words);
    }
    return this.add([BYTES, index, next, 0, 0]);
  }

  /** Reads one character of the ranges. */
  private characters(ranges: readonly CodeRange[], next: number): number {
    const key = `set ${next} ${ranges.join()}`;
    let pc = this.shared.get(key);
    if (pc !== undefined) return pc;
    /** First bytes by the instruction behind them. */
    const firsts = new Map<number, (readonly [number, number])[]>();
    for (const range of ranges) {
      for (const product of utf8Ranges(range)) {
        const after = product.slice(1).reduceRight((at, byte) => this.bytes([byte], at), next);
        const list = firsts.get(after);
        if (list === undefined) firsts.set(after, [product[0]]);
        else list.push(product[0]);
      }
    }
    pc = this.split([...firsts].map(([after, bytes]) => this.bytes(bytes, after)));
    this.shared.set(key, pc);
    return pc;
  }
}

function concatenate(
  header: readonly number[],
  instructions: readonly Instruction[],
  sets: readonly number[],
  targets: readonly number[],
): Int32Array {
  const words = new Int32Array(
    header.length + 5 * instructions.length + sets.length + targets.length,
  );
  words.set(header);
  let at = header.length;
  for (const instruction of instructions) {
    words.set(instruction, at);
    at += instruction.length;
  }
  words.set(sets, at);
  words.set(targets, at + sets.length);
  return words;
}

/**
 * The program of a grammar. Throws InvalidRequestError if no text satisfies it, it is left-recursive,
 * names a rule that it lacks, or is too large.
 */
export function compileProgram(ruleSet: RuleSet): Int32Array {
  return new ProgramBuilder(ruleSet).build();
}
