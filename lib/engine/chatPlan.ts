/** How the replies of one chat call are read and held to their form. */
import { types } from 'node:util';
import { HARD_LIMITS } from '../config/limits';
import type { ReplyOptions, ToolChoice } from '../config/replyOptions';
import type { SamplingParams } from '../config/samplingParams';
import type { StructuralFormat, StructuralTag } from '../config/structuralTag';
import { tagFormatOf } from '../config/structuralTag';
import { structuredBy, type StructuredOutputs } from '../config/structuredOutputs';
import { show } from '../config/schema';
import { InvalidRequestError } from '../errors';
import { switchOf } from '../reply/reasoning';
import {
  opensReasoning,
  type ParserNames,
  type ReplyFormat,
  replyFormatOf,
  structureOf,
} from '../reply/replyFormat';
import type { ReplySettings } from '../reply/replyParser';
import { BARE_NAMES, type Tool } from '../reply/toolFormat';
import { genericJson } from '../reply/formats/genericJson';
import type { ChatMessage, ChatTemplateOptions } from '../tokenizer/chatMessages';
import type { Tokenizer } from '../tokenizer/tokenizer';

/** Options of a chat that decide how its replies are read. */
export interface ChatPlanOptions extends ReplyOptions, ChatTemplateOptions {
  chatTemplate?: string | null;
}

interface CheckedTool extends Tool {
  /** The schema that a grammar holds the arguments to. */
  readonly enforced: boolean | object;
  /** Where the tool is, for errors. */
  readonly place: string;
}

export class ChatPlan {
  private readonly format: ReplyFormat;
  private readonly tools: readonly CheckedTool[];
  private readonly choice: 'auto' | 'required' | 'none';
  /** Null: the template's default. */
  private readonly reasons: boolean | null;
  private readonly params = new Map<SamplingParams, [SamplingParams?, SamplingParams?]>();

  /** Throws InvalidRequestError. */
  constructor(
    private readonly tokenizer: Tokenizer,
    private readonly options: ChatPlanOptions,
    defaults: ParserNames,
  ) {
    const hasTools = (options.tools?.length ?? 0) > 0 && options.toolChoice !== 'none';
    const template = tokenizer.chatTemplateText(options.chatTemplate ?? null, hasTools) ?? '';
    this.format = replyFormatOf(template, {
      toolCallParser: parserOf(options.toolCallParser, defaults.toolCallParser),
      reasoningParser: parserOf(options.reasoningParser, defaults.reasoningParser),
    });
    this.reasons = options.reasoning ?? null;
    const { toolChoice = null } = options;
    const isForced = toolChoice !== null && toolChoice !== 'auto' && toolChoice !== 'none';
    if (isForced && !hasTools) {
      throw new InvalidRequestError(`toolChoice is ${show(toolChoice)}, but there are no tools`);
    }
    if (isForced && !template.includes('tools')) {
      throw new InvalidRequestError(
        `toolChoice is ${show(toolChoice)}, but the chat template takes no tools`,
      );
    }
    const all = hasTools ? toolsOf(options.tools ?? [], isForced) : [];
    this.tools = chosen(all, toolChoice);
    this.choice = this.tools.length === 0 ? 'none' : isForced ? 'required' : 'auto';
    const { isHarmony, tools: notation } = this.format;
    const toolNames = isHarmony ? BARE_NAMES : notation?.toolNames;
    for (const { name, place } of toolNames === undefined ? [] : this.tools) {
      if (toolNames?.test(name) === true) continue;
      throw new InvalidRequestError(
        `${place}.name is ${show(name)}, which the notation of tool calls of this model cannot write`,
      );
    }
    if (isForced && isHarmony && this.continues) {
      throw new InvalidRequestError(
        `toolChoice is ${show(toolChoice)}, but the reply continues a message; leave out continueFinalMessage`,
      );
    }
  }

  /** The options of the template. Throws InvalidRequestError. */
  get templateOptions(): Pick<ChatTemplateOptions, 'tools' | 'chatTemplateKwargs'> {
    const { tools, toolChoice, chatTemplateKwargs } = this.options;
    return {
      tools: toolChoice === 'none' ? undefined : tools,
      chatTemplateKwargs: { ...this.reasoningKwargs(), ...chatTemplateKwargs },
    };
  }

