/** Incremental detokenization. */
import { ByteFallbackStage, ByteLevelStage, type Stage } from './decoderStages';
import type { TokenTable } from './tokenTable';

/**
 * Detokenizes one request in constant time per token. Returned text is final: bytes of an incomplete
 * character are buffered, and so is a run of ByteFallback's byte tokens, because one invalid byte
 * turns the whole run into U+FFFD. All returned text, including that of `finish`, equals the
 * library's decoding of all tokens. With `continues`, it equals the text that the tokens append to
 * previous text: a leading space is kept.
 */
export class IncrementalDetokenizer {
  private text = '';
  private readonly table: TokenTable;
  private readonly stage: Stage;
  private readonly byteStage: ByteLevelStage | null;

  /** @internal */
  constructor(
    tokenizer: { readonly tokens: TokenTable },
    private readonly skipSpecialTokens = true,
    { continues = true } = {},
  ) {
    this.table = tokenizer.tokens;
    this.stage = this.table.decoder.open((text) => (this.text += text), continues);
    this.byteStage = this.stage instanceof ByteLevelStage ? this.stage : null;
  }

  /** Returns the text that `tokenIds` make final, which may be ''. */
  append(tokenIds: Iterable<number>): string {
    const { table, stage, byteStage } = this;
    for (const id of tokenIds) {
      if (!table.has(id) || (this.skipSpecialTokens && table.isSpecial(id))) continue;
      if (byteStage === null) stage.push(table.piece(id));
      else byteStage.pushBytes(table.bytes(id), table.text(id));
    }
    return this.take();
  }

  /** Text of a buffered run of byte tokens; '' if it ends inside a character or is invalid. */
  get heldText(): string {
    return (this.stage instanceof ByteFallbackStage ? this.stage.heldText : null) ?? '';
  }

  /** Ends the text: returns the buffered rest. */
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
