/** `uniproc launch`: starts the ranks of a group as torchrun does, without Python. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { constants } from 'node:os';
import path from 'node:path';
import type { Readable, Writable } from 'node:stream';
import { parseArgs } from 'node:util';
import { ConfigError, RankFailedError, RendezvousError } from '../errors';
import { startTimer } from '../timer';
import { LinePrefixer } from './linePrefixer';
import { ProcessGroup } from './processGroup';
import { TCPStoreServer } from './tcpStoreServer';

/** torchrun's default. */
const DEFAULT_MASTER_PORT = 29500;
/** Milliseconds within which the launchers of all nodes must join. */
const NODES_TIMEOUT = 300_000;
/** Milliseconds between the first signal and SIGKILL. */
const GRACE_PERIOD = 10_000;
/** Milliseconds after a rank's exit during which output of its child processes is still read. */
const OUTPUT_DRAIN_TIMEOUT = 1000;
/** Milliseconds within which a repeated signal is ignored: npx forwards the terminal's. */
const DUPLICATE_SIGNAL_WINDOW = 500;

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

export interface LaunchOptions {
  /** Ranks on this node. */
  nprocPerNode: number;
  nnodes: number;
  /** Index of this node, from 0. */
  nodeRank: number;
  /** Name or address of node 0, reachable from all nodes. */
  masterAddr: string;
  /** Port of the store on node 0; 0 (one node only): any free port. */
  masterPort: number;
  /** Path of a JavaScript program. */
  program: string;
  args: readonly string[];
  /** Milliseconds between the first signal and SIGKILL. */
  gracePeriodMs?: number;
}

export const USAGE = `Usage: uniproc launch [options] program.js [arguments]

Starts the program as several ranks, each a Node.js process, with torchrun's environment variables:
RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT, GROUP_*, ROLE_* and
TORCHELASTIC_*.
When a rank fails, the launcher stops all others and exits with that rank's exit code.

Options:
  --nproc-per-node N  ranks on this node (default 1)
  --nnodes N          nodes; run the launcher on each (default 1)
  --node-rank N       index of this node, from 0 (default 0)
  --master-addr HOST  node 0, reachable from all nodes (default 127.0.0.1; required with several nodes)
  --master-port PORT  port of the store on node 0 (default: any free port; ${DEFAULT_MASTER_PORT} with several nodes)
  --help              print this text
`;

const OPTIONS = {
  'nproc-per-node': { type: 'string' },
  nnodes: { type: 'string' },
  'node-rank': { type: 'string' },
  'master-addr': { type: 'string' },
  'master-port': { type: 'string' },
  help: { type: 'boolean', short: 'h' },
} as const;

/** Arguments after the program's path are the program's. Null for --help. Throws ConfigError. */
export function parseLaunchArguments(args: readonly string[]): LaunchOptions | null {
  const { tokens } = parseArgs({
    args: [...args],
    options: OPTIONS,
    strict: false,
    allowPositionals: true,
    tokens: true,
  });
  const program = tokens.find(({ kind }) => kind === 'positional');
  const options = launcherOptions(args.slice(0, program?.index));
  if (options.help) return null;
  if (program === undefined) {
    throw new ConfigError('the path of the program is missing; see uniproc launch --help');
  }
  const integer = (name: keyof typeof OPTIONS, fallback: number, min: number, max: number) => {
    const value = options[name];
    if (value === undefined) return fallback;
    const number = Number(value);
    if (typeof value === 'string' && /^\d+$/.test(value) && number >= min && number <= max) {
      return number;
    }
    throw new ConfigError(
      `--${name} is ${String(value)}; it must be an integer from ${min} to ${max}`,
    );
  };
  const nnodes = integer('nnodes', 1, 1, 65536);
  const masterAddr = options['master-addr'];
  if (nnodes > 1 && masterAddr === undefined) {
    throw new ConfigError('--nnodes is above 1; give --master-addr, the name or address of node 0');
  }
  return {
    nprocPerNode: integer('nproc-per-node', 1, 1, 4096),
    nnodes,
    nodeRank: integer('node-rank', 0, 0, nnodes - 1),
    masterAddr: masterAddr ?? '127.0.0.1',
    masterPort: integer('master-port', nnodes > 1 ? DEFAULT_MASTER_PORT : 0, 1, 65535),
    program: args[program.index],
    args: args.slice(program.index + 1),
  };
}

function launcherOptions(args: readonly string[]) {
  try {
    return parseArgs({ args: [...args], options: OPTIONS, allowPositionals: true }).values;
  } catch (cause) {
    throw new ConfigError(`${(cause as Error).message}; see uniproc launch --help`, { cause });
  }
}

