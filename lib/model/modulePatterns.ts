/** The lists of modules in a quantization_config, as regular expressions. */
import { show } from '../config/schema';
import { UnsupportedModelError } from '../errors';

const MAX_LENGTH = 1000;
/** In how many ways a name of 100 characters can be divided among so many quantifiers. */
const DIVISIONS = [1, 100, 5000, 160_000];
const MAX_QUANTIFIERS = DIVISIONS.length - 1;
/** Ways to match a name, all of which are tried before it is found not to match. */
const MAX_WAYS = 2_000_000;

/** Prefixes of a multimodal checkpoint's language model in lists that name its modules whole. */
const PREFIXES = ['', 'language_model.', 'model.language_model.', 'language_model.model.'];

const escaped = (text: string) => text.replace(/[.*+?^${}()|[\]\\/]/g, '\\$&');

const QUANTIFIER = /[*+]|\{\d*,\d*\}/g;

/** The product of the alternatives of each group, and of two for each optional part. */
function numChoices(pattern: string): number {
  let choices = 1;
  const alternatives = [1];
  // A question mark after a quantifier makes it lazy; after a parenthesis it begins a group's kind.
  for (const [token] of pattern.matchAll(/\(\??|[*+}]\?|[?)|]/g)) {
    if (token.startsWith('(')) alternatives.push(1);
    else if (token === ')') choices *= alternatives.pop() ?? 1;
    else if (token === '|') alternatives[alternatives.length - 1]++;
    else if (token === '?') choices *= 2;
  }
  return alternatives.reduce((product, count) => product * count, choices);
}

/** The pattern of a module's name. */
export const nameOf = (name: string) => escaped(name);

/** Of names that contain `part`, between dots. */
export const partOf = (part: string) => `(?:.*\\.)?${escaped(part)}(?:\\..*)?`;

/** Of a name with wildcards, as Python's fnmatch. Throws UnsupportedModelError as regexOf. */
export const globOf = (file: string) => (glob: string) =>
  regexOf(file, `re:${escaped(glob).replaceAll('\\*', '.*').replaceAll('\\?', '.')}$`);

/**
 * Of 're:...', which compressed-tensors matches from a name's beginning. Throws UnsupportedModelError
 * for one that this library cannot match, or whose backtracking is not bounded by a small polynomial.
 */
export function regexOf(file: string, text: string): string {
  const source = text.slice('re:'.length);
  const refuse = (reason: string): never => {
    throw new UnsupportedModelError(
      file,
      `quantization_config has the pattern ${show(text)}, which ${reason}; name the modules instead`,
    );
  };
  if (source.length > MAX_LENGTH) refuse(`has more than ${MAX_LENGTH} characters`);
  const plain = source.replace(/\\./g, 'x').replace(/\[[^\]]*\]/g, 'x');
  if (/\)[*+{]/.test(plain)) refuse('repeats a group');
  const numQuantifiers = plain.match(QUANTIFIER)?.length ?? 0;
  if (numQuantifiers > MAX_QUANTIFIERS) refuse(`has more than ${MAX_QUANTIFIERS} repetitions`);
  if (numChoices(plain) * DIVISIONS[numQuantifiers] > MAX_WAYS) {
    refuse('may match a name in too many ways');
  }
  try {
    new RegExp(source, 'u');
  } catch {
    refuse('is not a regular expression of JavaScript');
  }
  return `(?:${source}).*`;
}

const compiled = new Map<string, RegExp>();

function compile(pattern: string): RegExp {
  const regex = compiled.get(pattern) ?? new RegExp(`^(?:${pattern})$`, 'u');
  if (compiled.size > 1000) compiled.clear();
  compiled.set(pattern, regex);
  return regex;
}

/** Whether one of the patterns matches the name of a module. */
export function matchesAny(patterns: readonly string[], name: string): boolean {
  return patterns.some((pattern) =>
    PREFIXES.some((prefix) => compile(pattern).test(`${prefix}${name}`)),
  );
}
