/** Collects a reply's parts as a message and as deltas. */
import { randomUUID } from 'node:crypto';
import type { AssistantMessage, MessageDelta } from '../requestOutput';

export class ReplySink {
  readonly message: AssistantMessage = { content: '', reasoning: null, toolCalls: [] };
  private delta: MessageDelta = emptyDelta();
  private isChanged = false;
  /** White space that belongs to the content only if more content follows. */
  private space: string | null = '';
  private reasoningSpace = '';
  private mayStartWithSpace = true;

  /** `makeId` makes the id of a tool call. */
  constructor(
    private readonly makeId: () => string = () => `call_${randomUUID().replaceAll('-', '')}`,
  ) {}

  content(text: string): void {
    let own = text;
    if (this.space !== null) {
      if (text.trim() === '') {
        this.space += text;
        return;
      }
      own = this.space + text;
      this.space = null;
      if (!this.mayStartWithSpace) own = own.trimStart();
    }
    if (own === '') return;
    this.message.content += own;
    this.delta.content += own;
    this.isChanged = true;
  }

  /** Without white space around all of it. */
  reasoning(text: string): void {
    if (text.trim() === '') {
      this.reasoningSpace += text;
      return;
    }
    let own = this.reasoningSpace + text;
    const kept = own.trimEnd();
    this.reasoningSpace = own.slice(kept.length);
    own = (this.message.reasoning ?? '') === '' ? kept.trimStart() : kept;
    if (own === '') return;
    this.message.reasoning = (this.message.reasoning ?? '') + own;
    this.delta.reasoning += own;
    this.isChanged = true;
  }

  /** The reply has reasoning, maybe empty. */
  beginReasoning(): void {
    this.message.reasoning ??= '';
  }

  /** Content begins behind reasoning: white space before it is not part of it. */
  endReasoning(): void {
    this.reasoningSpace = '';
    this.space = '';
    this.mayStartWithSpace = this.message.content !== '';
  }

  /** A tool call begins; its arguments follow. */
  beginCall(name: string): void {
    const id = this.makeId();
    const index = this.message.toolCalls.push({ id, name, arguments: '' }) - 1;
    this.delta.toolCalls.push({ index, id, name, arguments: '' });
    this.isChanged = true;
    // White space between calls is not content.
    this.space = '';
    this.mayStartWithSpace = this.message.content !== '';
  }

  /** More of the arguments' JSON. */
  arguments(text: string): void {
    const index = this.message.toolCalls.length - 1;
    this.message.toolCalls[index].arguments += text;
    const last = this.delta.toolCalls.at(-1);
    if (last?.index === index) last.arguments += text;
    else this.delta.toolCalls.push({ index, arguments: text });
    this.isChanged = true;
  }

  /** The reply is complete. */
  finish(): void {
    const { reasoning, toolCalls } = this.message;
    if (this.space === null || this.space === '' || toolCalls.length > 0 || reasoning !== null)
      return;
    this.message.content += this.space;
    this.delta.content += this.space;
    this.isChanged = true;
  }

  /** What was added since the last call; null if nothing. */
  take(): MessageDelta | null {
    if (!this.isChanged) return null;
    const { delta } = this;
    this.delta = emptyDelta();
    this.isChanged = false;
    return delta;
  }
}

function emptyDelta(): MessageDelta {
  return { content: '', reasoning: '', toolCalls: [] };
}

/** Appends `delta` to `earlier`. */
export function mergeMessages(earlier: MessageDelta, delta: MessageDelta): void {
  earlier.content += delta.content;
  earlier.reasoning += delta.reasoning;
  for (const call of delta.toolCalls) {
    const known = earlier.toolCalls.find(({ index }) => index === call.index);
    if (known === undefined) earlier.toolCalls.push(call);
    else known.arguments += call.arguments;
  }
}
