/** Cases as files: bytes, or values as JSON extended by undefined, bigints and special numbers. */
import { createHash } from 'node:crypto';
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';

export const ROOT = path.resolve(__dirname, '..');

/** Folder of the seeds: fuzz/seeds/<campaign>. */
export const SEEDS = path.join(ROOT, 'fuzz', 'seeds');

/** The seeds of a campaign, by file name. */
export function readSeeds(folder: string): { file: string; bytes: Buffer }[] {
  let names: string[];
  try {
    names = readdirSync(folder).sort();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  }
  return names.map((name) => {
    const file = path.join(folder, name);
    return { file, bytes: readFileSync(file) };
  });
}

/** Writes a case as a seed, named by its hash, and returns the path. */
export function writeSeed(folder: string, bytes: Buffer, extension: string): string {
  mkdirSync(folder, { recursive: true });
  const hash = createHash('sha256').update(bytes).digest('hex').slice(0, 12);
  const file = path.join(folder, `${hash}${extension}`);
  writeFileSync(file, bytes);
  return file;
}

/** A value as JSON; undefined, bigints, -0 and numbers that are not finite are { $: text }. */
export function encodeCase(value: unknown): Buffer {
  const replacer = (_: string, each: unknown): unknown => {
    if (each === undefined) return { $: 'undefined' };
    if (typeof each === 'bigint') return { $: `${each}n` };
    if (typeof each !== 'number') return each;
    if (Object.is(each, -0)) return { $: '-0' };
    return Number.isFinite(each) ? each : { $: String(each) };
  };
  return Buffer.from(`${JSON.stringify(value, replacer, 1)}\n`);
}

export function decodeCase(bytes: Buffer): unknown {
  return revive(JSON.parse(bytes.toString()));
}

/** Inverse; JSON.parse's reviver cannot produce undefined. */
function revive(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(revive);
  if (typeof value !== 'object' || value === null) return value;
  const { $: text } = value as { $?: unknown };
  if (typeof text === 'string') {
    if (text === 'undefined') return undefined;
    return text.endsWith('n') ? BigInt(text.slice(0, -1)) : Number(text);
  }
  return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, revive(each)]));
}
