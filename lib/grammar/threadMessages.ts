/** Requests to grammarThread.ts. */
import type { StructuredOutputs } from '../config/structuredOutputs';
import type { PackedVocabulary } from '../tokenizer/vocabulary';
import type { TokenTexts } from './tokenTexts';

export interface GrammarRequests {
  tokenTexts: { input: { vocabulary: PackedVocabulary; decoder: unknown }; output: TokenTexts };
  /** The program of native/grammar/program.h. */
  compile: { input: StructuredOutputs; output: Int32Array };
}
