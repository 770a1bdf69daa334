/** The notation of a model's replies: which parsers, and the grammar of what must be enforced. */
import type { StructuralFormat } from '../config/structuralTag';
import { InvalidRequestError } from '../errors';
import { deepseek } from './formats/deepseek';
import { functionGemma, gemma4 } from './formats/gemma';
import { genericJson } from './formats/genericJson';
import { HARMONY_MARKERS, HARMONY_NAMES, harmonyStructure, isHarmony } from './formats/harmony';
import { hermes } from './formats/hermes';
import { llama3Json } from './formats/llama3Json';
import { mistral } from './formats/mistral';
import { pythonic } from './formats/pythonic';
import { qwen3Coder } from './formats/qwen3Coder';
import { REASONING_FORMATS, type ReasoningFormat } from './reasoning';
import { constant, listOf, type Tool, type ToolCallFormat } from './toolFormat';

/** In the order in which they are looked for in a template: the more special first. */
const TOOL_FORMATS: readonly ToolCallFormat[] = [
  qwen3Coder,
  deepseek,
  mistral,
  gemma4,
  functionGemma,
  hermes,
  pythonic,
  llama3Json,
  genericJson,
];

export const TOOL_PARSERS: readonly string[] = [
  ...TOOL_FORMATS.flatMap(({ names }) => names),
  'openai',
];
export const REASONING_PARSERS: readonly string[] = [
  ...REASONING_FORMATS.flatMap(({ names }) => names),
  'openai_gptoss',
];

/** Names of parsers; null: none; undefined: found from the template. */
export interface ParserNames {
  toolCallParser?: string | null;
  reasoningParser?: string | null;
}

export interface ReplyFormat {
  /** The template in which it was found. */
  readonly template: string;
  /** Channels in place of the two others. */
  readonly isHarmony: boolean;
  readonly tools: ToolCallFormat | null;
  readonly reasoning: ReasoningFormat | null;
  /** What may be a special token. */
  readonly markers: readonly string[];
}

function named<T extends { names: readonly string[] }>(
  formats: readonly T[],
  name: string,
  option: string,
  known: readonly string[],
): T {
  const found = formats.find(({ names }) => names.includes(name));
  if (found !== undefined) return found;
  throw new InvalidRequestError(`${option} is '${name}'; the parsers are ${known.join(', ')}`);
}

/** Throws InvalidRequestError for an unknown name. */
export function replyFormatOf(
  template: string,
  { toolCallParser, reasoningParser }: ParserNames = {},
): ReplyFormat {
  const names = [toolCallParser, reasoningParser];
  const asksHarmony = names.some((name) => name != null && HARMONY_NAMES.includes(name));
  if (asksHarmony || (names.every((name) => name === undefined) && isHarmony(template))) {
    return { template, isHarmony: true, tools: null, reasoning: null, markers: HARMONY_MARKERS };
  }
  const tools =
    toolCallParser === undefined
      ? (TOOL_FORMATS.find((format) => format.detects(template)) ?? null)
      : toolCallParser === null
        ? null
        : named(TOOL_FORMATS, toolCallParser, 'toolCallParser', TOOL_PARSERS);
  const reasoning =
    reasoningParser === undefined
      ? (REASONING_FORMATS.find((format) => format.detects(template)) ?? null)
      : reasoningParser === null
        ? null
        : named(REASONING_FORMATS, reasoningParser, 'reasoningParser', REASONING_PARSERS);
  const markers = [...(tools?.markers ?? []), ...(reasoning?.markers ?? [])];
  return { template, isHarmony: false, tools, reasoning, markers };
}

export interface StructureSettings {
  readonly tools: readonly Tool[];
  /** 'none': there are no calls. */
  readonly choice: 'auto' | 'required' | 'none';
  readonly isParallel: boolean;
  /** What the content must be; null: any text. */
  readonly content: StructuralFormat | null;
  /** Whether the prompt ends within reasoning. */
  readonly isOpened: boolean;
  /** The reply may have reasoning. */
  readonly mayReason: boolean;
  readonly specialNames: ReadonlySet<string>;
}