  private reasoningKwargs(): Record<string, boolean> {
    const { format, reasons } = this;
    if (reasons === null) return {};
    const name = switchOf(format.template);
    if (name !== null) return { [name]: reasons };
    // A model that does not reason has nothing to turn off.
    if (reasons || (!format.isHarmony && format.reasoning === null)) return {};
    throw new InvalidRequestError(
      'reasoning is false, but the chat template has no switch that turns reasoning off' +
        (format.isHarmony ? "; set chatTemplateKwargs: { reasoning_effort: 'low' }" : ''),
    );
  }

  /** Whether the reply to `messages`, whose rendered text ends with `tail`, begins within reasoning. */
  isOpened(messages: readonly ChatMessage[], tail: string): boolean {
    const { format } = this;
    if (format.reasoning === null) return false;
    if (!this.continues) return opensReasoning(format, tail);
    const content = messages.at(-1)?.content;
    const { start, end } = format.reasoning;
    return typeof content === 'string' && content.lastIndexOf(start) > content.lastIndexOf(end);
  }

  /** Whether the template is told not to open reasoning. */
  private get isReasoningOff(): boolean {
    const name = switchOf(this.format.template);
    const own = name === null ? undefined : this.options.chatTemplateKwargs?.[name];
    return (own ?? this.reasons) === false;
  }

  private get continues(): boolean {
    const { continueFinalMessage = false } = this.options;
    return continueFinalMessage !== false;
  }

  replyOf(isOpened: boolean): ReplySettings {
    const { format, choice, tools } = this;
    const notation = format.tools ?? (choice === 'required' ? genericJson : null);
    return { format, calls: choice === 'none' ? null : notation, tools, isOpened };
  }

  /** The parameters with the grammar of the reply. Throws InvalidRequestError. */
  paramsOf(params: SamplingParams, isOpened: boolean, mayEnd: boolean): SamplingParams {
    let known = this.params.get(params);
    if (known === undefined) this.params.set(params, (known = []));
    return (known[Number(isOpened)] ??= this.enforced(params, isOpened, mayEnd));
  }

  private enforced(params: SamplingParams, isOpened: boolean, mayEnd: boolean): SamplingParams {
    const { choice, continues } = this;
    const { structuredOutputs } = params;
    if (choice === 'required' && structuredOutputs !== null) {
      throw new InvalidRequestError(
        'toolChoice and structuredOutputs both decide what the reply is; set one of them',
      );
    }
    if (choice === 'required' && !mayEnd) {
      throw new InvalidRequestError(
        'toolChoice needs a token that ends the text: ignoreEos is true or the model has no end of ' +
          'sequence, and stopTokenIds is empty',
      );
    }
    // Free text that cannot end needs no grammar.
    if (structuredOutputs === null && (choice === 'none' || !mayEnd)) return params;
    const continuesMessage = continues && this.format.isHarmony;
    const format = continuesMessage
      ? null
      : structureOf(this.format, {
          tools: this.tools.map(({ name, enforced }) => ({ name, parameters: enforced })),
          choice,
          isParallel: this.options.parallelToolCalls ?? true,
          content: structuredOutputs === null ? null : contentOf(structuredOutputs),
          isOpened,
          mayReason: !continues && !this.isReasoningOff,
          specialNames: this.tokenizer.tokens.specialNames,
        });
    if (format === null) return params;
    // Calls alone are spaced as templates space them: with a space at most.
    const settings = structuredOutputs ?? { whitespacePattern: ' ?' };
    return params.withStructure(structuredBy(this.named(format), settings));
  }

  /** The format with the places of the tools' schemas, for errors. */
  private named(format: StructuralFormat): StructuralFormat {
    const places = new Map<unknown, string>(
      this.tools.map(({ enforced, place }) => [enforced, `${place}.parameters`]),
    );
    const name = (value: unknown): unknown => {
      if (Array.isArray(value)) return value.map(name);
      if (typeof value !== 'object' || value === null) return value;
      const copy: Record<string, unknown> = {};
      for (const [key, one] of Object.entries(value)) {
        copy[key] = key === 'json_schema' ? one : name(one);
      }
      const where = places.get(copy.json_schema);
      if (where !== undefined) copy.where = where;
      return copy;
    };
    return name(format) as StructuralFormat;
  }
}

