/**
 * The thread that renders a Tokenizer's chat templates. It is not the encoding thread, so a slow
 * template delays only other templates.
 */
import { limitedBy } from '../config/limits';
import { InvalidRequestError } from '../errors';
import { checkMessages } from './chatMessages';
import type { RenderChatOptions } from './chatTemplate';
import { ChatTemplates } from './chatTemplates';
import { checkFits, minNumTokens } from './lengthBound';
import type {
  Conversation,
  Rendered,
  RenderSettings,
  TemplateRequests,
  TemplateSetUp,
  ThreadRequest,
} from './threadMessages';
import { failureOf, type Reply, serve } from './threadServer';
import { protectTexts, type RenderedPart } from './userText';

/** Milliseconds after which a request starts no further conversation, so that others get their turn. */
const SLICE_MS = 10;

class TemplateRenderer {
  private readonly templates: ChatTemplates;

  constructor(private readonly setUp: TemplateSetUp) {
    this.templates = new ChatTemplates(setUp.templates, setUp.userTemplate);
  }

  /** Renders leading `conversations`, at least one, until the slice ends or one fails. */
  renderSlice(conversations: readonly Conversation[], settings: RenderSettings): Rendered[] {
    const end = performance.now() + SLICE_MS;
    const rendered: Rendered[] = [];
    for (const conversation of conversations) {
      try {
        rendered.push({ parts: this.render(conversation, settings) });
      } catch (error) {
        rendered.push({ failure: failureOf(error) });
        break;
      }
      if (performance.now() >= end) break;
    }
    return rendered;
  }

  private render(conversation: Conversation, settings: RenderSettings): RenderedPart[] {
    const parts = settings.splitSpecialTokens
      ? this.renderPlainTexts(conversation, settings)
      : [{ text: this.renderText(conversation, settings), isPlain: false }];
    this.checkLength(parts, settings);
    return parts;
  }

  private renderText(messages: unknown, settings: RenderSettings): string {
    const { chatTemplate, tools, documents, continueFinalMessage, chatTemplateKwargs } = settings;
    const options: RenderChatOptions = {
      tools,
      documents,
      continueFinalMessage,
      chatTemplateKwargs,
      addGenerationPrompt: settings.addGenerationPrompt ?? !continueFinalMessage,
      specialTokens: this.setUp.specialTokens,
    };
    return this.templates.render(messages, options, chatTemplate);
  }

  /** Keeps special tokens in messages, except the assistant's, and documents as text. */
  private renderPlainTexts(conversation: Conversation, settings: RenderSettings): RenderedPart[] {
    checkMessages(conversation);
    const documents = (settings.documents ?? []) as Conversation;
    const plainTexts = protectTexts(
      [...conversation, ...documents],
      this.setUp.specialTexts,
      (item) => (item as { role?: unknown }).role === 'assistant',
    );
    if (plainTexts === null) {
      return [{ text: this.renderText(conversation, settings), isPlain: false }];
    }
    if (settings.addSpecialTokens) {
      throw new InvalidRequestError(
        'splitSpecialTokens and addSpecialTokens cannot both be set: the chat template adds the special tokens',
      );
    }
    const messages = plainTexts.value.slice(0, conversation.length);
    const plainDocuments = settings.documents && plainTexts.value.slice(conversation.length);
    return plainTexts.split(this.renderText(messages, { ...settings, documents: plainDocuments }));
  }

  private checkLength(
    parts: readonly RenderedPart[],
    { limits, maxModelLen }: RenderSettings,
  ): void {
    const length = parts.reduce((sum, { text }) => sum + text.length, 0);
    if (limits && length > limits.maxPromptLength) {
      throw new InvalidRequestError(
        `its rendered text has ${length} characters; ${limitedBy(limits, 'maxPromptLength')}`,
      );
    }
    if (maxModelLen === undefined || maxModelLen === null) return;
    checkFits(minNumTokens(parts.map(({ text }) => text).join(''), this.setUp.bound), maxModelLen);
  }
}

/** Created by the request 'setUp'. */
let renderer: TemplateRenderer;

function handle(request: ThreadRequest<TemplateRequests>): Reply {
  switch (request.method) {
    case 'setUp':
      renderer = new TemplateRenderer(request.input);
      return { value: null };
    case 'render': {
      const { conversations, settings } = request.input;
      return { value: renderer.renderSlice(conversations, settings) };
    }
  }
}

serve<TemplateRequests>(handle);
