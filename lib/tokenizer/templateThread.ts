/**
 * The thread that renders a Tokenizer's chat templates. It is another than the one that encodes, so that
 * a template that takes long holds up other templates alone.
 */
import { limitedBy } from '../config/limits';
import { InvalidRequestError } from '../errors';
import { checkMessages } from './chatMessages';
import type { RenderChatOptions } from './chatTemplate';
import { ChatTemplates } from './chatTemplates';
import { checkFits, minNumTokens } from './lengthBound';
import type {
  Conversation,
  Question,
  Rendered,
  RenderSettings,
  TemplateRequests,
  TemplateSetUp,
} from './threadMessages';
import { failureOf, type Reply, serve } from './threadServer';
import { protectTexts, type RenderedPart } from './userText';

/** Milliseconds after which no further conversation of a request is begun: others wait. */
const SLICE_MS = 10;

class TemplateRenderer {
  private readonly templates: ChatTemplates;

  constructor(private readonly setUp: TemplateSetUp) {
    this.templates = new ChatTemplates(setUp.templates, setUp.own);
  }

  /** The first of `conversations`, one at least; none after one that fails. */
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

  /** What reads like a special token stays text, in messages (but the assistant's) and documents. */
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
        'a chat takes either splitSpecialTokens or addSpecialTokens: its template has the special tokens',
      );
    }
    const messages = plainTexts.value.slice(0, conversation.length);
    const ownDocuments = settings.documents && plainTexts.value.slice(conversation.length);
    return plainTexts.split(this.renderText(messages, { ...settings, documents: ownDocuments }));
  }

  private checkLength(
    parts: readonly RenderedPart[],
    { limits, maxModelLen }: RenderSettings,
  ): void {
    const length = parts.reduce((sum, { text }) => sum + text.length, 0);
    if (limits && length > limits.maxPromptLength) {
      throw new InvalidRequestError(
        `its text has ${length} characters; ${limitedBy(limits, 'maxPromptLength')}`,
      );
    }
    if (maxModelLen === undefined || maxModelLen === null) return;
    checkFits(minNumTokens(parts.map(({ text }) => text).join(''), this.setUp.bound), maxModelLen);
  }
}

/** As the thread was told to be. */
let renderer: TemplateRenderer;

function answer(question: Question<TemplateRequests>): Reply {
  switch (question.method) {
    case 'setUp':
      renderer = new TemplateRenderer(question.input);
      return { value: null };
    case 'render': {
      const { conversations, settings } = question.input;
      return { value: renderer.renderSlice(conversations, settings) };
    }
  }
}

serve<TemplateRequests>(answer);
