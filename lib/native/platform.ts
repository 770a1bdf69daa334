/** The platforms that package.json lists, which package managers check before they install. */
import { readFileSync } from 'node:fs';
import path from 'node:path';

/** One sentence if this platform is not among them, else null. */
export function unsupportedPlatform(): string | null {
  const manifest = path.resolve(__dirname, '..', '..', 'package.json');
  const { os, cpu } = JSON.parse(readFileSync(manifest, 'utf8')) as { os: string[]; cpu: string[] };
  if (os.includes(process.platform) && cpu.includes(process.arch)) return null;
  return `uniproc runs on ${os.join(', ')} with a CPU of ${cpu.join(' or ')}, not on ${process.platform} with ${process.arch}`;
}
