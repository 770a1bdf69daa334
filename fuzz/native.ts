/** Campaigns of libFuzzer's, with the sanitizers for addresses and undefined behaviour. */
import { execFile, spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';
import type { Failure, NativeCampaign, Result } from './campaign';
import { readSeeds, ROOT, SEEDS, writeSeed } from './cases';

const FLAGS = [
  '-std=c++20',
  '-O1',
  '-g',
  '-Wall',
  '-fsanitize=fuzzer,address,undefined',
  '-fno-sanitize-recover=all',
];
/** Of the target, in MiB; and seconds that a case may take. */
const MEMORY_LIMIT = 2048;
const CASE_TIMEOUT = 60;

export interface NativeOptions {
  seconds: number;
  seed: number;
  replay: string | null;
}

/** Builds the target and runs it; a string says why it did not run. */
export async function runNative(
  { name, sources }: NativeCampaign,
  { seconds, seed, replay }: NativeOptions,
): Promise<Result | string> {
  const compiler = process.env.UNIPROC_FUZZ_CXX ?? 'clang++';
  const hasCompiler = await promisify(execFile)(compiler, ['--version']).then(
    () => true,
    () => false,
  );
  if (!hasCompiler) return `it needs ${compiler} with libFuzzer`;
  const binary = path.join(ROOT, 'build', 'fuzz', name);
  mkdirSync(path.dirname(binary), { recursive: true });
  const all = [`fuzz/native/${name}.cpp`, ...sources];
  await promisify(execFile)(compiler, [...FLAGS, '-I', 'native', ...all, '-o', binary], {
    cwd: ROOT,
  });

  const folder = mkdtempSync(path.join(tmpdir(), 'uniproc-fuzz-'));
  try {
    const seeds = path.join(SEEDS, name);
    const files = replay === null ? readSeeds(seeds).map(({ file }) => file) : [replay];
    // Each seed first: a corpus that fails at its first file would hide the others.
    for (const file of files) {
      const { code, output } = await execute(binary, [file]);
      if (code !== 0) return result(output, [failureOf(output, path.relative(ROOT, file))]);
    }
    if (replay !== null) return result('', []);
    const corpus = path.join(folder, 'corpus');
    mkdirSync(corpus);
    const { code, output } = await execute(binary, [
      `-max_total_time=${Math.ceil(seconds)}`,
      `-seed=${seed || 1}`,
      `-timeout=${CASE_TIMEOUT}`,
      `-rss_limit_mb=${MEMORY_LIMIT}`,
      `-artifact_prefix=${folder}/`,
      `-exact_artifact_path=${folder}/found`,
      '-print_final_stats=1',
      '-detect_leaks=1',
      corpus,
      ...(existsSync(seeds) ? [seeds] : []),
    ]);
    if (code === 0) return result(output, []);
    const found = path.join(folder, 'found');
    const file = existsSync(found) ? writeSeed(seeds, readFileSync(found), '.bin') : null;
    return result(output, [failureOf(output, file && path.relative(ROOT, file))]);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function execute(binary: string, args: string[]): Promise<{ code: number; output: string }> {
  return new Promise((resolve, reject) => {
    const child = spawn(binary, args, { stdio: ['ignore', 'ignore', 'pipe'] });
    let output = '';
    child.stderr.on('data', (chunk: Buffer) => (output += chunk.toString()));
    child.on('error', reject);
    child.on('close', (code) => resolve({ code: code ?? 1, output }));
  });
}

/** What libFuzzer says of its run. */
function result(output: string, failures: Failure[]): Result {
  const cases = Number(/stat::number_of_executed_units:\s*(\d+)/.exec(output)?.[1] ?? 0);
  const seconds = Number(/Done \d+ runs in (\d+) second/.exec(output)?.[1] ?? 0);
  return { cases, seconds, counts: {}, failures };
}

function failureOf(output: string, seed: string | null): Failure {
  const lines = output.split('\n');
  const at = lines.findIndex((line) => /ERROR|SUMMARY|runtime error|deadly signal/.test(line));
  return { message: lines.slice(Math.max(0, at)).slice(0, 30).join('\n'), seed };
}
