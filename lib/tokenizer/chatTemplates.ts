/** A checkpoint's chat templates: where they are, which one is meant, and whose fault a failure is. */
import path from 'node:path';
import { fileExists, namesIn, readJsonObject, readText } from '../config/jsonFile';
import { show } from '../config/schema';
import { ChatTemplateError, CheckpointError, ConfigError, InvalidRequestError } from '../errors';
import { ChatTemplate, compileChatTemplate, type RenderChatOptions } from './chatTemplate';

/** A template of a checkpoint's, or why it is none. */
interface Source {
  file: string;
  template: ChatTemplate | ChatTemplateError;
}

function source(file: string, text: string): Source {
  try {
    return { file, template: new ChatTemplate(text) };
  } catch (error) {
    if (error instanceof ChatTemplateError) return { file, template: error };
    throw error;
  }
}

export class ChatTemplates {
  private constructor(
    /** By name; a single template is 'default'. */
    private readonly sources: ReadonlyMap<string, Source>,
    /** Instead of the checkpoint's choice, a template or the name of one. */
    private readonly own: string | null,
  ) {
    for (const [name, { file, template }] of sources) {
      if (!(template instanceof ChatTemplateError)) continue;
      process.emitWarning(
        `${file}: the chat template ${show(name)} cannot be compiled: ${template.message}; generate ` +
          'works, chat needs another chatTemplate',
        'UniprocWarning',
      );
    }
    if (own === null || sources.has(own)) return;
    try {
      compileChatTemplate(own);
    } catch (cause) {
      if (!(cause instanceof ChatTemplateError)) throw cause;
      throw new ConfigError(`chatTemplate cannot be compiled: ${cause.message}`, { cause });
    }
  }

  /**
   * The templates of `folder`, in transformers' order: chat_template.jinja and
   * additional_chat_templates/*.jinja, else chat_template.json, else `inConfig`, the chat_template of
   * tokenizer_config.json. One that does not compile is a warning. `own` is used instead of them, or names
   * the one to use. Throws CheckpointError, and ConfigError when `own` does not compile.
   */
  static async load(folder: string, inConfig: unknown, own?: string): Promise<ChatTemplates> {
    return new ChatTemplates(await readAll(folder, inConfig), own ?? null);
  }

  /**
   * The conversation as text. `chosen` is a template of the caller's own, or the name of one of the
   * checkpoint's; without it, tool_use where there are tools and a template of that name, else default.
   * Throws CheckpointError for a template of the checkpoint's that does not compile, InvalidRequestError
   * for anything the caller can mend.
   */
  render(messages: unknown, options: RenderChatOptions, chosen?: string | null): string {
    return this.choose(chosen ?? this.own, (options.tools ?? null) !== null).render(
      messages,
      options,
    );
  }

  private choose(chosen: string | null, hasTools: boolean): ChatTemplate {
    const named = chosen === null ? this.byUse(hasTools) : this.sources.get(chosen);
    if (named) return checked(named);
    if (chosen === null) throw this.noTemplate();
    try {
      return compileChatTemplate(chosen);
    } catch (cause) {
      if (!(cause instanceof ChatTemplateError)) throw cause;
      throw new InvalidRequestError(`chatTemplate cannot be compiled: ${cause.message}`, { cause });
    }
  }

  private byUse(hasTools: boolean): Source | undefined {
    return (hasTools && this.sources.get('tool_use')) || this.sources.get('default');
  }

  private noTemplate(): InvalidRequestError {
    if (this.sources.size > 0) {
      const names = [...this.sources.keys()].sort().join(', ');
      return new InvalidRequestError(
        `this model has the chat templates ${names} and none is named 'default'; name one of them ` +
          'as chatTemplate, or give one of your own',
      );
    }
    return new InvalidRequestError(
      'this model has no chat template (chat_template.jinja, or chat_template in ' +
        'tokenizer_config.json); give one as chatTemplate, or write the prompt as text and use generate',
    );
  }
}

function checked({ file, template }: Source): ChatTemplate {
  if (template instanceof ChatTemplate) return template;
  throw new CheckpointError(file, `the chat template cannot be compiled: ${template.message}`, {
    cause: template,
  });
}

async function readAll(folder: string, inConfig: unknown): Promise<Map<string, Source>> {
  const files = await readTemplateFiles(folder);
  if (files.size > 0) return files;
  const legacy = path.join(folder, 'chat_template.json');
  if (await fileExists(legacy)) {
    const { chat_template: value } = await readJsonObject(legacy);
    if (value !== undefined && value !== null) return readTemplates(legacy, value);
  }
  const config = path.join(folder, 'tokenizer_config.json');
  const isThere = inConfig !== undefined && inConfig !== null;
  return isThere ? readTemplates(config, inConfig) : new Map<string, Source>();
}

/** chat_template.jinja as 'default', and each file of additional_chat_templates by its name. */
async function readTemplateFiles(folder: string): Promise<Map<string, Source>> {
  const templates = new Map<string, Source>();
  const main = path.join(folder, 'chat_template.jinja');
  if (await fileExists(main)) templates.set('default', source(main, await readText(main)));
  const more = path.join(folder, 'additional_chat_templates');
  const names = await namesIn(more);
  for (const name of names.filter((file) => file.endsWith('.jinja')).sort()) {
    const file = path.join(more, name);
    templates.set(path.basename(name, '.jinja'), source(file, await readText(file)));
  }
  return templates;
}

/** A string, a list of { name, template }, or an object of templates by name. Throws CheckpointError. */
function readTemplates(file: string, value: unknown): Map<string, Source> {
  if (typeof value === 'string') return new Map([['default', source(file, value)]]);
  const entries: [unknown, unknown][] = [];
  if (Array.isArray(value)) {
    for (const entry of value as unknown[]) {
      const { name, template } = (entry ?? {}) as { name?: unknown; template?: unknown };
      entries.push([name, template]);
    }
  } else if (typeof value === 'object' && value !== null) {
    entries.push(...Object.entries(value));
  }
  const templates = new Map<string, Source>();
  for (const [name, text] of entries) {
    if (typeof name === 'string' && typeof text === 'string') {
      templates.set(name, source(file, text));
    }
  }
  if (templates.size === 0 || templates.size < entries.length) {
    throw new CheckpointError(
      file,
      `chat_template is ${show(value)}; it must be a string, a list of { name, template }, or an ` +
        'object of templates by name',
    );
  }
  return templates;
}
