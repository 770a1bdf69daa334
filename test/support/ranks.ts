/** Real processes as the ranks of a group, with the variables that a launcher sets. */
import { type ChildProcess, spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { freePort } from './freePort';

const ROOT = path.resolve(__dirname, '..', '..');
const HOOK = path.join(ROOT, 'test', 'executor', 'requireTypescript.js');

/** Processes to kill after each test. */
const running = new Set<Rank>();

afterEach(async () => {
  await Promise.all(
    [...running].map((rank) => {
      rank.kill('SIGKILL');
      return rank.ended;
    }),
  );
});

/** A process's exit; one of the two is null. */
export interface End {
  code: number | null;
  signal: NodeJS.Signals | null;
}

/** A process and its output so far. */
export class Rank {
  stdout = '';
  stderr = '';
  /** Resolves when the process has exited and its output has been read. */
  readonly ended: Promise<End>;
  #end: End | null = null;
  #onChange: (() => void)[] = [];

  /** `endsWithTest`: kill it at the end of the test. */
  constructor(
    readonly rank: number,
    readonly child: ChildProcess,
    endsWithTest = true,
  ) {
    if (endsWithTest) running.add(this);
    const hear = (stream: 'stdout' | 'stderr') => (text: string) => {
      this[stream] += text;
      this.#changed();
    };
    child.stdout?.setEncoding('utf8').on('data', hear('stdout'));
    child.stderr?.setEncoding('utf8').on('data', hear('stderr'));
    this.ended = new Promise((resolve, reject) => {
      child.on('error', reject);
      child.on('close', (code, signal) => {
        this.#end = { code, signal };
        running.delete(this);
        this.#changed();
        resolve(this.#end);
      });
    });
  }

  get pid(): number {
    return this.child.pid ?? -1;
  }

  kill(signal: NodeJS.Signals): void {
    this.child.kill(signal);
  }

  /** Resolves when it has printed `text`; rejects with its output if it exits before. */
  async said(text: string): Promise<void> {
    while (!this.stdout.includes(text)) {
      if (this.#end !== null) {
        throw new Error(
          `rank ${this.rank} exited (${JSON.stringify(this.#end)}) without printing ${text}:\n` +
            this.stdout +
            this.stderr,
        );
      }
      await new Promise<void>((resolve) => this.#onChange.push(resolve));
    }
  }

  /** The printed lines, parsed as JSON. */
  lines<T = unknown>(): T[] {
    return this.stdout
      .split('\n')
      .filter((line) => line !== '')
      .map((line) => JSON.parse(line) as T);
  }

  #changed(): void {
    for (const wake of this.#onChange.splice(0)) wake();
  }
}

export interface RankOptions {
  /** World size; default: the number of started ranks. */
  worldSize?: number;
  /** Ranks to start; default: all. */
  ranks?: readonly number[];
  /** Default: a free port. */
  masterPort?: number;
  /** Additional variables, or each rank's; undefined unsets one. */
  env?: NodeJS.ProcessEnv | ((rank: number) => NodeJS.ProcessEnv);
  /**
   * Has an IPC channel (`rank.child.send`, in the program `process.on('message')`) and outlives the
   * test; the caller must end it.
   */
  isResident?: boolean;
}

/**
 * Starts ranks of a small program: JavaScript that can require the library's sources, by path from
 * the repository's root or as `uniproc`.
 */
export async function startRanks(
  program: string,
  numRanks: number,
  { worldSize = numRanks, ranks, masterPort, env = {}, isResident = false }: RankOptions = {},
): Promise<Rank[]> {
  const port = masterPort ?? (await freePort());
  const started = ranks ?? Array.from({ length: numRanks }, (_, rank) => rank);
  return started.map((rank) =>
    startProcess(
      rank,
      process.execPath,
      ['--require', HOOK, '--eval', program],
      {
        RANK: String(rank),
        LOCAL_RANK: String(rank),
        WORLD_SIZE: String(worldSize),
        LOCAL_WORLD_SIZE: String(worldSize),
        MASTER_ADDR: '127.0.0.1',
        MASTER_PORT: String(port),
        ...(typeof env === 'function' ? env(rank) : env),
      },
      isResident,
    ),
  );
}

/** Starts a Node process that is killed at the end of the test; errors call it `rank`. */
export function startNode(rank: number, args: string[], env: NodeJS.ProcessEnv = {}): Rank {
  return startProcess(rank, process.execPath, args, env);
}

/** As `startNode`, for any program. */
export function startProcess(
  rank: number,
  program: string,
  args: string[],
  env: NodeJS.ProcessEnv = {},
  isResident = false,
): Rank {
  const child = spawn(program, args, {
    cwd: ROOT,
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe', ...(isResident ? (['ipc'] as const) : [])],
  });
  return new Rank(rank, child, !isResident);
}

/** Resolves when all have exited. */
export function allEnded(ranks: readonly Rank[]): Promise<End[]> {
  return Promise.all(ranks.map(({ ended }) => ended));
}

/** Pids of processes with `name` set to `value` in their environment, orphans included. */
export function processesWith(name: string, value: string): number[] {
  return readdirSync('/proc')
    .filter((entry) => /^\d+$/.test(entry))
    .filter((pid) => {
      try {
        const environment = readFileSync(`/proc/${pid}/environ`, 'latin1');
        return environment.split('\0').includes(`${name}=${value}`);
      } catch {
        return false; // It has exited, or belongs to another user.
      }
    })
    .map(Number);
}