const parserOf = (own: string | undefined, general: string | null | undefined) => {
  const name = own ?? general ?? undefined;
  return name === 'none' ? null : name;
};

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** `isForced`: each must be a function with a name; else others are the template's affair. */
function toolsOf(tools: readonly object[], isForced: boolean): CheckedTool[] {
  if (tools.length > HARD_LIMITS.tools) {
    throw new InvalidRequestError(
      `the chat has ${tools.length} tools; the limit is ${HARD_LIMITS.tools}`,
    );
  }
  return tools.flatMap((tool, i) => {
    const given: unknown = (tool as { function?: unknown }).function ?? tool;
    const own = isObject(given) ? given : {};
    const { name, parameters, strict } = own;
    if (typeof name !== 'string' || name === '') {
      if (!isForced) return [];
      throw new InvalidRequestError(
        `tools[${i}].function.name is ${show(name)}; it must be a string that is not empty`,
      );
    }
    const place = `tools[${i}].function`;
    const schema = objectSchemaOf(parameters, `${place}.parameters`);
    return [
      {
        name,
        parameters: schema,
        // A copy of its own: errors find the tool by it.
        enforced: strict === false ? { type: 'object' } : { ...schema },
        place,
      },
    ];
  });
}

/** Arguments are an object, even where the schema does not say so. */
function objectSchemaOf(parameters: unknown, where: string): object {
  if (parameters === undefined || parameters === null) {
    return { type: 'object', properties: {}, additionalProperties: false };
  }
  if (!isObject(parameters)) {
    throw new InvalidRequestError(`${where} is ${show(parameters)}; it must be a JSON schema`);
  }
  checkJson(parameters, where);
  return parameters.type === undefined ? { ...parameters, type: 'object' } : parameters;
}

/** Throws InvalidRequestError for what the copy of a call's options may have, and JSON lacks. */
function checkJson(value: unknown, where: string): void {
  const isNoNumber = typeof value === 'number' && !Number.isFinite(value);
  if (isNoNumber || typeof value === 'bigint' || types.isMap(value)) {
    throw new InvalidRequestError(`${where} has ${show(value)}, which JSON cannot write`);
  }
  if (typeof value !== 'object' || value === null) return;
  for (const one of Object.values(value)) checkJson(one, where);
}

/** The name in a toolChoice; null for one without. */
function nameIn(choice: ToolChoice | null): string | null {
  if (choice === null || typeof choice === 'string') return null;
  return 'function' in choice ? choice.function.name : choice.name;
}

function chosen(tools: CheckedTool[], choice: ToolChoice | null): readonly CheckedTool[] {
  const name = nameIn(choice);
  if (name === null) return tools;
  const own = tools.filter((tool) => tool.name === name);
  if (own.length > 0) return own;
  throw new InvalidRequestError(
    `toolChoice names ${show(name)}; the tools are ${tools.map((tool) => tool.name).join(', ')}`,
  );
}

/** structuredOutputs as a part of a structure. */
function contentOf(outputs: StructuredOutputs): StructuralFormat {
  const { json, regex, choice, grammar, structuralTag } = outputs;
  if (json !== undefined) {
    const where = 'structuredOutputs.json';
    return { type: 'json_schema', json_schema: JSON.parse(json) as boolean | object, where };
  }
  if (regex !== undefined) return { type: 'regex', pattern: regex };
  if (grammar !== undefined) return { type: 'grammar', grammar };
  if (choice !== undefined) {
    return {
      type: 'or',
      elements: choice.map((value) => ({ type: 'const_string', value })),
    };
  }
  if (structuralTag !== undefined) return tagFormatOf(JSON.parse(structuralTag) as StructuralTag);
  return { type: 'json_schema', json_schema: { type: 'object' } };
}
