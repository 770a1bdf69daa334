/** The package's version. */
import { readFileSync } from 'node:fs';
import path from 'node:path';

/** The same path from lib/server and dist/server. */
const MANIFEST = path.resolve(__dirname, '..', '..', 'package.json');

let known: string | undefined;

export function packageVersion(): string {
  const read = () => (JSON.parse(readFileSync(MANIFEST, 'utf8')) as { version: string }).version;
  return (known ??= read());
}
