/** What a campaign is made of; docs/fuzzing.md says how to add one. */
import type * as fc from 'fast-check';

/** What the command line asks of every campaign. */
export interface CampaignOptions {
  /** 'cpu', or 'cuda' for the campaigns that have something to try on a GPU. */
  device: 'cpu' | 'cuda';
}

interface Target {
  /** Resolves when everything that the cases left behind is gone; rejects when something is not. */
  close?(): Promise<void>;
  /** Counted beside the cases, by name: the frames in them, the cases accepted. */
  counts?: Record<string, number>;
}

/** Cases are bytes: mutations of valid ones. */
export interface BytesTarget extends Target {
  kind: 'bytes';
  /** Valid cases, beside those in fuzz/seeds. */
  seeds: readonly Buffer[];
  /** Words that a mutation inserts: magic numbers, keys, what a parser looks for. */
  words: readonly (string | Buffer)[];
  /** Bytes at the beginning that most mutations leave as they are: what comes before all else. */
  prefix?: number;
  /** The cases are JSON from this byte on, and are mutated as such too. */
  jsonFrom?: number;
  /** Throws when the code under test does what it must not. */
  check(bytes: Buffer): void | Promise<void>;
}

/** Cases are values that fast-check generates and shrinks. */
export interface StructuredTarget<Case> extends Target {
  kind: 'structured';
  arbitrary: fc.Arbitrary<Case>;
  check(value: Case): void | Promise<void>;
}

/** Runs in a process of its own (fuzz/child.ts), so that a crash and a hang are findings too. */
export interface Campaign {
  name: string;
  /** One line: what is tried. */
  about: string;
  open(options: CampaignOptions): Promise<BytesTarget | StructuredTarget<unknown>>;
}

/** A class of cases that libFuzzer makes for native code: fuzz/native/<target>.cpp. */
export interface NativeCampaign {
  name: string;
  about: string;
  /** Sources of the code under test. */
  sources: readonly string[];
}

/** A case that failed: what the campaign's process tells the runner. */
export interface Failure {
  message: string;
  /** The seed that was written, a path from the repository's root. */
  seed: string | null;
}

/** How far a campaign is. */
export interface Progress {
  cases: number;
  /** Seconds in which they ran, without the start. */
  seconds: number;
  counts: Record<string, number>;
}

/** A campaign's end. */
export interface Result extends Progress {
  failures: Failure[];
}

/** Thrown by a check; the message says what was expected. */
export class Fault extends Error {}

export function expect(condition: boolean, message: string | (() => string)): asserts condition {
  if (!condition) throw new Fault(typeof message === 'string' ? message : message());
}
