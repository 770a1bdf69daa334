/** Every user-visible code has a class in lib/errors.ts and a row in docs/errors.md. */
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import * as errors from '../lib/errors';

const ROOT = path.resolve(__dirname, '..');

/** Matches of `pattern`'s first group in files below a folder. */
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

test('each named class is exported', () => {
  for (const name of documented.values()) expect(errors).toHaveProperty(name);
});

test.each([...fromNative])('%s from native code is an error of its class', (code) => {
  const error = errors.nativeError(code, 'a message', 'a file', 0);
  expect(error.code).toBe(code);
  expect(error.constructor.name).toBe(documented.get(code));
});

test('an unknown code becomes INTERNAL and is named', () => {
  const error = errors.nativeError('STRANGE', 'a message');
  expect(error).toBeInstanceOf(errors.InternalError);
  expect(error.message).toContain('STRANGE');
});
