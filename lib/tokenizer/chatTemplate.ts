/** A checkpoint's chat template: how its model was taught to read a conversation. */
import path from 'node:path';
import { fileExists, readText } from '../config/jsonFile';
import { show } from '../config/schema';
import { CheckpointError, InvalidRequestError } from '../errors';
import { Template } from './huggingface';

/** One turn of a conversation. Further fields reach the template as they are. */
export interface ChatMessage {
  /** 'system', 'user' or 'assistant', or what else the template knows. */
  role: string;
  content: string;
  [field: string]: unknown;
}

export class ChatTemplate {
  #template: Template | undefined;

  private constructor(
    private readonly file: string,
    private readonly source: string,
  ) {}

  /**
   * The template of `folder`: chat_template.jinja, else the one in tokenizer_config.json (the one named
   * default where it has several); null when there is none. Throws CheckpointError.
   */
  static async load(folder: string, inConfig: unknown): Promise<ChatTemplate | null> {
    const jinja = path.join(folder, 'chat_template.jinja');
    if (await fileExists(jinja)) return new ChatTemplate(jinja, await readText(jinja));

    const config = path.join(folder, 'tokenizer_config.json');
    if (inConfig === undefined || inConfig === null) return null;
    if (typeof inConfig === 'string') return new ChatTemplate(config, inConfig);
    const named: unknown[] = Array.isArray(inConfig) ? inConfig : [];
    for (const entry of named) {
      const { name, template } = (entry ?? {}) as { name?: unknown; template?: unknown };
      if (name === 'default' && typeof template === 'string') {
        return new ChatTemplate(config, template);
      }
    }
    throw new CheckpointError(
      config,
      `chat_template is ${show(inConfig)}; it must be a string or a list of ` +
        "{ name, template } with one named 'default'",
    );
  }

  /**
   * The conversation as text, special tokens included. Throws InvalidRequestError with what the
   * template itself objects to, CheckpointError when it is not a template.
   */
  render(
    messages: readonly ChatMessage[],
    addGenerationPrompt: boolean,
    specialTokens: Readonly<Record<string, string>>,
  ): string {
    checkMessages(messages);
    const template = this.compile();
    try {
      return template.render({
        ...specialTokens,
        messages,
        tools: null,
        documents: null,
        add_generation_prompt: addGenerationPrompt,
      });
    } catch (cause) {
      throw new InvalidRequestError(
        `the model's chat template refuses the messages: ${(cause as Error).message}`,
        { cause },
      );
    }
  }

  private compile(): Template {
    try {
      return (this.#template ??= new Template(this.source));
    } catch (cause) {
      throw new CheckpointError(
        this.file,
        `the chat template cannot be read: ${(cause as Error).message}`,
        { cause },
      );
    }
  }
}

function checkMessages(messages: unknown): void {
  if (!Array.isArray(messages) || messages.length === 0) {
    throw new InvalidRequestError(
      `messages is ${show(messages)}; it must be a list of at least one { role, content }`,
    );
  }
  messages.forEach((message: unknown, i) => {
    const { role, content } = (message ?? {}) as Partial<ChatMessage>;
    if (typeof role !== 'string' || typeof content !== 'string') {
      throw new InvalidRequestError(
        `messages[${i}] is ${show(message)}; its role and content must be strings`,
      );
    }
  });
}
