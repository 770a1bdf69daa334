/** What a Tokenizer and its thread say to each other. */
import type { LengthBound } from './lengthBound';
import type { SpecialTokensConfig } from './specialTokens';
import type { PackedVocabulary } from './vocabulary';

/** What the thread tells of the file it has loaded. */
export interface LoadedTokenizer {
  vocabulary: PackedVocabulary;
  /** tokenizer.json's. */
  decoder: unknown;
  /** By name: bos_token, ... */
  specialTokenIds: Record<string, number | undefined>;
  bound: LengthBound | null;
}

interface EncodeSettings {
  addSpecialTokens: boolean;
  splitSpecialTokens: boolean;
}

export interface Requests {
  load: { input: { file: string; config: SpecialTokensConfig }; output: LoadedTokenizer };
  encode: { input: { text: string } & EncodeSettings; output: Int32Array };
  encodeBatch: { input: { texts: readonly string[] } & EncodeSettings; output: Int32Array[] };
  decode: { input: { tokenIds: Int32Array; skipSpecialTokens: boolean }; output: string };
}

export type Question = {
  [Method in keyof Requests]: { number: number; method: Method; input: Requests[Method]['input'] };
}[keyof Requests];

/** Of an error: what makes it again on the other side. */
export interface Failure {
  message: string;
  /** Of a UniprocError. */
  code: string | null;
  file?: string;
}

export type Answer = { number: number; value: unknown } | { number: number; failure: Failure };
