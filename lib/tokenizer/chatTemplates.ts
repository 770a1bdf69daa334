/** Which of a checkpoint's chat templates is meant, and who is at fault where it fails. */
import { ChatTemplateError, CheckpointError, InvalidRequestError } from '../errors';
import { type ChatTemplate, compileChatTemplate, type RenderChatOptions } from './chatTemplate';
import type { ChatTemplateFile } from './threadMessages';

export class ChatTemplates {
  /** By name; of two of one name the later counts. */
  private readonly files: ReadonlyMap<string, ChatTemplateFile>;

  constructor(
    files: readonly ChatTemplateFile[],
    /** Instead of the checkpoint's choice, a template or the name of one. */
    private readonly own: string | null,
  ) {
    this.files = new Map(files.map((file) => [file.name, file]));
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
