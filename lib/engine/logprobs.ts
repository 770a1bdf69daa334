/** User-facing logprobs: by token, with the text that each token adds. */
import { InvalidLogitsError } from '../errors';
import { IncrementalDetokenizer } from '../tokenizer/detokenizer';
import type { Tokenizer } from '../tokenizer/tokenizer';
import type { LogprobsLists } from '../contract/modelRunnerOutput';
import { type Logprob, PositionLogprobs } from './outputs';

/** Replaces bytes that are not valid UTF-8, or not yet. */
const REPLACEMENT = '\ufffd';

/** Most tokens kept of an unfinished character, which has at most 4 bytes. */
const MAX_UNFINISHED = 8;

/**
 * Decodes the logprobs of one sequence's positions, in order. Special tokens have text even where
 * the output hides them.
 */
export class LogprobsDecoder {
  /** Trailing tokens of a character that is still incomplete. */
  private unfinished: readonly number[] = [];

  constructor(
    private readonly requestId: string,
    /** Null: no texts. */
    private readonly tokenizer: Tokenizer | null,
  ) {}

  /** Advances past a token without logprobs. */
  skip(tokenId: number): void {
    const { tokenizer } = this;
    if (tokenizer === null) return;
    if (this.unfinished.length === 0 && !isPartial(tokenizer, tokenId)) return;
    const tokenIds = [...this.unfinished, tokenId];
    if (read(tokenizer, tokenIds).isFinished) this.unfinished = [];
    else if (tokenIds.length <= MAX_UNFINISHED) this.unfinished = tokenIds;
    else this.unfinished = tokenIds.slice(-3);
  }

  /**
   * Decodes a row of `lists` for the next position: the position's own token and the `count`
   * likeliest. Throws InvalidLogitsError for NaN.
   */
  next(lists: LogprobsLists, row: number, count: number): PositionLogprobs {
    const position = new PositionLogprobs();
    const first = row * lists.width;
    const last = first + Math.min(count, lists.width - 1);
    for (let i = first; i <= last; i++) {
      const logprob = lists.logprobs[i];
      if (Number.isNaN(logprob)) throw new InvalidLogitsError(this.requestId, null, null);
      const rank = i === first ? lists.ranks[row] : i - first;
      position.set(lists.tokenIds[i], this.describe(lists.tokenIds[i], logprob, rank));
    }
    this.skip(lists.tokenIds[first]);
    return position;
  }

  private describe(tokenId: number, logprob: number, rank: number): Logprob {
    const { tokenizer } = this;
    if (tokenizer === null) return { logprob, rank, decodedToken: null };
    const decodedToken = this.textAddedBy(tokenizer, tokenId);
    if (!isPartial(tokenizer, tokenId)) return { logprob, rank, decodedToken };
    return { logprob, rank, decodedToken, bytes: Array.from(tokenizer.tokenBytes(tokenId)) };
  }

  private textAddedBy(tokenizer: Tokenizer, tokenId: number): string {
    const { unfinished } = this;
    if (unfinished.length === 0 && !isPartial(tokenizer, tokenId)) {
      return tokenizer.idToToken(tokenId);
    }
    const { text: before } = read(tokenizer, unfinished);
    return read(tokenizer, [...unfinished, tokenId]).text.slice(before.length);
  }
}

/** Whether the token begins or ends inside a character. */
function isPartial(tokenizer: Tokenizer, tokenId: number): boolean {
  const text = tokenizer.idToToken(tokenId);
  // A token may be U+FFFD itself.
  return text.includes(REPLACEMENT) && !Buffer.from(text).equals(tokenizer.tokenBytes(tokenId));
}

/**
 * The tokens' text with an incomplete last character replaced, and whether all characters are
 * complete.
 */
function read(
  tokenizer: Tokenizer,
  tokenIds: readonly number[],
): { text: string; isFinished: boolean } {
  const detokenizer = new IncrementalDetokenizer(tokenizer, false);
  const given = detokenizer.append(tokenIds);
  const { heldText } = detokenizer;
  return { text: given + heldText, isFinished: detokenizer.finish() === heldText };
}