/** The grammar of a whole reply; null if the parameters alone say what it is. */
export function structureOf(
  format: ReplyFormat,
  settings: StructureSettings,
): StructuralFormat | null {
  const parts = partsBy(format.markers, settings.specialNames);
  const { tools, choice, isParallel, content } = settings;
  if (format.isHarmony) {
    if (choice === 'none' && content === null) return null;
    return harmonyStructure({
      parts,
      tools: choice === 'none' ? [] : tools,
      isParallel,
      isRequired: choice === 'required',
      content,
    });
  }
  const { reasoning } = format;
  const canReason = reasoning !== null && (settings.isOpened || settings.mayReason);
  // The parameters say what the content is.
  if (choice === 'none' && !canReason) return null;
  const reply = choice === 'none' ? content : callsStructure(format, settings, parts);
  if (reply === null || !canReason) return reply;
  return afterReasoning(reasoning, reply, settings.isOpened, parts);
}

function callsStructure(
  { tools: known, template }: ReplyFormat,
  { tools, choice, isParallel, content }: StructureSettings,
  parts: (text: string) => StructuralFormat[],
): StructuralFormat | null {
  const notation = known ?? (choice === 'required' ? genericJson : null);
  if (notation === null) return content;
  const { tags, isList, triggers, separator, isWholeReply } = notation.syntax({
    tools,
    isParallel,
    template,
    parts,
  });
  const calls = listOf(tags, separator, isParallel && !isList);
  if (choice === 'required') return calls;
  if (content !== null) return { type: 'or', elements: [calls, content] };
  if (isWholeReply) {
    const texts = triggers.filter((trigger) => typeof trigger === 'string');
    return { type: 'leading_tags', triggers: texts, content: calls };
  }
  return {
    type: 'triggered_tags',
    triggers,
    tags,
    stop_after_first: isList || !isParallel,
  };
}

/** Line breaks between reasoning and what follows. */
const BREAKS: StructuralFormat = { type: 'regex', pattern: '\\n{0,2}' };

function afterReasoning(
  reasoning: ReasoningFormat,
  reply: StructuralFormat,
  isOpened: boolean,
  parts: (text: string) => StructuralFormat[],
): StructuralFormat {
  const thought: StructuralFormat[] = [
    { type: 'any_text', excludes: [reasoning.end] },
    ...parts(reasoning.end),
    BREAKS,
  ];
  if (isOpened) return { type: 'sequence', elements: [...thought, reply] };
  const whole: StructuralFormat = {
    type: 'sequence',
    elements: [...parts(reasoning.start), ...thought],
  };
  return { type: 'sequence', elements: [{ type: 'optional', content: whole }, reply] };
}

/** Divides a text at the markers that are special tokens. */
function partsBy(
  markers: readonly string[],
  specialNames: ReadonlySet<string>,
): (text: string) => StructuralFormat[] {
  const special = markers.filter((marker) => specialNames.has(marker));
  return (text) => {
    const found: StructuralFormat[] = [];
    for (let rest = text; rest !== '';) {
      const own = special.find((marker) => rest.startsWith(marker));
      if (own !== undefined) {
        found.push({ type: 'token', token: own });
        rest = rest.slice(own.length);
        continue;
      }
      const starts = special.map((marker) => rest.indexOf(marker)).filter((index) => index >= 0);
      const end = Math.min(rest.length, ...starts);
      found.push(constant(rest.slice(0, end)));
      rest = rest.slice(end);
    }
    return found.length === 0 ? [constant('')] : found;
  };
}

/** Whether a rendered prompt ends within reasoning. */
export function opensReasoning({ reasoning }: ReplyFormat, prompt: string): boolean {
  return reasoning !== null && prompt.trimEnd().endsWith(reasoning.start.trimEnd());
}
