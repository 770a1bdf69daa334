/** Every error code has a class in lib/errors.ts, callErrors.ts or hubErrors.ts and a row in docs/errors.md. */
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import * as errors from '../lib/errors';
import { nativeError } from '../lib/nativeError';

const ROOT = path.resolve(__dirname, '..');

/** Matches of `pattern`'s first group in the files below a folder. */
function found(folder: string, extension: RegExp, pattern: RegExp): Set<string> {
  const files = readdirSync(path.join(ROOT, folder), { recursive: true, encoding: 'utf8' });
  const texts = files
    .filter((file) => extension.test(file))
    .map((file) => readFileSync(path.join(ROOT, folder, file), 'utf8'));
  return new Set(texts.flatMap((text) => [...text.matchAll(pattern)].map(([, code]) => code)));
}

const CODE = "'([A-Z]+(?:_[A-Z]+)*)'";
const fromTypeScript = found('lib', /\.ts$/, new RegExp(`super\\(\\s*${CODE}`, 'g'));
const fromNative = found('native', /\.(cpp|h|cu|cuh)$/, /\bError\w*\(\s*"([A-Z]+(?:_[A-Z]+)*)"/g);
const documented = new Map(
  [
    ...readFileSync(path.join(ROOT, 'docs', 'errors.md'), 'utf8').matchAll(
      /^\| `([A-Z_]+)`\s*\| `(\w+)`/gm,
    ),
  ].map(([, code, name]) => [code, name]),
);

test('the codes are found', () => {
  expect(fromTypeScript.size).toBeGreaterThan(20);
  expect(fromNative.size).toBeGreaterThan(5);
});

test('the documentation has exactly the codes of lib/ and native/', () => {
  const codes = new Set([...fromTypeScript, ...fromNative]);
  expect([...documented.keys()].sort()).toEqual([...codes].sort());
});

test('every documented class is exported', () => {
  for (const name of documented.values()) expect(errors).toHaveProperty(name);
});

test.each([...fromNative])('native code %s maps to its class', (code) => {
  const error = nativeError(code, 'a message', 'a file', 0);
  expect(error.code).toBe(code);
  expect(error.constructor.name).toBe(documented.get(code));
});

/** The classes of these files: name, code, and the comment without the code. */
const classes = [
  ...['errors.ts', 'callErrors.ts', 'hubErrors.ts']
    .map((file) => readFileSync(path.join(ROOT, 'lib', file), 'utf8'))
    .join('\n')
    .matchAll(
      /\/\*\*((?:(?!\*\/)[^])+?)\*\/\nexport class (\w+) extends UniprocError \{[^]+?super\(\s*'(\w+)'/g,
    ),
].map(([, comment, name, code]) => {
  const text = comment.replace(/\n \*/g, ' ').replace(/\s+/g, ' ');
  return [name, code, text.replace(`\`code\`: ${code}.`, '').trim()] as const;
});

test('the classes are found', () => {
  const exported = Object.values(errors).filter(
    (value) => typeof value === 'function' && value.prototype instanceof errors.UniprocError,
  );
  expect(classes.map(([name]) => name).sort()).toEqual(exported.map(({ name }) => name).sort());
});

test.each(classes)('%s stands with its code and its comment', (name, code, text) => {
  const page = readFileSync(path.join(ROOT, 'docs', 'errors.md'), 'utf8');
  expect(page).toContain(`| \`${code}\` | \`${name}\` | ${text} |`);
});

test('an unknown code becomes INTERNAL and is named', () => {
  const error = nativeError('STRANGE', 'a message');
  expect(error).toBeInstanceOf(errors.InternalError);
  expect(error.message).toContain('STRANGE');
});