/**
 * Resolves when every rank on all nodes has exited with code 0. Otherwise stops all ranks and rejects
 * with RankFailedError for the first that failed, with ConfigError for a missing program, with
 * RendezvousError when a node's launcher did not join, and with StoreListenError when the master
 * port is in use.
 */
export async function launch(options: LaunchOptions): Promise<void> {
  const { nnodes, nodeRank, nprocPerNode, masterAddr: host, masterPort, gracePeriodMs } = options;
  const program = resolveProgram(options.program);
  const listenOn = nnodes === 1 ? host : undefined;
  await using store =
    nodeRank === 0 ? await TCPStoreServer.listen({ host: listenOn, port: masterPort }) : null;
  const port = store?.port ?? masterPort;
  await using nodes = await joinNodes({ host, port, nnodes, nodeRank });
  const sizes = await nodes.gather('ranks', Buffer.from(String(nprocPerNode)));
  const numRanks = sizes.map((size) => Number(Buffer.from(size).toString()));
  const sum = (numbers: number[]) => numbers.reduce((total, number) => total + number, 0);

  const ranks = new LocalRanks(nodes, gracePeriodMs ?? GRACE_PERIOD);
  const firstRank = sum(numRanks.slice(0, nodeRank));
  const worldSize = sum(numRanks);
  for (let localRank = 0; localRank < nprocPerNode; localRank++) {
    const rank = firstRank + localRank;
    ranks.start(rank, [program, ...options.args], {
      LOCAL_RANK: String(localRank),
      WORLD_SIZE: String(worldSize),
      LOCAL_WORLD_SIZE: String(nprocPerNode),
      GROUP_RANK: String(nodeRank),
      GROUP_WORLD_SIZE: String(nnodes),
      // All ranks have one role, as in torchrun.
      ROLE_NAME: 'default',
      ROLE_RANK: String(rank),
      ROLE_WORLD_SIZE: String(worldSize),
      MASTER_ADDR: host,
      MASTER_PORT: String(port),
      TORCHELASTIC_RUN_ID: 'none',
      TORCHELASTIC_RESTART_COUNT: '0',
      TORCHELASTIC_MAX_RESTARTS: '0',
      TORCHELASTIC_USE_AGENT_STORE: 'True',
    });
  }
  await ranks.exit();
}

function resolveProgram(program: string): string {
  try {
    return require.resolve(path.resolve(program));
  } catch (cause) {
    throw new ConfigError(`the program ${path.resolve(program)} does not exist`, { cause });
  }
}

/** Joins the launchers of all nodes in a group, so that a failure on one stops all. */
async function joinNodes(where: {
  host: string;
  port: number;
  nnodes: number;
  nodeRank: number;
}): Promise<ProcessGroup> {
  const { host, port, nnodes, nodeRank } = where;
  const endpoint = { host, port, hostsStore: false, prefix: 'uniproc/launchers' };
  try {
    return await ProcessGroup.joinAt(
      endpoint,
      { rank: nodeRank, worldSize: nnodes },
      NODES_TIMEOUT,
    );
  } catch (cause) {
    throw new RendezvousError(
      `the launchers of ${nnodes} nodes (ranks below) did not join: ${(cause as Error).message}`,
      { cause },
    );
  }
}

/** The ranks on this node. */
class LocalRanks {
  readonly #nodes: ProcessGroup;
  readonly #gracePeriod: number;
  readonly #running = new Set<ChildProcess>();
  /** Each resolves when a rank has exited and its output is forwarded; none rejects. */
  readonly #exits: Promise<void>[] = [];
  #failure: RankFailedError | null = null;
  /** The last signal that the launcher received. */
  #signal: NodeJS.Signals | null = null;
  #signalledAt = -Infinity;
  #stopTimer: (() => void) | null = null;

  constructor(nodes: ProcessGroup, gracePeriod: number) {
    this.#nodes = nodes;
    this.#gracePeriod = gracePeriod;
    nodes.onFailure(({ message }) =>
      this.#fail(null, 1, `the launcher of another node: ${message}`),
    );
    // Each rank pipes into both streams and adds listeners.
    for (const stream of [process.stdout, process.stderr]) stream.setMaxListeners(0);
  }

  start(rank: number, program: string[], env: NodeJS.ProcessEnv): void {
    const preload = require.resolve('./launchedRank');
    const child = spawn(process.execPath, ['--require', preload, ...program], {
      env: { ...process.env, ...env, RANK: String(rank), UNIPROC_LAUNCHER_FD: '3' },
      stdio: ['ignore', 'pipe', 'pipe', 'pipe'],
      // A process group of its own: its child processes are stopped with it, and a terminal's
      // SIGINT reaches it once, through the launcher.
      detached: true,
    });
    this.#running.add(child);
    this.#exits.push(this.#watch(rank, child));
  }

