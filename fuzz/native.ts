/** Runs libFuzzer campaigns with AddressSanitizer and UndefinedBehaviorSanitizer. */
import { execFile, spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';
import type { Failure, NativeCampaign, Result } from './campaign';
import { readSeeds, ROOT, writeSeed } from './cases';

const FLAGS = [
  '-std=c++20',
  '-O1',
  '-g',
  '-Wall',
  '-fsanitize=fuzzer,address,undefined',
  '-fno-sanitize-recover=all',
];
/** A minimal target that checks the compiler. */
const EMPTY_TARGET = 'extern "C" int LLVMFuzzerTestOneInput(const char*, long) { return 0; }\n';
/** Limits of a target: memory in MiB, and seconds per case. */
const MEMORY_LIMIT = 2048;
const CASE_TIMEOUT = 60;

export interface NativeOptions {
  seconds: number;
  seed: number;
  replay: string | null;
  /** Folder with one folder of seeds per campaign. */
  seeds: string;
}

/** Builds and runs the target; returns a string with the reason if it did not run. */
export async function runNative(
  { name, sources }: NativeCampaign,
  { seconds, seed, replay, seeds: folderOfSeeds }: NativeOptions,
): Promise<Result | string> {
  const compiler = process.env.UNIPROC_FUZZ_CXX ?? 'clang++';
  const folder = mkdtempSync(path.join(tmpdir(), 'uniproc-fuzz-'));
  try {
    const empty = path.join(folder, 'empty.cpp');
    writeFileSync(empty, EMPTY_TARGET);
    if ((await build(compiler, [empty], path.join(folder, 'empty'))) !== null) {
      return `it needs ${compiler} with libFuzzer and the sanitizers (Debian: clang, libclang-rt-*-dev)`;
    }
    const binary = path.join(ROOT, 'build', 'fuzz', name);
    mkdirSync(path.dirname(binary), { recursive: true });
    const message = await build(compiler, [`fuzz/native/${name}.cpp`, ...sources], binary);
    if (message !== null) return result('', [{ message, seed: null }]);

    const seeds = path.join(folderOfSeeds, name);
    const files = replay === null ? readSeeds(seeds).map(({ file }) => file) : [replay];
    // Run each seed separately first: a corpus stops at its first failing file.
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

/** Returns null on success, else the compiler's output. */
async function build(compiler: string, sources: string[], binary: string): Promise<string | null> {
  const args = [...FLAGS, '-I', 'native', ...sources, '-o', binary];
  try {
    await promisify(execFile)(compiler, args, { cwd: ROOT });
    return null;
  } catch (error) {
    return (error as Error).message;
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

/** Parses libFuzzer's statistics. */
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
