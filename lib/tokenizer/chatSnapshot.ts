/** A conversation and its options as they are at the call, for a thread to render later. */
import { show } from '../config/schema';
import { DataSnapshot, readingOf, SnapshotError } from '../config/snapshot';
import { InvalidRequestError } from '../errors';
import { checkMessages, checkTemplateOptions } from './chatMessages';
import { ConversionError, fromJs, MAX_DATA_DEPTH } from './jinja/convert';
import type { Conversation, RenderSettings } from './threadMessages';

/** Throws InvalidRequestError for what no template can be given. */
export function snapshotOfChat(
  messages: unknown,
  options: RenderSettings | null,
): { conversation: Conversation; settings: RenderSettings } {
  return readingOf('the call', () => {
    const { tools, documents, chatTemplateKwargs, ...rest } = options ?? {};
    checkMessages(messages);
    checkTemplateOptions({ ...rest, tools, documents, chatTemplateKwargs });
    const { chatTemplate, addGenerationPrompt, continueFinalMessage } = rest;
    if (chatTemplate !== undefined && chatTemplate !== null && typeof chatTemplate !== 'string') {
      throw new InvalidRequestError(`chatTemplate is ${show(chatTemplate)}; it must be a string`);
    }
    const variables = Object.entries(chatTemplateKwargs ?? {});
    const kwargs = variables.map(([name, value]) => [name, copyOf(value, name)] as const);
    return {
      conversation: copyOf(messages, 'messages') as Conversation,
      settings: {
        chatTemplate,
        addGenerationPrompt: flag(addGenerationPrompt),
        continueFinalMessage:
          typeof continueFinalMessage === 'string'
            ? continueFinalMessage
            : flag(continueFinalMessage),
        tools: copyOf(tools, 'tools') as RenderSettings['tools'],
        documents: copyOf(documents, 'documents') as RenderSettings['documents'],
        chatTemplateKwargs: Object.fromEntries(kwargs),
        addSpecialTokens: flag(rest.addSpecialTokens),
        splitSpecialTokens: flag(rest.splitSpecialTokens),
      },
    };
  });
}

/** What an option amounts to; null counts as missing. */
function flag(value: unknown): boolean | undefined {
  return value === undefined || value === null ? undefined : Boolean(value);
}

function copyOf(value: unknown, name: string): unknown {
  try {
    return new DataSnapshot(Infinity, MAX_DATA_DEPTH + 1).copy(value);
  } catch (error) {
    if (!(error instanceof SnapshotError)) throw error;
    throw new InvalidRequestError(`${whereOf(value, name)}, which no chat template can read`);
  }
}

/** Where in `value` is what cannot be copied. */
function whereOf(value: unknown, name: string): string {
  try {
    fromJs(value, name);
  } catch (error) {
    if (error instanceof ConversionError) return error.message;
    throw error;
  }
  return `${name} is no data`;
}
