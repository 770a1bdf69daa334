/** Text of tokens as they are generated. */
import { ByteFallbackStage, ByteLevelStage, type Stage } from './decoderStages';
import type { TokenTable } from './tokenTable';

/**
 * Turns one request's tokens into text. What it gives is final: a character whose bytes are spread over tokens
 * is held back until it is whole, and so is a run of ByteFallback's byte tokens until it ends, since
 * one broken byte makes U+FFFD of all of them. Each token costs the same, however long the text.
 * What it gives and `finish`'s rest are together what the library decodes of all the tokens at once
 * or, where the text `continues` another, what they add to that: unlike at a beginning, their
 * first space is kept.
 */
export class IncrementalDetokenizer {
  private text = '';
  private readonly table: TokenTable;
  private readonly stage: Stage;
  private readonly byteStage: ByteLevelStage | null;

  constructor(
    tokenizer: { readonly tokens: TokenTable },
    private readonly skipSpecialTokens = true,
    { continues = true } = {},
  ) {
    this.table = tokenizer.tokens;
    this.stage = this.table.decoder.open((text) => (this.text += text), continues);
    this.byteStage = this.stage instanceof ByteLevelStage ? this.stage : null;
  }

  /** The text that `tokenIds` make final: what they stand for as a rule, sometimes nothing yet. */
  append(tokenIds: Iterable<number>): string {
    const { table, stage, byteStage } = this;
    for (const id of tokenIds) {
      if (!table.has(id) || (this.skipSpecialTokens && table.isSpecial(id))) continue;
      if (byteStage === null) stage.push(table.piece(id));
      else byteStage.pushBytes(table.bytes(id), table.text(id));
    }
    return this.take();
  }

  /** What is held back of a run of byte tokens, if the text ended here; '' when that is no whole characters. */
  get heldText(): string {
    return (this.stage instanceof ByteFallbackStage ? this.stage.heldText : null) ?? '';
  }

  /** No more tokens come: what was held back, as it is. */
  finish(): string {
    this.stage.finish();
    return this.take();
  }

  private take(): string {
    const { text } = this;
    this.text = '';
    return text;
  }
}
