/** Messages between a Tokenizer and its threads. */
import type { RequestLimits } from '../config/limits';
import type { ChatTemplateOptions } from './chatMessages';
import type { LengthBound } from './lengthBound';
import type { SpecialTokensConfig } from './specialTokens';
import type { RenderedPart } from './userText';
import type { PackedVocabulary } from './vocabulary';

/** The methods of a thread with their inputs and outputs. */
export type Methods<Requests> = {
  [Method in keyof Requests]: { input: unknown; output: unknown };
};

/** The thread's description of a loaded file. */
export interface LoadedTokenizer {
  vocabulary: PackedVocabulary;
  /** The decoder of tokenizer.json. */
  decoder: unknown;
  /** By name: bos_token, ... */
  specialTokenIds: Record<string, number | undefined>;
  /** Named tokens by name. */
  specialTokens: Record<string, string>;
  bound: LengthBound | null;
  /** Hash of the file's text. */
  sha256: string;
}

interface EncodeSettings {
  addSpecialTokens: boolean;
  splitSpecialTokens: boolean;
}

/** A chat template of a checkpoint. */
export interface ChatTemplateFile {
  name: string;
  /** Path of its file. */
  file: string;
  text: string;
}

/** Requests to tokenizerThread.ts. */
export interface TokenizerRequests {
  /** `config` null: the file is GGUF, whose metadata name its tokens. Rejects a file with another hash than `sha256`: it changed after a previous thread loaded it. */
  load: {
    input: { file: string; config: SpecialTokensConfig | null; sha256: string | null };
    output: LoadedTokenizer;
  };
  encode: { input: { text: string } & EncodeSettings; output: Int32Array };
  encodeBatch: { input: { texts: readonly string[] } & EncodeSettings; output: Int32Array[] };
  decode: { input: { tokenIds: Int32Array; skipSpecialTokens: boolean }; output: string };
  /** Each text's ChatTemplateError message; null if it compiles. */
  checkTemplates: { input: { texts: readonly string[] }; output: (string | null)[] };
}

/** Rendering options, shared by all conversations of a request. */
export interface RenderSettings extends ChatTemplateOptions {
  /** A template's text, or the name of a template in the checkpoint. */
  chatTemplate?: string | null;
  addSpecialTokens?: boolean;
  splitSpecialTokens?: boolean;
  /** Rendered text that exceeds `limits` or `maxModelLen` is rejected. */
  limits?: Readonly<RequestLimits>;
  maxModelLen?: number | null;
}

export type Conversation = readonly Readonly<Record<string, unknown>>[];

/** Rendering inputs shared by all requests. */
export interface TemplateSetUp {
  templates: readonly ChatTemplateFile[];
  /** The default chatTemplate: a template's text or name; null for the checkpoint's default. */
  userTemplate: string | null;
  /** By name: bos_token, ... */
  specialTokens: Readonly<Record<string, string>>;
  /** The texts of all special tokens. */
  specialTexts: readonly string[];
  bound: LengthBound | null;
}

export type Rendered = { parts: RenderedPart[] } | { failure: Failure };

/** Requests to templateThread.ts. */
export interface TemplateRequests {
  setUp: { input: TemplateSetUp; output: null };
  /** Renders leading conversations, at least one, until its time slice ends or one fails. */
  render: {
    input: { conversations: readonly Conversation[]; settings: RenderSettings };
    output: Rendered[];
  };
}

export type ThreadRequest<Requests extends Methods<Requests>> = {
  [Method in keyof Requests]: { number: number; method: Method; input: Requests[Method]['input'] };
}[keyof Requests];

/** A serialized error. */
export interface Failure {
  message: string;
  /** The code of a UniprocError. */
  code: string | null;
  file?: string;
  /** A plain Error, which can be cloned. */
  cause?: Error;
}

export type ThreadResponse =
  { number: number; value: unknown } | { number: number; failure: Failure };
