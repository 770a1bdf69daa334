/**
 * `structuralTag` of structuredOutputs, in the form of xgrammar and vLLM: what tags are, and what opens
 * them.
 */

import { z } from 'zod';

/** The special token of this name. */
export interface TokenFormat {
  type: 'token';
  token: string;
}

/** Text, or a special token. */
export type TagText = string | TokenFormat;

export interface TagFormat {
  type: 'tag';
  begin: TagText;
  content: StructuralFormat;
  end: TagText;
}

/** A JSON schema in a format. */
export interface StructuralSchema {
  json_schema: boolean | object;
  /** What errors call the schema; default: its path in the tag. */
  where?: string;
}

/** What a part of the text is. */
export type StructuralFormat =
  | { type: 'const_string'; value: string }
  | TokenFormat
  | ({ type: 'json_schema' } & StructuralSchema)
  | { type: 'regex'; pattern: string }
  /** EBNF. */
  | { type: 'grammar'; grammar: string }
  /** Text in which none of `excludes`, and not the end of its tag, occurs. */
  | { type: 'any_text'; excludes?: readonly string[] }
  | { type: 'sequence'; elements: readonly StructuralFormat[] }
  | { type: 'or'; elements: readonly StructuralFormat[] }
  | { type: 'optional'; content: StructuralFormat }
  /** `content` any number of times. */
  | { type: 'star'; content: StructuralFormat }
  | TagFormat
  /** Free text; after a trigger, which begins a tag's `begin`, the text is one of the tags. */
  | {
      type: 'triggered_tags';
      triggers: readonly TagText[];
      tags: readonly TagFormat[];
      /** There is no text before the first tag. */
      at_least_one?: boolean;
      /** There is nothing after the first tag. */
      stop_after_first?: boolean;
    }
  /** As `triggered_tags` at the start of the text alone: other text must not begin with a trigger. */
  | {
      type: 'leading_tags';
      triggers: readonly string[];
      content: StructuralFormat;
    }
  | {
      type: 'tags_with_separator';
      tags: readonly TagFormat[];
      separator: string;
      at_least_one?: boolean;
      stop_after_first?: boolean;
    }
  /** An object's properties as `<parameter=name>` blocks. */
  | ({ type: 'qwen_xml_parameter' } & StructuralSchema)
  /** An object's properties as keyword arguments of a Python call. */
  | ({ type: 'pythonic_arguments' } & StructuralSchema)
  /** An object's properties as `name:value`, with strings between `quote`. */
  | ({ type: 'gemma_arguments'; quote: TagText } & StructuralSchema);

/** vLLM's form, and xgrammar's. */
export type StructuralTag =
  | {
      type?: 'structural_tag';
      structures: readonly { begin: string; schema?: boolean | object; end: string }[];
      triggers: readonly string[];
    }
  | { type?: 'structural_tag'; format: StructuralFormat };

/** xgrammar's form of a tag in vLLM's. */
export function tagFormatOf(tag: StructuralTag): StructuralFormat {
  if ('format' in tag) return tag.format;
  return {
    type: 'triggered_tags',
    triggers: tag.triggers,
    tags: tag.structures.map(({ begin, schema, end }) => ({
      type: 'tag',
      begin,
      content: { type: 'json_schema', json_schema: schema ?? true },
      end,
    })),
  };
}

const LONE_SURROGATE = /\p{Surrogate}/u;

const content = z
  .string()
  .refine((text) => !LONE_SURROGATE.test(text), 'it has half of a surrogate pair');
const filled = content.min(1, 'it must not be empty');
const token = z.strictObject({ type: z.literal('token'), token: filled });
const tagText = z.union([content, token], 'it must be a text or a token');
const opening = z.union([filled, token], 'it must be a token or a text that is not empty');
const anySchema = z.union([z.boolean(), z.record(z.string(), z.unknown())]);
const jsonSchema = { json_schema: anySchema, where: z.string().optional() };
const flag = z.boolean().optional();

