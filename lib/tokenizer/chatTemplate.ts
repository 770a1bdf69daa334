/** Conversations put into words as transformers' render_jinja_template puts them. */
import { show } from '../config/schema';
import { ChatTemplateError, InvalidRequestError } from '../errors';
import { checkMessages, checkTemplateOptions, type ChatTemplateOptions } from './chatMessages';
import { openFinalMessage } from './finalMessage';
import { ConversionError } from './jinja/convert';
import { TemplateRuntimeError, TemplateSyntaxError } from './jinja/errors';
import { JinjaTemplate } from './jinja/template';

export type { ChatMessage, ChatTemplateOptions, TextPart } from './chatMessages';

export interface RenderChatOptions extends ChatTemplateOptions {
  /** Variables such as bos_token, by transformers' names. */
  specialTokens?: Readonly<Record<string, string | null>>;
}

/** A chat template that compiles. */
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
   * The conversation as text, special tokens included. Throws InvalidRequestError with what the
   * template raises, or with the argument that it cannot be given.
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
        throw new InvalidRequestError(`${error.message}, which no chat template can read`, {
          cause: error,
        });
      }
      if (!(error instanceof TemplateRuntimeError)) throw error;
      const { kind, reason, line } = error;
      // What the template itself objects to needs no explanation.
      const said =
        kind === 'TemplateError' ? reason : `at its line ${line ?? '?'}, ${kind}: ${reason}`;
      throw new InvalidRequestError(`the chat template refuses the messages: ${said}`, {
        cause: error,
      });
    }
  }
}

/** Templates given as text that were compiled lately, by their text. */
const compiled = new Map<string, ChatTemplate>();
const MAX_COMPILED = 32;

/** `source` compiled; the same template again, while it was not long ago. Throws ChatTemplateError. */
export function compileChatTemplate(source: string): ChatTemplate {
  const template = compiled.get(source) ?? new ChatTemplate(source);
  compiled.delete(source);
  compiled.set(source, template);
  const [oldest] = compiled.keys();
  if (compiled.size > MAX_COMPILED) compiled.delete(oldest);
  return template;
}

/**
 * `messages` put into words by `template`, a chat template's text, exactly as transformers'
 * render_jinja_template does. Without addGenerationPrompt the model's turn is not opened. Throws
 * ChatTemplateError for what is no template, InvalidRequestError for what the template refuses.
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
