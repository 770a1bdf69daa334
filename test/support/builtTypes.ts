/** The declarations of the package in dist/, for tests that compile against them. */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';

const ROOT = path.join(__dirname, '..', '..');
const TSC = path.join(ROOT, 'node_modules', 'typescript', 'bin', 'tsc');

/** Builds the declarations if a file of lib/ is newer; `npm install` has built them otherwise. */
export function buildTypes(): void {
  const built = path.join(ROOT, 'dist', 'index.d.mts');
  const changed = (file: string) => statSync(file).mtimeMs;
  const sources = readdirSync(path.join(ROOT, 'lib'), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => changed(path.join(entry.parentPath, entry.name)));
  if (existsSync(built) && changed(built) >= Math.max(...sources)) return;
  execFileSync(process.execPath, [path.join(ROOT, 'scripts', 'build-types.js')], { cwd: ROOT });
}

/**
 * Makes `folder` a program's, with the package and Node's types installed, and compiles its
 * `programs` (file name to text) in strict mode, as CommonJS or, if named .mts, ES modules. Throws
 * an Error with the compiler's messages.
 */
export function compile(folder: string, programs: Record<string, string>): void {
  const modules = path.join(folder, 'node_modules');
  for (const name of ['@types/node', 'undici-types', 'expect-type']) {
    const target = path.join(modules, name);
    mkdirSync(path.dirname(target), { recursive: true });
    if (!existsSync(target)) symlinkSync(path.join(ROOT, 'node_modules', name), target);
  }
  for (const [file, text] of Object.entries(programs)) writeFileSync(path.join(folder, file), text);
  const options = ['--strict', '--module', 'node16', '--target', 'es2022', '--types', 'node'];
  // Of the package's declarations too: no --skipLibCheck.
  const lib = ['--lib', 'es2023,esnext.disposable'];
  try {
    execFileSync(process.execPath, [TSC, ...options, ...lib, ...Object.keys(programs)], {
      cwd: folder,
      encoding: 'utf8',
    });
  } catch (error) {
    throw new Error((error as { stdout: string }).stdout, { cause: error });
  }
}
