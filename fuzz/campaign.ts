/** The parts of a campaign; docs/fuzzing.md describes how to add one. */
import type * as fc from 'fast-check';

/** Command line options for every campaign. */
export interface CampaignOptions {
  /** 'cpu', or 'cuda' for campaigns that use a GPU. */
  device: 'cpu' | 'cuda';
}

interface Target {
  /** Resolves when all resources of the cases are freed; rejects on a leak. */
  close?(): Promise<void>;
  /** Additional counts by name, such as frames or accepted cases. */
  counts?: Record<string, number>;
}

/** Byte cases: mutations of valid ones. */
export interface BytesTarget extends Target {
  kind: 'bytes';
  /** Valid cases, in addition to those in fuzz/seeds. */
  seeds: readonly Buffer[];
  /** Dictionary for mutations: magic numbers, keys, tokens of the format. */
  words: readonly (string | Buffer)[];
  /** Leading bytes that most mutations keep. */
  prefix?: number;
  /** Cases are JSON from this byte on, and are also mutated by structure. */
  jsonFrom?: number;
  /** Throws on wrong behaviour of the code under test. */
  check(bytes: Buffer): void | Promise<void>;
}

/** Structured cases, generated and shrunk by fast-check. */
export interface StructuredTarget<Case> extends Target {
  kind: 'structured';
  arbitrary: fc.Arbitrary<Case>;
  check(value: Case): void | Promise<void>;
}

/** Runs in its own process (fuzz/child.ts), so that crashes and hangs are found. */
export interface Campaign {
  name: string;
  /** One-line description. */
  about: string;
  open(options: CampaignOptions): Promise<BytesTarget | StructuredTarget<unknown>>;
}

/** A libFuzzer campaign for native code: fuzz/native/<target>.cpp. */
export interface NativeCampaign {
  name: string;
  about: string;
  /** Sources of the code under test. */
  sources: readonly string[];
}

/** A failed case, as the campaign's process reports it to the runner. */
export interface Failure {
  message: string;
  /** Path of the written seed, relative to the repository's root. */
  seed: string | null;
}

/** Progress of a campaign. */
export interface Progress {
  cases: number;
  /** Seconds of running cases, without the start. */
  seconds: number;
  counts: Record<string, number>;
}

/** Result of a campaign. */
export interface Result extends Progress {
  failures: Failure[];
}

/** Thrown by a check; the message gives the expectation. */
export class Fault extends Error {}

export function expect(condition: boolean, message: string | (() => string)): asserts condition {
  if (!condition) throw new Fault(typeof message === 'string' ? message : message());
}
