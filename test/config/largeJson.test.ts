import fc from 'fast-check';
import { entriesOf, isJsonObject, parseInPieces } from '../../lib/config/largeJson';

/** The value, and the number of pieces. */
function parsed(text: string, parse: (text: string) => unknown = fail) {
  const pieces = parseInPieces(text, parse);
  let numPieces = 1;
  let step = pieces.next();
  for (; step.done !== true; step = pieces.next()) numPieces++;
  return { value: plain(step.value), numPieces };
}

/** The value with objects in place of Maps. */
function plain(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(plain);
  if (!isJsonObject(value)) return value;
  // JSON.parse makes __proto__ a key like any other.
  const members = [...entriesOf(value)].map(([key, member]) => {
    return `${JSON.stringify(key)}:${JSON.stringify(plain(member))}`;
  });
  return JSON.parse(`{${members.join()}}`);
}

function fail(text: string): never {
  throw new Error(`${text.length} characters were not divided`);
}

const whole = (text: string) => JSON.parse(text) as unknown;

/** What JSON.parse returns, or 'refused'. */
function outcomeOf(text: string): unknown {
  try {
    return whole(text);
  } catch {
    return 'refused';
  }
}

/** Text with white space of every kind between its tokens. */
const spaced = (value: unknown) => JSON.stringify(value, null, '\t\n\r ');

const header = (numTensors: number) =>
  Object.fromEntries(
    Array.from({ length: numTensors }, (_, i) => [
      `model.layers.${i}.weight`,
      { dtype: 'BF16', shape: [576, i], data_offsets: [i, i + 1] },
    ]),
  );

describe('parseInPieces', () => {
  it('divides a header of 20,000 tensors', () => {
    const value = header(20_000);
    const text = JSON.stringify(value);
    const found = parsed(text);
    expect(found.value).toEqual(value);
    expect(Object.keys(found.value as object)).toEqual(Object.keys(value));
    expect(found.numPieces).toBeGreaterThan(text.length / 100_000);
  });

  it('divides a large object within an object, as an index has it', () => {
    const value = { before: 1, weight_map: header(2000), after: [true] };
    const text = spaced(value);
    const found = parsed(text);
    expect(found.value).toEqual(value);
    expect(found.numPieces).toBeGreaterThan(text.length / 100_000);
  });

  it('parses what JSON.parse parses', () => {
    // Long strings of marks that divide other text make members larger than a piece.
    const mark = fc.constantFrom('"', '\\', ',', '{', '}', '[', ']', ':', ' ', 'a', '\u2028');
    const long = fc.tuple(fc.array(mark, { minLength: 1, maxLength: 9 }), fc.nat(9000));
    const string = fc.oneof(
      fc.string(),
      long.map(([marks, count]) => marks.join('').repeat(count)),
    );
    const leaf = fc.oneof(fc.integer(), fc.boolean(), fc.constant(null), string);
    const { value } = fc.letrec((tie) => ({
      value: fc.oneof({ maxDepth: 4 }, leaf, tie('array'), tie('object')),
      array: fc.array(tie('value')),
      object: fc.dictionary(fc.oneof(fc.constant('__proto__'), string), tie('value')),
    }));
    fc.assert(
      fc.property(value, fc.boolean(), (json, isSpaced) => {
        const text = isSpaced ? spaced(json) : JSON.stringify(json);
        expect(JSON.stringify(parsed(text).value)).toBe(JSON.stringify(whole(text)));
      }),
      { numRuns: 100 },
    );
  });

  it('keeps the last of a duplicate key', () => {
    const text = `{"a":1,"b":"${'x'.repeat(100_000)}","a":2}`;
    expect(parsed(text).value).toEqual(whole(text));
  });

  it('leaves to the given parser whatever JSON.parse refuses', () => {
    const text = JSON.stringify({ ...header(800), last: 'x'.repeat(50_000), list: [1, [2], {}] });
    fc.assert(
      fc.property(
        fc.nat(text.length - 1),
        fc.nat(2),
        fc.constantFrom('', ',', '"', '\\', '{', '}', '[', ']', ':', 'n', '0', '\n', '\ufeff'),
        (at, numReplaced, inserted) => {
          const changed = text.slice(0, at) + inserted + text.slice(at + numReplaced);
          const found = parsed(changed, () => 'refused').value;
          expect(JSON.stringify(found)).toBe(JSON.stringify(outcomeOf(changed)));
        },
      ),
      { numRuns: 100 },
    );
  });

  it.each(['{"a":1,', '[1,2,', '{"a":1}', '[1]]', '{"a":1]', '[1,,2]', '{,}', '[1,]', '{"a":1,}'])(
    'divides %s as JSON.parse does, made long',
    (text) => {
      const long = text.replace('1', `"${'x'.repeat(100_000)}"`);
      expect(parsed(long, () => 'refused').value).toEqual(outcomeOf(long));
    },
  );

  it('parses deep nesting without dividing each level', () => {
    const text = '['.repeat(500) + `"${'x'.repeat(100_000)}"` + ']'.repeat(500);
    const found = parsed(text);
    expect(JSON.stringify(found.value)).toBe(text);
    expect(found.numPieces).toBeLessThan(50);
  });
});