  /** Resolves when all ranks have exited on all nodes; rejects with the first failure. */
  async exit(): Promise<void> {
    const forward = (signal: NodeJS.Signals) => this.#forward(signal);
    const outputClosed = () =>
      this.#fail(
        null,
        128 + constants.signals.SIGPIPE,
        "the reader of the launcher's output closed it",
      );
    for (const signal of SIGNALS) process.on(signal, forward);
    process.stdout.on('error', outputClosed);
    try {
      await Promise.all(this.#exits);
      if (this.#signal !== null) this.#stopOtherNodes(this.#signal);
      await this.#waitForOtherNodes();
      if (this.#failure !== null) throw this.#failure;
    } finally {
      this.#stopTimer?.();
      process.stdout.off('error', outputClosed);
      for (const signal of SIGNALS) process.off(signal, forward);
    }
  }

  async #waitForOtherNodes(): Promise<void> {
    try {
      await this.#nodes.gather('done', Buffer.alloc(0), Infinity);
    } catch (error) {
      this.#fail(null, 1, (error as Error).message);
    }
  }

  async #watch(rank: number, child: ChildProcess): Promise<void> {
    const printed = [
      forwardOutput(child.stdout, process.stdout, rank),
      forwardOutput(child.stderr, process.stderr, rank),
    ];
    child.stdio[3]?.on('error', () => {});
    const name = `rank ${rank} (pid ${child.pid ?? 'none'})`;
    try {
      const [code, signal] = await exit(child);
      if (signal !== null) {
        this.#fail(rank, 128 + constants.signals[signal], `${name} was killed by ${signal}`);
      } else if (code !== 0) {
        this.#fail(rank, code ?? 1, `${name} exited with code ${code}`);
      }
    } catch (error) {
      this.#fail(rank, 1, `${name} could not be started: ${(error as Error).message}`);
    }
    // Stops its child processes; one that left the process group may still hold its output.
    signalGroup(child, 'SIGKILL');
    this.#running.delete(child);
    const stopTimer = startTimer(OUTPUT_DRAIN_TIMEOUT, () => {
      child.stdout?.destroy();
      child.stderr?.destroy();
    });
    await Promise.all(printed);
    stopTimer();
  }

  /** Keeps the first failure; its consequences are ignored. */
  #fail(rank: number | null, exitCode: number, message: string): void {
    if (this.#failure !== null) return;
    this.#failure = new RankFailedError(rank, exitCode, `${message}; all ranks were stopped`);
    this.#nodes.abort(message);
    this.#stop('SIGTERM');
  }

  /** Forwards the launcher's signal to each rank. */
  #forward(signal: NodeJS.Signals): void {
    const now = performance.now();
    if (signal === this.#signal && now - this.#signalledAt < DUPLICATE_SIGNAL_WINDOW) return;
    this.#signal = signal;
    this.#signalledAt = now;
    if (this.#running.size === 0) this.#stopOtherNodes(signal);
    this.#stop(signal);
  }

  /** After the local ranks have exited: stops the other nodes' instead of waiting for them. */
  #stopOtherNodes(signal: NodeJS.Signals): void {
    if (this.#nodes.worldSize === 1) return;
    const message = `the launcher of node ${this.#nodes.rank} received ${signal}`;
    this.#fail(null, 128 + constants.signals[signal], message);
  }

  /** Sends the signal, then SIGKILL to ranks that still run after the grace period. */
  #stop(signal: NodeJS.Signals): void {
    for (const child of this.#running) signalGroup(child, signal);
    this.#stopTimer ??= startTimer(this.#gracePeriod, () => {
      for (const child of this.#running) signalGroup(child, 'SIGKILL');
    });
  }
}

/** Signals a rank and its child processes. */
function signalGroup({ pid }: ChildProcess, signal: NodeJS.Signals): void {
  try {
    if (pid !== undefined) process.kill(-pid, signal);
  } catch {
    // The process group is empty.
  }
}

/** Rejects when the process could not be started. */
async function exit(child: ChildProcess): Promise<[number | null, NodeJS.Signals | null]> {
  return (await once(child, 'exit')) as [number | null, NodeJS.Signals | null];
}

/** Resolves when the stream has ended and all of it is forwarded. */
function forwardOutput(from: Readable | null, to: Writable, rank: number): Promise<void> {
  if (from === null) return Promise.resolve();
  const lines = new LinePrefixer(`[rank ${rank}] `);
  from.on('close', () => lines.end());
  // The reader closed its end: discard, so that the rank does not block.
  to.on('error', () => lines.resume());
  from.pipe(lines).pipe(to, { end: false });
  return new Promise((resolve) => lines.on('end', resolve));
}
