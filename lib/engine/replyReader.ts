/** Reads one sample's text as a message: puts back the special tokens that the text leaves out. */
import { ReplyParser, type ReplySettings } from '../reply/replyParser';
import type { CompletionOutput, MessageDelta } from './outputs';

export class ReplyReader {
  private readonly parser: ReplyParser;
  /** Special tokens, each with its position in the visible text, by which text is delivered late. */
  private hidden: { name: string; at: number }[] = [];
  /** Visible text that the parser has. */
  private numRead = 0;
  private numReasoningTaken = 0;
  private isFinished = false;

  constructor(settings: ReplySettings) {
    this.parser = new ReplyParser(settings);
  }

  /** A special token that the text leaves out comes `numHeld` characters behind the text so far. */
  hide(name: string, numHeld: number): void {
    if (this.parser.markers.has(name)) this.hidden.push({ name, at: this.numRead + numHeld });
  }

  /** The text that the latest token made final. */
  push(text: string): void {
    this.parser.push(this.withHidden(text));
  }

  /** The text has ended with `rest`. */
  finish(rest: string): void {
    if (this.isFinished) return;
    this.isFinished = true;
    const last = this.withHidden(rest);
    if (last !== '') this.parser.push(last, 0);
    this.parser.finish();
  }

  /** What the message gained since the last call; null if nothing. */
  take(): MessageDelta | null {
    return this.parser.take();
  }

  /** Tokens of reasoning since the last call; null if the model does not reason. */
  takeNumReasoningTokens(): number | null {
    const { numReasoningTokens } = this.parser;
    if (numReasoningTokens === null) return null;
    const numNew = numReasoningTokens - this.numReasoningTaken;
    this.numReasoningTaken = numReasoningTokens;
    return numNew;
  }

  get parts(): Pick<CompletionOutput, 'message' | 'numReasoningTokens'> {
    const { message, numReasoningTokens } = this.parser;
    return { message, ...(numReasoningTokens !== null && { numReasoningTokens }) };
  }

  private withHidden(text: string): string {
    let all = '';
    let start = 0;
    const end = this.numRead + text.length;
    while (this.hidden.length > 0 && this.hidden[0].at <= end) {
      const { name, at } = this.hidden.shift() as { name: string; at: number };
      const until = Math.max(start, at - this.numRead);
      all += text.slice(start, until) + name;
      start = until;
    }
    this.numRead = end;
    return all + text.slice(start);
  }
}
