import fc from 'fast-check';
import { StopStringMatcher } from '../../lib/engine/stopStrings';

/** The output for pieces, and whether a stop string matched. */
function match(pieces: string[], stop: string[], include = false): [string[], boolean] {
  const matcher = new StopStringMatcher(stop, include);
  const out: string[] = [];
  for (const piece of pieces) {
    out.push(matcher.push(piece));
    if (matcher.matched) return [out, true];
  }
  out.push(matcher.flush());
  return [out, false];
}

test('text without a stop string is unchanged', () => {
  expect(match(['one ', 'two'], ['###'])).toEqual([['one ', 'two', ''], false]);
});

test('text ends before a stop string', () => {
  expect(match(['one###two'], ['###'])).toEqual([['one'], true]);
});

test('or after it, if included', () => {
  expect(match(['one###two'], ['###'], true)).toEqual([['one###'], true]);
});

test('a possible prefix of a stop string is held back', () => {
  expect(match(['one#', '#', '#two'], ['###'])).toEqual([['one', '', ''], true]);
  expect(match(['one##', 'two'], ['###'])).toEqual([['one', '##two', ''], false]);
  expect(match(['one##'], ['###'])).toEqual([['one', '##'], false]);
});

test('the first stop string to be complete counts', () => {
  expect(match(['xabcdy'], ['abcd', 'bc'])).toEqual([['xa'], true]);
  expect(match(['xabcdy'], ['bc', 'abc'])).toEqual([['x'], true]);
});

test('a stop string may overlap itself', () => {
  expect(match(['aab', 'aabaaac'], ['aabaaac'])).toEqual([['', 'aab'], true]);
  expect(match(['aaa', 'b'], ['aab'])).toEqual([['a', ''], true]);
});

test('the result does not depend on how the text is split', () => {
  const letters = fc.string({ unit: fc.constantFrom('a', 'b', 'c'), maxLength: 30 });
  const stops = fc.array(
    fc.string({ unit: fc.constantFrom('a', 'b', 'c'), minLength: 1, maxLength: 4 }),
    {
      minLength: 1,
      maxLength: 3,
    },
  );
  fc.assert(
    fc.property(letters, fc.array(fc.nat(30)), stops, fc.boolean(), (text, cuts, stop, include) => {
      const at = [0, ...cuts.filter((cut) => cut < text.length).sort((a, b) => a - b), text.length];
      const pieces = at.slice(1).map((end, i) => text.slice(at[i], end));
      const [out, found] = match(pieces, stop, include);
      // The definition: the first end of any stop string, the longest ending there.
      let end = 1;
      while (end <= text.length && !stop.some((s) => text.slice(0, end).endsWith(s))) end++;
      expect(found).toBe(end <= text.length);
      if (!found) {
        expect(out.join('')).toBe(text);
        return;
      }
      const ending = stop.filter((s) => text.slice(0, end).endsWith(s)).map((s) => s.length);
      expect(out.join('')).toBe(text.slice(0, include ? end : end - Math.max(...ending)));
    }),
  );
});

/** A token as the matcher sees it: visible text or a special token's hidden text. */
interface Piece {
  text: string;
  hidden: boolean;
}

/** The output per token, ignoring the first `minTokens`; null if none matched. */
function matchTokens(
  pieces: readonly Piece[],
  stop: string[],
  minTokens: number,
  include: boolean,
) {
  const matcher = new StopStringMatcher(stop, include);
  const out: string[] = [];
  for (const [i, { text, hidden }] of pieces.entries()) {
    const counts = i + 1 > minTokens;
    out.push(hidden ? matcher.pushHidden(text, counts) : matcher.push(text, counts));
    if (matcher.matched) return { out, numTokens: i + 1 };
  }
  out.push(matcher.flush());
  return { out, numTokens: null };
}

/**
 * The definition, without state: searches all text before each position that a token adds, in the
 * visible text and in all text with hidden parts matched whole.
 */
function reference(pieces: readonly Piece[], stop: string[], minTokens: number, include: boolean) {
  let seen: { char: string; token: number; hidden: boolean }[] = [];
  const textOf = (chars: typeof seen) => chars.map(({ char }) => char).join('');
  const visible = (chars: typeof seen) => textOf(chars.filter(({ hidden }) => !hidden));
  for (const [token, { text, hidden }] of pieces.entries()) {
    for (let i = 1; i <= text.length; i++) {
      seen = [...seen, { char: text[i - 1], token, hidden }];
      if (token + 1 <= minTokens || (hidden && i < text.length)) continue;
      const starts = stop.flatMap((string) => {
        const inAll = seen.length - string.length;
        const cutsHidden =
          inAll > 0 && seen[inAll]?.hidden && seen[inAll].token === seen[inAll - 1].token;
        return [
          ...(!hidden && visible(seen).endsWith(string)
            ? [visible(seen).length - string.length]
            : []),
          ...(textOf(seen).endsWith(string) && !cutsHidden
            ? [visible(seen.slice(0, inAll)).length]
            : []),
        ];
      });
      if (starts.length === 0) continue;
      const end = include ? Infinity : Math.min(...starts);
      return { text: visible(seen).slice(0, end), numTokens: token + 1 };
    }
  }
  return { text: visible(seen), numTokens: null };
}

test('ignored tokens and special tokens match the definition', () => {
  const letters = (maxLength: number, minLength = 0) =>
    fc.string({ unit: fc.constantFrom('a', 'b', '<'), minLength, maxLength });
  const piece = fc.oneof(
    { weight: 4, arbitrary: fc.record({ text: letters(3), hidden: fc.constant(false) }) },
    { weight: 1, arbitrary: fc.record({ text: letters(3, 1), hidden: fc.constant(true) }) },
  );
  fc.assert(
    fc.property(
      fc.array(piece, { maxLength: 12 }),
      fc.array(letters(5, 1), { minLength: 1, maxLength: 3 }),
      fc.nat(6),
      fc.boolean(),
      (pieces, stop, minTokens, include) => {
        const { out, numTokens } = matchTokens(pieces, stop, minTokens, include);
        const expected = reference(pieces, stop, minTokens, include);
        expect({ text: out.join(''), numTokens }).toEqual(expected);
      },
    ),
    { numRuns: 5000 },
  );
});

test("a special token's text matches only as a whole", () => {
  const pieces = [
    { text: 'a', hidden: false },
    { text: '<b>', hidden: true },
    { text: 'c', hidden: false },
  ];
  const outOf = (stop: string) => matchTokens(pieces, [stop], 0, false).out.join('');
  expect(['<b>', 'a<b>', '<b>c', 'a<b>c', 'ac'].map(outOf)).toEqual(['a', '', 'a', '', '']);
  expect(['b', '<', '>', '<b', 'b>c', 'a<'].map(outOf)).toEqual(Array(6).fill('ac'));
});

test('many long stop strings cost no more than a few short ones', () => {
  const text = 'ab'.repeat(50_000);
  // Each character matches the middle of all of them; naive comparison would take minutes.
  const stop = Array.from({ length: 200 }, (_, i) => `${'ab'.repeat(1000)}${i}`);
  const matcher = new StopStringMatcher(stop, false);
  let length = 0;
  for (let i = 0; i < text.length; i += 4) length += matcher.push(text.slice(i, i + 4)).length;
  expect(length).toBe(text.length - 2000);
});
