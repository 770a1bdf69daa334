/** Text of tokens as they are generated. */
import type { Tokenizer } from './tokenizer';

/** What stands for bytes that are no UTF-8: not at all, or not yet. */
const REPLACEMENT = '\ufffd';

/** Bytes of an unfinished character: at most 3, in as many tokens. */
const MAX_UNFINISHED = 3;

/** Tokens to decode together at most, so that a run of broken characters costs no more than others. */
const MAX_PENDING = 16;

/**
 * Turns one request's tokens into text that goes on after its prompt. What it gives is final: a character whose bytes
 * are spread over tokens is held back until it is whole. Each token costs the same, however long the
 * text: one that holds whole characters is looked up, and only runs of those that do not are decoded,
 * together, in a window that moves along.
 */
export class IncrementalDetokenizer {
  /** The latest tokens that begin or end inside a character. */
  private pending: number[] = [];
  /** How much of `pending`'s text has been given. */
  private given = 0;

  constructor(
    private readonly tokenizer: Tokenizer,
    private readonly skipSpecialTokens = true,
  ) {}

  /** The text that `tokenIds` make final: what they stand for as a rule, sometimes nothing yet. */
  append(tokenIds: Iterable<number>): string {
    let text = '';
    for (const id of tokenIds) {
      if (this.skipSpecialTokens && this.tokenizer.isSpecial(id)) continue;
      const token = this.tokenizer.idToToken(id);
      text += token.includes(REPLACEMENT) ? this.hold(id) : this.finish() + token;
    }
    return text;
  }

  /** The text that `append([id])` would give; it changes nothing. */
  peek(id: number): string {
    const { pending, given } = this;
    this.pending = [...pending];
    const text = this.append([id]);
    this.pending = pending;
    this.given = given;
    return text;
  }

  /** No more tokens come that go on with a character: what was held back, as it is. */
  finish(): string {
    if (this.pending.length === 0) return '';
    const rest = this.tokenizer.continuation(this.pending).slice(this.given);
    this.pending = [];
    this.given = 0;
    return rest;
  }

  /** Takes a token with part of a character; gives the text that it makes whole. */
  private hold(id: number): string {
    this.pending.push(id);
    const text = this.tokenizer.continuation(this.pending);
    // U+FFFD at the end may be a character still to be finished.
    if (!text.endsWith(REPLACEMENT)) return this.finish();
    const fresh = text.slice(this.given, -1);
    this.given = text.length - 1;
    if (this.pending.length > MAX_PENDING) {
      this.pending = this.pending.slice(-MAX_UNFINISHED);
      this.given = this.tokenizer.continuation(this.pending).length - 1;
    }
    return fresh;
  }
}
