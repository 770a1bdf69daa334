/**
 * The addon for tests and benchmarks (native/addon_testing); not loaded by the library and not part of
 * the npm package.
 */
import path from 'node:path';
import { nativeError } from '../../lib/nativeError';
import type { Addon, NativeDeviceThread, NativeModelRunner } from '../../lib/native';

/** Follows a text, which is empty at first. */
export interface GrammarChecker {
  reset(): void;
  /** Appends to the text; returns whether the grammar may continue it or end there. */
  append(bytes: Uint8Array): boolean;
  /** Whether the text may end. */
  accepts(): boolean;
  /** The tokens that may follow. */
  mask(): Int32Array;
  /** The same by trying each token alone. */
  plainMask(): Int32Array;
}

export interface TestingAddon extends Pick<Addon, 'setErrorFactory'> {
  /** Makes the device fail as if its driver had reported it lost. */
  loseDevice: (device: NativeDeviceThread) => void;
  /**
   * The logits [numRows, vocabSize], float32, of the first `numRows` sampled rows of the step that waits
   * for `sample`. Rejects with INVALID_STATE without such a step.
   */
  readLogits: (model: NativeModelRunner, numRows: number) => Promise<Float32Array>;
  /** A grammar's automaton on the calling thread; arguments as of NativeGrammarThread. */
  GrammarChecker: new (
    bytes: Uint8Array,
    offsets: Uint32Array,
    vocabSize: number,
    program: Int32Array,
  ) => GrammarChecker;
  /** Computes the largest step, which `profile` runs where its memory is not known without. */
  runLargestStep: (model: NativeModelRunner) => Promise<void>;
}

export const TESTING_ADDON = path.resolve(__dirname, '../../build/Release/uniproc_testing.node');

// eslint-disable-next-line @typescript-eslint/no-require-imports -- an addon has no other loader
const addon = require(TESTING_ADDON) as TestingAddon;
addon.setErrorFactory(nativeError);

export const { GrammarChecker, loseDevice, readLogits, runLargestStep } = addon;
export default addon;
