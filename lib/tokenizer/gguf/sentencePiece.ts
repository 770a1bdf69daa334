/** The model of a SentencePiece tokenizer in a GGUF file, as merges in the form of tokenizer.json. */

const SPACE = '▁';
/** Types of tokens that no merge makes: unknown, control, byte. */
const UNMERGED = new Set([2, 3, 6]);

/**
 * Pairs of tokens that form another one, in the order in which SentencePiece merges them: of the
 * largest score first. `scores` [numTokens], `types` [numTokens]. As transformers' conversion.
 */
export function mergesOf(
  tokens: readonly string[],
  scores: readonly number[],
  types: readonly number[],
): [string, string][] {
  const ids = new Map<string, number>();
  tokens.forEach((token, id) => {
    if (!ids.has(token)) ids.set(token, id);
  });
  const merges: { left: string; right: string; score: number }[] = [];
  tokens.forEach((token, id) => {
    if (UNMERGED.has(types[id])) return;
    const found: { left: string; right: string; order: [number, number] }[] = [];
    for (let at = 0; ;) {
      at += (token.codePointAt(at) ?? 0) > 0xffff ? 2 : 1;
      if (at >= token.length) break;
      const [left, right] = [token.slice(0, at), token.slice(at)];
      const order = [ids.get(left), ids.get(right)];
      if (order[0] === undefined || order[1] === undefined) continue;
      found.push({ left, right, order: [order[0], order[1]] });
    }
    found.sort((a, b) => a.order[0] - b.order[0] || a.order[1] - b.order[1]);
    for (const { left, right } of found) merges.push({ left, right, score: scores[id] });
  });
  merges.sort((a, b) => b.score - a.score);
  return merges.map(({ left, right }) => [left, right]);
}

/** How spaces become tokens: a prefix of the text alone, of the text after each special token, none. */
export type Prefix = 'first' | 'always' | 'never';

/** The parts of tokenizer.json beside the model. */
export function partsOf(prefix: Prefix) {
  const replaceSpaces = { type: 'Replace', pattern: { String: ' ' }, content: SPACE };
  const decoders = [
    { type: 'Replace', pattern: { String: SPACE }, content: ' ' },
    { type: 'ByteFallback' },
    { type: 'Fuse' },
    ...(prefix === 'never' ? [] : [{ type: 'Strip', content: ' ', start: 1, stop: 0 }]),
  ];
  return {
    normalizer:
      prefix === 'always'
        ? {
            type: 'Sequence',
            normalizers: [{ type: 'Prepend', prepend: SPACE }, replaceSpaces],
          }
        : prefix === 'never'
          ? replaceSpaces
          : null,
    pre_tokenizer:
      prefix === 'first'
        ? { type: 'Metaspace', replacement: SPACE, prepend_scheme: 'first', split: false }
        : null,
    decoder: { type: 'Sequence', decoders },
  };
}
