/** Copies a conversation and its options at the call, for a thread to render later. */
import { show } from '../config/schema';
import { DataSnapshot, readingOf, SnapshotError } from '../config/snapshot';
import { InvalidRequestError } from '../errors';
import { checkMessages, checkTemplateOptions } from './chatMessages';
import { ConversionError, fromJs, MAX_DATA_DEPTH } from './jinja/convert';
import type { Conversation, RenderSettings } from './threadMessages';

/** Throws InvalidRequestError for values that cannot be passed to a template. */
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

/** An option's truth value; null counts as missing. */
function flag(value: unknown): boolean | undefined {
  return value === undefined || value === null ? undefined : Boolean(value);
}

function copyOf(value: unknown, name: string): unknown {
  try {
    return new DataSnapshot(Infinity, MAX_DATA_DEPTH + 1).copy(value);
  } catch (error) {
    if (!(error instanceof SnapshotError)) throw error;
    throw new InvalidRequestError(
      `${describeInvalid(value, name)}, which cannot be passed to a chat template`,
    );
  }
}

/** Names the part of `value` that cannot be copied. */
function describeInvalid(value: unknown, name: string): string {
  try {
    fromJs(value, name);
  } catch (error) {
    if (error instanceof ConversionError) return error.message;
    throw error;
  }
  return `${name} is not plain data`;
}
