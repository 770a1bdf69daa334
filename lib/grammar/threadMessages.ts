/** Requests to grammarThread.ts. */
import type { StructuredOutputs } from '../config/structuredOutputs';
import type { PackedVocabulary } from '../tokenizer/vocabulary';
import type { TokenTexts } from './tokenTexts';

export interface CompiledGrammar {
  /** See native/grammar/program.h. */
  program: Int32Array;
  /** The special tokens that the grammar names. */
  tokens: readonly string[];
}

export interface GrammarRequests {
  tokenTexts: { input: { vocabulary: PackedVocabulary; decoder: unknown }; output: TokenTexts };
  compile: { input: StructuredOutputs; output: CompiledGrammar };
}
