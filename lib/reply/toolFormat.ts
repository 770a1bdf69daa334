/** What a notation of tool calls has to say: one object for each, in formats/. */
import type { StructuralFormat, TagFormat, TagText } from '../config/structuralTag';
import type { Cursor, Parsing } from './cursor';
import type { ReplySink } from './replySink';

/** A function that the model may call. */
export interface Tool {
  readonly name: string;
  /** JSON Schema of its arguments. */
  readonly parameters: boolean | object;
}

/** How calls are written, for a grammar. */
export interface CallSyntax {
  /** One for each tool; with `isList`, one for all calls. */
  readonly tags: readonly TagFormat[];
  readonly isList: boolean;
  /** What opens a call in free text. */
  readonly triggers: readonly TagText[];
  /** Between calls. */
  readonly separator: string;
  /** Calls are the whole reply: a trigger counts at its start alone. */
  readonly isWholeReply: boolean;
}

/** Names that notations without quotes can write: without space, and what ends a name. */
export const BARE_NAMES = /^[^\s<>[\]{}()|=\p{Surrogate}]+$/u;

export interface SyntaxSettings {
  readonly tools: readonly Tool[];
  readonly isParallel: boolean;
  /** The chat template, for notations with several forms. */
  readonly template: string;
  /** Text, with its special tokens as such. */
  readonly parts: (text: string) => StructuralFormat[];
}

export interface ToolCallFormat {
  /** vLLM's names of its parser. */
  readonly names: readonly string[];
  /** Names of tools that the notation can write; omitted: all, since they are JSON. */
  readonly toolNames?: RegExp;
  /** Whether a chat template has the notation. */
  detects(template: string): boolean;
  /** What may be a special token: the parser needs it, though the text leaves it out. */
  readonly markers: readonly string[];
  /** Reads the reply behind its reasoning. What is no call is content. */
  parse(cursor: Cursor, sink: ReplySink, tools: readonly Tool[]): Parsing;
  syntax(settings: SyntaxSettings): CallSyntax;
  /** Makes the id of a call, if templates are particular about it. */
  readonly makeId?: () => string;
}

/** A tag that begins and ends with texts that may have special tokens. */
export function tagOf(
  { parts }: Pick<SyntaxSettings, 'parts'>,
  begin: string,
  content: readonly StructuralFormat[],
  end: string,
): TagFormat {
  const [first, ...rest] = parts(begin);
  return {
    type: 'tag',
    begin: first.type === 'const_string' ? first.value : (first as TagText),
    content: { type: 'sequence', elements: [...rest, ...content, ...parts(end)] },
    end: '',
  };
}

export function triggerOf({ parts }: Pick<SyntaxSettings, 'parts'>, text: string): TagText {
  const [first] = parts(text);
  return first.type === 'const_string' ? first.value : (first as TagText);
}

export const jsonOf = ({ parameters }: Tool): StructuralFormat => ({
  type: 'json_schema',
  json_schema: parameters,
});

export const constant = (value: string): StructuralFormat => ({ type: 'const_string', value });

/** Calls one after another with `separator` between them: one, or any number. */
export function listOf(
  tags: readonly TagFormat[],
  separator: string,
  isParallel: boolean,
): StructuralFormat {
  return {
    type: 'tags_with_separator',
    tags,
    separator,
    at_least_one: true,
    stop_after_first: !isParallel,
  };
}

/**
 * Content with calls, each of which one of `opens` begins. `call` reads on behind it and returns whether
 * a call began; else the text is content.
 */
export function* callsWithin(
  cursor: Cursor,
  sink: ReplySink,
  opens: readonly string[],
  call: (open: string) => Parsing<boolean>,
): Parsing {
  for (;;) {
    const open = yield* cursor.until(opens, (text) => sink.content(text));
    if (open === null) return;
    if (!(yield* call(open))) sink.content(cursor.markedText);
    cursor.releaseMark();
  }
}

/** The rest is content. */
export function* restIsContent(cursor: Cursor, sink: ReplySink): Parsing {
  yield* cursor.until([], (text) => sink.content(text));
}

/**
 * A call as an object with `name` and `arguments` or `parameters`, in any order. Returns whether a call
 * began. `accepts`: a name that it refuses is no call.
 */
export function* jsonCall(
  cursor: Cursor,
  sink: ReplySink,
  accepts: (name: string) => boolean = () => true,
): Parsing<boolean> {
  if (!(yield* cursor.takes('{'))) return false;
  let hasName = false;
  let hasArguments = false;
  let early = '';
  for (let isFirst = true; ; isFirst = false) {
    yield* cursor.skipSpace();
    if (yield* cursor.takes('}')) break;
    if (!isFirst && !(yield* cursor.takes(','))) return hasName;
    yield* cursor.skipSpace();
    const key = yield* cursor.jsonString();
    if (key === null) return hasName;
    yield* cursor.skipSpace();
    if (!(yield* cursor.takes(':'))) return hasName;
    yield* cursor.skipSpace();
    if (key === 'name' && !hasName) {
      const name = yield* cursor.jsonString();
      if (name === null || !accepts(name)) return false;
      sink.beginCall(name);
      hasName = true;
      if (early !== '') sink.arguments(early);
    } else if ((key === 'arguments' || key === 'parameters') && !hasArguments) {
      hasArguments = true;
      const emit = (text: string) => {
        if (hasName) sink.arguments(text);
        else early += text;
      };
      if (!(yield* cursor.jsonValue(emit))) return hasName;
    } else if (!(yield* cursor.jsonValue(() => {}))) return hasName;
  }
  if (hasName && !hasArguments) sink.arguments('{}');
  return hasName;
}

/** A list of such calls, behind its bracket. Returns whether a call began. */
export function* jsonCalls(cursor: Cursor, sink: ReplySink): Parsing<boolean> {
  let hasCall = false;
  for (;;) {
    yield* cursor.skipSpace();
    if (!(yield* jsonCall(cursor, sink))) return hasCall;
    hasCall = true;
    yield* cursor.skipSpace();
    if (yield* cursor.takes(']')) return true;
    if (!(yield* cursor.takes(','))) return true;
  }
}
