/** Reads a checkpoint's chat templates and checks that they compile. */
import path from 'node:path';
import { fileExists, namesIn, readJsonObject, readText } from '../config/jsonFile';
import { show } from '../config/schema';
import { CheckpointError, ConfigError } from '../errors';
import type { ThreadClient } from './threadClient';
import type { ChatTemplateFile, TokenizerRequests } from './threadMessages';

/**
 * Reads the chat templates of `folder` from the first source present, in transformers' order:
 * chat_template.jinja and additional_chat_templates/*.jinja; chat_template.json; `inConfig`, the
 * chat_template of tokenizer_config.json. A single template is named 'default'. Throws
 * CheckpointError.
 */
export async function readChatTemplates(
  folder: string,
  inConfig: unknown,
): Promise<readonly ChatTemplateFile[]> {
  const files = await readTemplateFiles(folder);
  if (files.length > 0) return files;
  const legacy = path.join(folder, 'chat_template.json');
  if (await fileExists(legacy)) {
    const { chat_template: value } = await readJsonObject(legacy);
    if (value !== undefined && value !== null) return readTemplates(legacy, value);
  }
  const config = path.join(folder, 'tokenizer_config.json');
  const isPresent = inConfig !== undefined && inConfig !== null;
  return isPresent ? readTemplates(config, inConfig) : [];
}

/** chat_template.jinja as 'default', and additional_chat_templates/*.jinja by file name. */
async function readTemplateFiles(folder: string): Promise<ChatTemplateFile[]> {
  const templates: ChatTemplateFile[] = [];
  const main = path.join(folder, 'chat_template.jinja');
  if (await fileExists(main)) {
    templates.push({ name: 'default', file: main, text: await readText(main) });
  }
  const more = path.join(folder, 'additional_chat_templates');
  const names = await namesIn(more);
  for (const name of names.filter((file) => file.endsWith('.jinja')).sort()) {
    const file = path.join(more, name);
    templates.push({ name: path.basename(name, '.jinja'), file, text: await readText(file) });
  }
  return templates;
}

/** A string, a list of { name, template }, or an object of templates by name. Throws CheckpointError. */
function readTemplates(file: string, value: unknown): ChatTemplateFile[] {
  if (typeof value === 'string') return [{ name: 'default', file, text: value }];
  const entries: [unknown, unknown][] = [];
  if (Array.isArray(value)) {
    for (const entry of value as unknown[]) {
      const { name, template } = (entry ?? {}) as { name?: unknown; template?: unknown };
      entries.push([name, template]);
    }
  } else if (typeof value === 'object' && value !== null) {
    entries.push(...Object.entries(value));
  }
  const templates: ChatTemplateFile[] = [];
  for (const [name, text] of entries) {
    if (typeof name === 'string' && typeof text === 'string') {
      templates.push({ name, file, text });
    }
  }
  if (templates.length === 0 || templates.length < entries.length) {
    throw new CheckpointError(
      file,
      `chat_template is ${show(value)}; it must be a string, a list of { name, template }, or an ` +
        'object of templates by name',
    );
  }
  return templates;
}

/**
 * Compiles the templates: emits a warning for a broken template of the checkpoint, throws
 * ConfigError if `userTemplate` is a text that does not compile.
 */
export async function checkTemplates(
  thread: ThreadClient<TokenizerRequests>,
  templates: readonly ChatTemplateFile[],
  userTemplate: string | null,
): Promise<void> {
  const isText = userTemplate !== null && !templates.some(({ name }) => name === userTemplate);
  const texts = [...templates.map(({ text }) => text), ...(isText ? [userTemplate] : [])];
  if (texts.length === 0) return;
  const errors = await thread.request('checkTemplates', { texts });
  for (const [i, { name, file }] of templates.entries()) {
    if (errors[i] === null) continue;
    process.emitWarning(
      `${file}: the chat template ${show(name)} cannot be compiled: ${errors[i]}; to use chat, ` +
        'pass another one as chatTemplate',
      'UniprocWarning',
    );
  }
  const error = isText ? errors[templates.length] : null;
  if (error !== null) throw new ConfigError(`chatTemplate cannot be compiled: ${error}`);
}
