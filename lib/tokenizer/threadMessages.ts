/** What a Tokenizer and its threads say to each other. */
import type { RequestLimits } from '../config/limits';
import type { ChatTemplateOptions } from './chatMessages';
import type { LengthBound } from './lengthBound';
import type { SpecialTokensConfig } from './specialTokens';
import type { RenderedPart } from './userText';
import type { PackedVocabulary } from './vocabulary';

/** The methods of a thread, each with what it takes and answers. */
export type Methods<Requests> = {
  [Method in keyof Requests]: { input: unknown; output: unknown };
};

/** What the thread tells of the file it has loaded. */
export interface LoadedTokenizer {
  vocabulary: PackedVocabulary;
  /** tokenizer.json's. */
  decoder: unknown;
  /** By name: bos_token, ... */
  specialTokenIds: Record<string, number | undefined>;
  bound: LengthBound | null;
  /** Of the file's text. */
  sha256: string;
}

interface EncodeSettings {
  addSpecialTokens: boolean;
  splitSpecialTokens: boolean;
}

/** A chat template of a checkpoint's. */
export interface ChatTemplateFile {
  name: string;
  /** Its path. */
  file: string;
  text: string;
}

/** What tokenizerThread.ts answers. */
export interface TokenizerRequests {
  /** With `sha256`, a file of another text is refused: it was changed since another thread loaded it. */
  load: {
    input: { file: string; config: SpecialTokensConfig; sha256: string | null };
    output: LoadedTokenizer;
  };
  encode: { input: { text: string } & EncodeSettings; output: Int32Array };
  encodeBatch: { input: { texts: readonly string[] } & EncodeSettings; output: Int32Array[] };
  decode: { input: { tokenIds: Int32Array; skipSpecialTokens: boolean }; output: string };
  /** Why each text is no chat template, as ChatTemplateError says it; null: it is one. */
  checkTemplates: { input: { texts: readonly string[] }; output: (string | null)[] };
}

/** How conversations are put into words, all of a request alike. */
export interface RenderSettings extends ChatTemplateOptions {
  /** A template's text, or the name of one of the checkpoint's. */
  chatTemplate?: string | null;
  addSpecialTokens?: boolean;
  splitSpecialTokens?: boolean;
  /** Text that is longer, or has too many tokens for the model, is refused. */
  limits?: Readonly<RequestLimits>;
  maxModelLen?: number | null;
}

export type Conversation = readonly Readonly<Record<string, unknown>>[];

/** What templates are rendered with, beside what a request brings. */
export interface TemplateSetUp {
  templates: readonly ChatTemplateFile[];
  /** Instead of the checkpoint's choice, a template or the name of one. */
  own: string | null;
  /** By name: bos_token, ... */
  specialTokens: Readonly<Record<string, string>>;
  /** All special tokens, as they are written. */
  specialTexts: readonly string[];
  bound: LengthBound | null;
}

export type Rendered = { parts: RenderedPart[] } | { failure: Failure };

/** What templateThread.ts answers. */
export interface TemplateRequests {
  setUp: { input: TemplateSetUp; output: null };
  /** The first conversations, one at least, as far as a slice of time goes or up to one that fails. */
  render: {
    input: { conversations: readonly Conversation[]; settings: RenderSettings };
    output: Rendered[];
  };
}

export type Question<Requests extends Methods<Requests>> = {
  [Method in keyof Requests]: { number: number; method: Method; input: Requests[Method]['input'] };
}[keyof Requests];

/** Of an error: what makes it again on the other side. */
export interface Failure {
  message: string;
  /** Of a UniprocError. */
  code: string | null;
  file?: string;
  /** As a message can carry it: an Error without its class. */
  cause?: Error;
}

export type Answer = { number: number; value: unknown } | { number: number; failure: Failure };
