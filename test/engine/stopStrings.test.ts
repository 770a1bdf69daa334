import fc from 'fast-check';
import { StopStringMatcher } from '../../lib/engine/stopStrings';

/** What comes out of pieces, and whether a stop string was found. */
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

test('text without a stop string passes', () => {
  expect(match(['one ', 'two'], ['###'])).toEqual([['one ', 'two', ''], false]);
});

test('text ends before a stop string', () => {
  expect(match(['one###two'], ['###'])).toEqual([['one'], true]);
});

test('or after it, when it is to be included', () => {
  expect(match(['one###two'], ['###'], true)).toEqual([['one###'], true]);
});

test('what may be the beginning of a stop string is held back until it is known', () => {
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

test('the result does not depend on how the text is cut', () => {
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
      // By definition: the first end of any stop string, the longest that ends there.
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
