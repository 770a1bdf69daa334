/**
 * Finds long runs of characters that a regular expression repeats. Its retries (regexCost.ts) are
 * linear in the longest run, so a long text without long runs needs few.
 */
import type { CharacterSet } from './characterSet';

/** Limits runs of characters that are in one of `sets` to `maxLength` UTF-16 units. */
export interface RunLimit {
  sets: readonly CharacterSet[];
  maxLength: number;
  /** Normalization forms that the normalizer applies first, in order. */
  forms: readonly NormalizationForm[];
}

export type NormalizationForm = 'NFC' | 'NFD' | 'NFKC' | 'NFKD';

/**
 * Ranges of characters that all Unicode versions since 7 classify alike. JavaScript and
 * Oniguruma may disagree about any other character, so it counts as part of every run.
 */
const STABLE: readonly (readonly [first: number, last: number])[] = [
  [0, 0x52f], [0x5d0, 0x5ea], [0x627, 0x64a], [0x905, 0x939], [0xe01, 0xe2e], [0x3000, 0x3002],
  [0x3041, 0x3096], [0x4e00, 0x9fa5], [0xac00, 0xd7a3],
]; // prettier-ignore

const isStable = (code: number) => STABLE.some(([first, last]) => code >= first && code <= last);

/** Most UTF-16 units that normalization makes of one (UAX #15). */
const MAX_EXPANSION = 18;

/** The first of `limits` that a run in `text` exceeds; null if none. */
export function exceededLimit(text: string, limits: readonly RunLimit[]): RunLimit | null {
  let normalized: string | null = null;
  const exceeds = ({ sets, maxLength, forms }: RunLimit) => {
    if (text.length * (forms.length > 0 ? MAX_EXPANSION : 1) <= maxLength) return false;
    normalized ??= forms.reduce((before, form) => before.normalize(form), text);
    return hasRun(normalized, sets, maxLength);
  };
  return limits.find(exceeds) ?? null;
}

/** Whether a run is longer than `maxLength`; such a run contains an offset that is a multiple of it. */
function hasRun(text: string, sets: readonly CharacterSet[], maxLength: number): boolean {
  const tests = sets.map(({ has }) => has);
  const isPart = (at: number) => {
    const code = text.charCodeAt(at);
    if (!isStable(code)) return true;
    const character = text.charAt(at);
    return tests.some((has) => has === null || has(character));
  };
  for (let at = maxLength; at < text.length; at += maxLength) {
    let [start, end] = [at, at];
    while (end < text.length && end - start <= maxLength && isPart(end)) end++;
    while (start > 0 && end - start <= maxLength && isPart(start - 1)) start--;
    if (end - start > maxLength) return true;
  }
  return false;
}
