/**
 * Texts that are long, but in which no run of characters is: a regular expression that tries a run
 * again for each of its characters (regexCost.ts) takes few retries for them.
 */
import type { CharacterSet } from './characterSet';

/** Runs of characters that are in one of `sets`, which may have `maxLength` UTF-16 units. */
export interface RunLimit {
  sets: readonly CharacterSet[];
  maxLength: number;
  /** What the normalizer does to the text before. */
  forms: readonly NormalizationForm[];
}

export type NormalizationForm = 'NFC' | 'NFD' | 'NFKC' | 'NFKD';

/**
 * First and last of letters and marks that all versions of Unicode since 7 class alike. Another character may end
 * a run for JavaScript and not for Oniguruma, so it counts as part of one.
 */
const STABLE: readonly (readonly [first: number, last: number])[] = [
  [0, 0x52f], [0x5d0, 0x5ea], [0x627, 0x64a], [0x905, 0x939], [0xe01, 0xe2e], [0x3000, 0x3002],
  [0x3041, 0x3096], [0x4e00, 0x9fa5], [0xac00, 0xd7a3],
]; // prettier-ignore

const isStable = (code: number) => STABLE.some(([first, last]) => code >= first && code <= last);

/** How many times longer normalization makes a text (UAX #15). */
const MAX_EXPANSION = 18;

/** The first of a file's `limits` that a run in `text` exceeds; null for none. */
export function exceededLimit(text: string, limits: readonly RunLimit[]): RunLimit | null {
  let normalized: string | null = null;
  const exceeds = ({ sets, maxLength, forms }: RunLimit) => {
    if (text.length * (forms.length > 0 ? MAX_EXPANSION : 1) <= maxLength) return false;
    normalized ??= forms.reduce((before, form) => before.normalize(form), text);
    return hasRun(normalized, sets, maxLength);
  };
  return limits.find(exceeds) ?? null;
}

/** Whether there is a run of more than `maxLength`: it holds a place whose number is a multiple of it. */
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
