/** Reads a reply token by token: its reasoning, content and tool calls. */
import type { AssistantMessage, MessageDelta } from '../requestOutput';
import { Cursor, type Parsing } from './cursor';
import { parseHarmony } from './formats/harmony';
import { ReplySink } from './replySink';
import type { ReplyFormat } from './replyFormat';
import { restIsContent, type Tool, type ToolCallFormat } from './toolFormat';

/** How the replies to a prompt are read. */
export interface ReplySettings {
  readonly format: ReplyFormat;
  /** Null: calls are not parsed. */
  readonly calls: ToolCallFormat | null;
  readonly tools: readonly Tool[];
  /** Whether the prompt ends within reasoning. */
  readonly isOpened: boolean;
}

export class ReplyParser {
  readonly markers: ReadonlySet<string>;
  private readonly cursor = new Cursor();
  private readonly sink: ReplySink;
  private readonly parsing: Parsing;
  private isReasoning: boolean;
  private readonly mayReason: boolean;
  /** Tokens of reasoning, with the marks around it. */
  private numTokens = 0;

  constructor(private readonly settings: ReplySettings) {
    const { format, calls, isOpened } = settings;
    this.markers = new Set(format.markers);
    this.sink = new ReplySink(calls?.makeId);
    this.isReasoning = isOpened;
    this.mayReason = format.isHarmony || format.reasoning !== null;
    this.parsing = this.parse();
    this.parsing.next();
  }

  get message(): AssistantMessage {
    return this.sink.message;
  }

  /** Null if the model does not reason. */
  get numReasoningTokens(): number | null {
    return this.mayReason ? this.numTokens : null;
  }

  /** The text that a token made final, with its name if it is a special token of the format. */
  push(text: string, numTokens = 1): void {
    const wasReasoning = this.isReasoning;
    if (text !== '') {
      this.cursor.push(text);
      this.parsing.next();
    }
    if (wasReasoning || this.isReasoning) this.numTokens += numTokens;
  }

  finish(): void {
    this.cursor.end();
    this.parsing.next();
    this.sink.finish();
  }

  take(): MessageDelta | null {
    return this.sink.take();
  }

  private *parse(): Parsing {
    const { cursor, sink } = this;
    const { format, calls, tools, isOpened } = this.settings;
    if (format.isHarmony) {
      yield* parseHarmony(cursor, sink, (isReasoning) => (this.isReasoning = isReasoning));
      return;
    }
    if (format.reasoning !== null) {
      const { start, end } = format.reasoning;
      let hasBegun = isOpened;
      if (!isOpened) {
        cursor.setMark();
        yield* cursor.skipSpace();
        hasBegun = yield* cursor.takes(start);
        if (!hasBegun) cursor.rewind();
        cursor.releaseMark();
      }
      if (hasBegun) {
        this.isReasoning = true;
        sink.beginReasoning();
        yield* cursor.until([end], (text) => sink.reasoning(text));
        this.isReasoning = false;
        sink.endReasoning();
        cursor.releaseMark();
      }
    }
    if (calls === null) yield* restIsContent(cursor, sink);
    else yield* calls.parse(cursor, sink, tools);
  }
}
