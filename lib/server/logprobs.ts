/** Logprobs in the dialects of chats, of completions, and of vLLM's prompt_logprobs. */
import type { Logprob, PositionLogprobs } from '../requestOutput';

/** Stands for -Infinity in JSON, as in vLLM's server. */
const MINUS_INFINITY = -9999;

const finite = (logprob: number) => (logprob === -Infinity ? MINUS_INFINITY : logprob);

/** How a token is written: its text, or `token_id:ID` on request. */
export type TokenText = (tokenId: number, entry: Logprob) => string;

export const tokenTextOf =
  (asIds: boolean): TokenText =>
  (tokenId, { decodedToken }) =>
    asIds || decodedToken === null ? `token_id:${tokenId}` : decodedToken;

/** The likeliest `count` tokens, in order. A position has its own token first, likely or not. */
function likeliest(position: PositionLogprobs, count: number): [number, Logprob][] {
  return [...position]
    .filter(([, { rank }]) => rank <= count)
    .sort(([, a], [, b]) => a.rank - b.rank);
}

const bytesOf = ({ bytes, decodedToken }: Logprob) =>
  bytes ?? Array.from(Buffer.from(decodedToken ?? ''));

/** A chat's `logprobs.content`, one for each token. */
export function chatLogprobs(
  positions: readonly PositionLogprobs[],
  numTop: number,
  text: TokenText,
): object[] {
  const entryOf = ([tokenId, entry]: [number, Logprob]) => ({
    token: text(tokenId, entry),
    logprob: finite(entry.logprob),
    bytes: bytesOf(entry),
  });
  return positions.map((position) => {
    const [own] = position;
    return { ...entryOf(own), top_logprobs: likeliest(position, numTop).map(entryOf) };
  });
}

/** Completions' `logprobs`, appended position by position. */
export class CompletionLogprobs {
  readonly text_offset: number[] = [];
  readonly token_logprobs: (number | null)[] = [];
  readonly tokens: string[] = [];
  readonly top_logprobs: (Record<string, number> | null)[] = [];

  constructor(
    private readonly numTop: number,
    private readonly text: TokenText,
    /** Characters before the next token. */
    public offset: number,
  ) {}

  /** Null: a prompt's first token, which has no logprob; `token` is its text. */
  append(position: PositionLogprobs | null, token = ''): void {
    this.text_offset.push(this.offset);
    if (position === null) {
      this.tokens.push(token);
      this.token_logprobs.push(null);
      this.top_logprobs.push(null);
      this.offset += token.length;
      return;
    }
    const [[tokenId, entry]] = position;
    this.tokens.push(this.text(tokenId, entry));
    this.token_logprobs.push(finite(entry.logprob));
    const top = likeliestAndOwn(position, this.numTop).map(([id, each]) => [
      this.text(id, each),
      finite(each.logprob),
    ]);
    this.top_logprobs.push(Object.fromEntries(top) as Record<string, number>);
    this.offset += entry.decodedToken?.length ?? 0;
  }

  /** The fields of the answer. */
  get lists(): object {
    const { text_offset, token_logprobs, tokens, top_logprobs } = this;
    return { text_offset, token_logprobs, tokens, top_logprobs };
  }
}

/** The likeliest tokens with the position's own, as OpenAI has them. */
function likeliestAndOwn(position: PositionLogprobs, numTop: number): [number, Logprob][] {
  const [own] = position;
  const top = likeliest(position, numTop);
  return top.some(([tokenId]) => tokenId === own[0]) ? top : [...top, own];
}

/** vLLM's `prompt_logprobs`: for each position, token ids to entries. */
export function promptLogprobs(positions: readonly (PositionLogprobs | null)[]): unknown[] {
  return positions.map((position) =>
    position === null
      ? null
      : Object.fromEntries(
          Array.from(position, ([tokenId, { logprob, rank, decodedToken }]) => [
            tokenId,
            { logprob: finite(logprob), rank, decoded_token: decodedToken },
          ]),
        ),
  );
}
