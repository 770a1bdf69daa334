/** Logprobs as users receive them: by token, with the text that each token adds. */
import { InvalidLogitsError } from '../errors';
import { IncrementalDetokenizer } from '../tokenizer/detokenizer';
import type { Tokenizer } from '../tokenizer/tokenizer';
import type { LogprobsLists } from '../worker/outputs';
import { type Logprob, PositionLogprobs } from './outputs';

/**
 * Makes the logprobs of one sequence's positions, in order. Special tokens have their text, whether or
 * not the output's text shows them. Made only where logprobs were asked for.
 */
export class LogprobsDecoder {
  private readonly detokenizer: IncrementalDetokenizer | null;

  constructor(
    private readonly requestId: string,
    /** Null: no texts. */
    private readonly tokenizer: Tokenizer | null,
  ) {
    this.detokenizer = tokenizer && new IncrementalDetokenizer(tokenizer, false);
  }

  /** Goes on past a token without logprobs. */
  skip(tokenId: number): void {
    this.detokenizer?.append([tokenId]);
  }

  /**
   * A row of `lists`, the next position's: its own token and the `count` likeliest. Throws
   * InvalidLogitsError when they are NaN.
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
    const { detokenizer, tokenizer } = this;
    if (detokenizer === null || tokenizer === null) return { logprob, rank, decodedToken: null };
    const decodedToken = detokenizer.peek(tokenId);
    const bytes = tokenizer.partialBytes(tokenId);
    return { logprob, rank, decodedToken, ...(bytes !== null && { bytes }) };
  }
}