const format: z.ZodType = z.lazy(() =>
  z.discriminatedUnion(
    'type',
    [
      z.strictObject({ type: z.literal('const_string'), value: content }),
      token,
      z.strictObject({ type: z.literal('json_schema'), ...jsonSchema }),
      z.strictObject({ type: z.literal('regex'), pattern: content }),
      z.strictObject({ type: z.literal('grammar'), grammar: content }),
      z.strictObject({ type: z.literal('any_text'), excludes: z.array(filled).optional() }),
      z.strictObject({ type: z.literal('sequence'), elements: z.array(format) }),
      z.strictObject({ type: z.literal('or'), elements: z.array(format).min(1) }),
      z.strictObject({ type: z.literal('optional'), content: format }),
      z.strictObject({ type: z.literal('star'), content: format }),
      tag,
      z.strictObject({
        type: z.literal('triggered_tags'),
        triggers: z.array(opening).min(1),
        tags: z.array(tag).min(1),
        at_least_one: flag,
        stop_after_first: flag,
      }),
      z.strictObject({
        type: z.literal('leading_tags'),
        triggers: z.array(filled).min(1),
        content: format,
      }),
      z.strictObject({
        type: z.literal('tags_with_separator'),
        tags: z.array(tag).min(1),
        separator: content,
        at_least_one: flag,
        stop_after_first: flag,
      }),
      z.strictObject({ type: z.literal('qwen_xml_parameter'), ...jsonSchema }),
      z.strictObject({ type: z.literal('pythonic_arguments'), ...jsonSchema }),
      z.strictObject({
        type: z.literal('gemma_arguments'),
        ...jsonSchema,
        quote: opening,
      }),
    ],
    'it must be an object whose type is one of those of a format',
  ),
);
const tag: z.ZodObject = z.strictObject({
  type: z.literal('tag'),
  begin: tagText,
  content: format,
  end: tagText,
});
const type = z.literal('structural_tag').optional();
const structures = z.strictObject({
  type,
  structures: z
    .array(z.strictObject({ begin: filled, schema: anySchema.optional(), end: content }))
    .min(1),
  triggers: z.array(filled).min(1),
});
const formatted = z.strictObject({ type, format });

/**
 * Throws what `fail` makes of a message unless the value is a StructuralTag whose tags each begin with a
 * trigger. Schemas, expressions and grammars in it are checked when it is compiled.
 */
export function checkStructuralTag(
  value: unknown,
  fail: (message: string) => Error,
): asserts value is StructuralTag {
  const isFormatted = typeof value === 'object' && value !== null && 'format' in value;
  const result = (isFormatted ? formatted : structures).safeParse(value);
  if (!result.success) {
    const [{ path, message }] = result.error.issues;
    throw fail(`${pathText(path)}: ${message}`);
  }
  if (isFormatted) checkTriggers(value.format, 'format', fail);
  else checkBegins(value as Opened, 'structures', '', fail);
}

interface Opened {
  triggers: readonly TagText[];
  structures?: readonly { begin: TagText }[];
  tags?: readonly { begin: TagText }[];
}

/** Walks the formats within a format. */
function checkTriggers(value: unknown, path: string, fail: (message: string) => Error): void {
  const { type: kind, elements, content: inner, tags } = value as Record<string, unknown>;
  if (kind === 'triggered_tags') checkBegins(value as Opened, 'tags', `${path}.`, fail);
  for (const [name, list] of Object.entries({ elements, tags })) {
    if (!Array.isArray(list)) continue;
    list.forEach((one: unknown, i) => checkTriggers(one, `${path}.${name}[${i}]`, fail));
  }
  if (typeof inner === 'object' && inner !== null) checkTriggers(inner, `${path}.content`, fail);
}

function checkBegins(
  opened: Opened,
  name: 'structures' | 'tags',
  path: string,
  fail: (message: string) => Error,
): void {
  for (const [i, { begin }] of (opened[name] ?? []).entries()) {
    const opens = opened.triggers.some((trigger) =>
      typeof trigger === 'string'
        ? typeof begin === 'string' && begin.startsWith(trigger)
        : typeof begin !== 'string' && begin.token === trigger.token,
    );
    if (!opens) throw fail(`${path}${name}[${i}].begin: it begins with none of the triggers`);
  }
}

function pathText(path: readonly PropertyKey[]): string {
  return path
    .map((part, i) =>
      typeof part === 'number' ? `[${part}]` : i > 0 ? `.${String(part)}` : String(part),
    )
    .join('');
}

/** The special tokens that a tag names. */
export function tokensOf(value: unknown): string[] {
  if (typeof value !== 'object' || value === null) return [];
  if (Array.isArray(value)) return value.flatMap(tokensOf);
  const { type: kind, token: name } = value as Record<string, unknown>;
  if (kind === 'token' && typeof name === 'string') return [name];
  return Object.entries(value).flatMap(([key, one]) =>
    key === 'json_schema' || key === 'schema' ? [] : tokensOf(one),
  );
}
