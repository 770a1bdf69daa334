/** Chat templates, rendered as by transformers' render_jinja_template. */
import { show } from '../config/schema';
import { ChatTemplateError, InvalidRequestError } from '../errors';
import { checkMessages, checkTemplateOptions, type ChatTemplateOptions } from './chatMessages';
import { openFinalMessage } from './finalMessage';
import { ConversionError } from './jinja/convert';
import { TemplateRuntimeError, TemplateSyntaxError } from './jinja/errors';
import { JinjaTemplate } from './jinja/template';

export type { ChatMessage, ChatTemplateOptions, TextPart } from './chatMessages';

export interface RenderChatOptions extends ChatTemplateOptions {
  /** Variables such as bos_token, named as in transformers. */
  specialTokens?: Readonly<Record<string, string | null>>;
}

/** A compiled chat template. */
export class ChatTemplate {
  private readonly template: JinjaTemplate;

  /** Throws ChatTemplateError. */
  constructor(private readonly source: string) {
    try {
      this.template = new JinjaTemplate(source);
    } catch (error) {
      if (!(error instanceof TemplateSyntaxError)) throw error;
      const { line, reason } = error;
      const written = source.split(/\r\n|\r|\n/)[line - 1] ?? '';
      throw new ChatTemplateError(line, `${reason}; the line is ${show(written.trim())}`, {
        cause: error,
      });
    }
  }

  /**
   * Renders the conversation, special tokens included. Throws InvalidRequestError with the message
   * that the template raises, or naming an argument that cannot be passed to it.
   */
  render(messages: unknown, options: RenderChatOptions = {}): string {
    checkMessages(messages);
    checkTemplateOptions(options);
    const { tools, documents, chatTemplateKwargs, specialTokens } = options;
    const { addGenerationPrompt = false, continueFinalMessage = false } = options;
    const open = continueFinalMessage
      ? openFinalMessage(messages, this.source, continueFinalMessage)
      : null;
    const rendered = this.run({
      ...specialTokens,
      ...chatTemplateKwargs,
      messages: open?.messages ?? messages,
      tools: tools ?? null,
      documents: documents ?? null,
      add_generation_prompt: addGenerationPrompt,
    });
    return open ? open.cut(rendered) : rendered;
  }

  private run(variables: Readonly<Record<string, unknown>>): string {
    try {
      return this.template.render(variables);
    } catch (error) {
      if (error instanceof ConversionError) {
        throw new InvalidRequestError(
          `${error.message}, which cannot be passed to a chat template`,
          { cause: error },
        );
      }
      if (!(error instanceof TemplateRuntimeError)) throw error;
      const { kind, reason, line } = error;
      // A message from raise_exception is meant for the user.
      const detail =
        kind === 'TemplateError' ? reason : `${kind} in line ${line ?? '?'}: ${reason}`;
      throw new InvalidRequestError(`the chat template rejected the messages: ${detail}`, {
        cause: error,
      });
    }
  }
}

/** Recently compiled templates, by source. */
const compiled = new Map<string, ChatTemplate>();
const MAX_COMPILED = 32;

/** Compiles `source`, or returns it from the cache. Throws ChatTemplateError. */
export function compileChatTemplate(source: string): ChatTemplate {
  const template = compiled.get(source) ?? new ChatTemplate(source);
  compiled.delete(source);
  compiled.set(source, template);
  const [oldest] = compiled.keys();
  if (compiled.size > MAX_COMPILED) compiled.delete(oldest);
  return template;
}

/**
 * Renders `messages` with `template`, a chat template's text, exactly as transformers'
 * render_jinja_template does. addGenerationPrompt starts the assistant's turn. Throws
 * ChatTemplateError if the template does not compile, InvalidRequestError if rendering fails.
 */
export function renderChatTemplate(
  template: string,
  messages: readonly object[],
  options: RenderChatOptions = {},
): string {
  if (typeof (template as unknown) !== 'string') {
    throw new InvalidRequestError(`the template is ${show(template)}; it must be a string`);
  }
  return compileChatTemplate(template).render(messages, options);
}
