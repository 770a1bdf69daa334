/** Selects one of a checkpoint's chat templates or the user's. */
import { ChatTemplateError, CheckpointError, InvalidRequestError } from '../errors';
import { type ChatTemplate, compileChatTemplate, type RenderChatOptions } from './chatTemplate';
import type { ChatTemplateFile } from './threadMessages';

export class ChatTemplates {
  /** By name; a later template replaces an earlier one of the same name. */
  private readonly files: ReadonlyMap<string, ChatTemplateFile>;

  constructor(
    files: readonly ChatTemplateFile[],
    /** The default chatTemplate: a template's text or name; null for the checkpoint's default. */
    private readonly userTemplate: string | null,
  ) {
    this.files = new Map(files.map((file) => [file.name, file]));
  }

  /**
   * Renders a conversation. `chosen` is a template's text or the name of a template in the checkpoint;
   * default: 'tool_use' if there are tools and that template exists, else 'default'. Throws
   * CheckpointError if the checkpoint's template does not compile, otherwise InvalidRequestError.
   */
  render(messages: unknown, options: RenderChatOptions, chosen?: string | null): string {
    return this.choose(chosen ?? this.userTemplate, (options.tools ?? null) !== null).render(
      messages,
      options,
    );
  }

  private choose(chosen: string | null, hasTools: boolean): ChatTemplate {
    const named = chosen === null ? this.byUse(hasTools) : this.files.get(chosen);
    if (named) return compiled(named);
    if (chosen === null) throw this.noTemplate();
    try {
      return compileChatTemplate(chosen);
    } catch (cause) {
      if (!(cause instanceof ChatTemplateError)) throw cause;
      throw new InvalidRequestError(`chatTemplate cannot be compiled: ${cause.message}`, { cause });
    }
  }

  private byUse(hasTools: boolean): ChatTemplateFile | undefined {
    return (hasTools && this.files.get('tool_use')) || this.files.get('default');
  }

  private noTemplate(): InvalidRequestError {
    if (this.files.size > 0) {
      const names = [...this.files.keys()].sort().join(', ');
      return new InvalidRequestError(
        `the checkpoint's chat templates are ${names}, and none is named 'default'; set chatTemplate ` +
          "to one of these names or to a template's text",
      );
    }
    return new InvalidRequestError(
      'the checkpoint has no chat template (chat_template.jinja, or chat_template in ' +
        'tokenizer_config.json); set chatTemplate, or format the prompt as text and use generate',
    );
  }
}

function compiled({ file, text }: ChatTemplateFile): ChatTemplate {
  try {
    return compileChatTemplate(text);
  } catch (cause) {
    if (!(cause instanceof ChatTemplateError)) throw cause;
    throw new CheckpointError(file, `the chat template cannot be compiled: ${cause.message}`, {
      cause,
    });
  }
}
