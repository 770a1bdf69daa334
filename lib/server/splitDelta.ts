/** Divides what a slow client has left unread, so that no event takes long to write. */
import type { OutputDelta } from '../engine/outputs';

/** Tokens with logprobs in one event. */
const MAX_TOKENS = 256;

/**
 * The delta in parts of at most MAX_TOKENS tokens, if it has logprobs: the first has its text, the last
 * its end.
 */
export function splitDelta(delta: OutputDelta): OutputDelta[] {
  const { tokenIds, logprobs } = delta;
  if (logprobs === undefined || logprobs.length <= MAX_TOKENS) return [delta];
  const parts: OutputDelta[] = [];
  for (let start = 0; start < logprobs.length; start += MAX_TOKENS) {
    const end = start + MAX_TOKENS;
    const isLast = end >= logprobs.length;
    parts.push({
      ...delta,
      text: start === 0 ? delta.text : '',
      message: start === 0 ? delta.message : undefined,
      tokenIds: tokenIds.slice(start, end),
      logprobs: logprobs.slice(start, end),
      finishReason: isLast ? delta.finishReason : null,
      stopReason: isLast ? delta.stopReason : null,
    });
  }
  return parts;
}
