/** `uniproc launch`: starts the ranks of a group as torchrun does, where there is no Python. */
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

/** torchrun's. */
const DEFAULT_MASTER_PORT = 29500;
/** Milliseconds for the launchers of all nodes to come. */
const NODES_TIMEOUT = 300_000;
/** Milliseconds between the request to end, and the end. */
const GRACE_PERIOD = 10_000;
/** Milliseconds in which what a rank has started may still print after it. */
const LAST_OUTPUT = 1000;
/** Milliseconds in which a signal that comes again is the same: a terminal's, and npx's copy of it. */
const SAME_SIGNAL = 500;

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

export interface LaunchOptions {
  /** Ranks on this node. */
  nprocPerNode: number;
  nnodes: number;
  /** Of this node, from 0. */
  nodeRank: number;
  /** Name or address of node 0, as all nodes reach it. */
  masterAddr: string;
  /** Of the store on node 0; 0, with one node, is any that is free. */
  masterPort: number;
  /** Path of a JavaScript program, and its arguments. */
  program: string;
  args: readonly string[];
  /** Milliseconds. */
  gracePeriod?: number;
}

export const USAGE = `Usage: uniproc launch [options] program.js [arguments]

Starts the program as several ranks, each a Node.js process, with torchrun's variables: RANK,
LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT, GROUP_*, ROLE_* and
TORCHELASTIC_*.
When a rank fails, all others are stopped, and its exit code is the launcher's.

Options:
  --nproc-per-node N  ranks on this node (1)
  --nnodes N          nodes, on each of which the launcher is started (1)
  --node-rank N       this node's number, from 0 (0)
  --master-addr HOST  node 0, as all nodes reach it (127.0.0.1; required with several nodes)
  --master-port PORT  of the store on node 0 (any that is free; ${DEFAULT_MASTER_PORT} with several nodes)
  --help              this text
`;

const OPTIONS = {
  'nproc-per-node': { type: 'string' },
  nnodes: { type: 'string' },
  'node-rank': { type: 'string' },
  'master-addr': { type: 'string' },
  'master-port': { type: 'string' },
  help: { type: 'boolean', short: 'h' },
} as const;

/** What follows the program's path is the program's. Null: help is wanted. Throws ConfigError. */
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
    throw new ConfigError('no program is named; see uniproc launch --help');
  }
  const integer = (name: keyof typeof OPTIONS, otherwise: number, least: number, most: number) => {
    const value = options[name];
    if (value === undefined) return otherwise;
    const number = Number(value);
    if (typeof value === 'string' && /^\d+$/.test(value) && number >= least && number <= most) {
      return number;
    }
    throw new ConfigError(
      `--${name} is ${String(value)}; it must be a whole number, ${least} to ${most}`,
    );
  };
  const nnodes = integer('nnodes', 1, 1, 65536);
  const masterAddr = options['master-addr'];
  if (nnodes > 1 && masterAddr === undefined) {
    throw new ConfigError('--nnodes is more than 1, but there is no --master-addr: node 0');
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
 * Until every rank has ended with success, on all nodes. Otherwise all are stopped, and it rejects
 * with RankFailedError for the first that failed, with ConfigError for a program that is not there,
 * with RendezvousError when a node's launcher did not come, and with StoreListenError when the
 * master port is another's.
 */
export async function launch(options: LaunchOptions): Promise<void> {
  const { nnodes, nodeRank, nprocPerNode, masterAddr: host, masterPort, gracePeriod } = options;
  const program = resolveProgram(options.program);
  const listenOn = nnodes === 1 ? host : undefined;
  await using store =
    nodeRank === 0 ? await TCPStoreServer.listen({ host: listenOn, port: masterPort }) : null;
  const port = store?.port ?? masterPort;
  await using nodes = await meetNodes({ host, port, nnodes, nodeRank });
  const sizes = await nodes.gather('ranks', Buffer.from(String(nprocPerNode)));
  const numRanks = sizes.map((size) => Number(Buffer.from(size).toString()));
  const sum = (numbers: number[]) => numbers.reduce((total, number) => total + number, 0);

  const ranks = new LocalRanks(nodes, gracePeriod ?? GRACE_PERIOD);
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
      // All ranks have one role, as torchrun's do.
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
  await ranks.end();
}

function resolveProgram(program: string): string {
  try {
    return require.resolve(path.resolve(program));
  } catch (cause) {
    throw new ConfigError(`there is no program ${path.resolve(program)}`, { cause });
  }
}

/** The launchers of all nodes, so that all stop when one has to. */
async function meetNodes(where: {
  host: string;
  port: number;
  nnodes: number;
  nodeRank: number;
}): Promise<ProcessGroup> {
  const { host, port, nnodes, nodeRank } = where;
  const place = { host, port, hostsStore: false, prefix: 'uniproc/launchers' };
  try {
    return await ProcessGroup.meet(place, { rank: nodeRank, worldSize: nnodes }, NODES_TIMEOUT);
  } catch (cause) {
    throw new RendezvousError(
      `the launchers of ${nnodes} nodes, here called ranks, did not meet: ${(cause as Error).message}`,
      { cause },
    );
  }
}

/** The ranks on this node, which end together. */
class LocalRanks {
  readonly #nodes: ProcessGroup;
  readonly #gracePeriod: number;
  readonly #running = new Set<ChildProcess>();
  /** When each has ended, and what it printed is printed; none rejects. */
  readonly #endings: Promise<void>[] = [];
  #failure: RankFailedError | null = null;
  /** What the launcher was sent last. */
  #signal: NodeJS.Signals | null = null;
  #signalledAt = -Infinity;
  #stopTimer: (() => void) | null = null;

  constructor(nodes: ProcessGroup, gracePeriod: number) {
    this.#nodes = nodes;
    this.#gracePeriod = gracePeriod;
    nodes.onFailure(({ message }) =>
      this.#fail(null, 1, `the launcher of another node: ${message}`),
    );
    // Each rank pipes two streams into them.
    for (const stream of [process.stdout, process.stderr]) stream.setMaxListeners(0);
  }

  start(rank: number, program: string[], env: NodeJS.ProcessEnv): void {
    const watch = require.resolve('./launchedRank');
    const child = spawn(process.execPath, ['--require', watch, ...program], {
      env: { ...process.env, ...env, RANK: String(rank), UNIPROC_LAUNCHER_FD: '3' },
      stdio: ['ignore', 'pipe', 'pipe', 'pipe'],
      // A process group of its own: what a rank starts is stopped with it, and a terminal's
      // interrupt comes to it once, from here.
      detached: true,
    });
    this.#running.add(child);
    this.#endings.push(this.#watch(rank, child));
  }

  /** Until all have ended, on all nodes; rejects with the first failure. */
  async end(): Promise<void> {
    const forward = (signal: NodeJS.Signals) => this.#forward(signal);
    const cut = () => this.#fail(null, 128 + constants.signals.SIGPIPE, 'nobody reads the output');
    for (const signal of SIGNALS) process.on(signal, forward);
    process.stdout.on('error', cut);
    try {
      await Promise.all(this.#endings);
      if (this.#signal !== null) this.#tellOtherNodes(this.#signal);
      await this.#otherNodes();
      if (this.#failure !== null) throw this.#failure;
    } finally {
      this.#stopTimer?.();
      process.stdout.off('error', cut);
      for (const signal of SIGNALS) process.off(signal, forward);
    }
  }

  async #otherNodes(): Promise<void> {
    try {
      await this.#nodes.gather('done', Buffer.alloc(0), Infinity);
    } catch (error) {
      this.#fail(null, 1, (error as Error).message);
    }
  }

  async #watch(rank: number, child: ChildProcess): Promise<void> {
    const printed = [
      print(child.stdout, process.stdout, rank),
      print(child.stderr, process.stderr, rank),
    ];
    child.stdio[3]?.on('error', () => {});
    const name = `rank ${rank} (pid ${child.pid ?? 'none'})`;
    try {
      const [code, signal] = await exit(child);
      if (signal !== null) {
        this.#fail(rank, 128 + constants.signals[signal], `${name} was ended by ${signal}`);
      } else if (code !== 0) {
        this.#fail(rank, code ?? 1, `${name} ended with exit code ${code}`);
      }
    } catch (error) {
      this.#fail(rank, 1, `${name} could not be started: ${(error as Error).message}`);
    }
    // What it has started ends with it; who has left its process group may still have its output.
    signalGroup(child, 'SIGKILL');
    this.#running.delete(child);
    const stopTimer = startTimer(LAST_OUTPUT, () => {
      child.stdout?.destroy();
      child.stderr?.destroy();
    });
    await Promise.all(printed);
    stopTimer();
  }

  /** The first failure counts; what comes of it does not. */
  #fail(rank: number | null, exitCode: number, message: string): void {
    if (this.#failure !== null) return;
    this.#failure = new RankFailedError(rank, exitCode, `${message}; all ranks were stopped`);
    this.#nodes.abort(message);
    this.#stop('SIGTERM');
  }

  /** A signal to the launcher is one to each rank. */
  #forward(signal: NodeJS.Signals): void {
    const now = performance.now();
    if (signal === this.#signal && now - this.#signalledAt < SAME_SIGNAL) return;
    this.#signal = signal;
    this.#signalledAt = now;
    if (this.#running.size === 0) this.#tellOtherNodes(signal);
    this.#stop(signal);
  }

  /** The ranks here have ended; those of other nodes are not waited for. */
  #tellOtherNodes(signal: NodeJS.Signals): void {
    if (this.#nodes.worldSize === 1) return;
    const message = `the launcher of node ${this.#nodes.rank} was sent ${signal}`;
    this.#fail(null, 128 + constants.signals[signal], message);
  }

  /** The signal now, and the end to those that go on for longer than the grace period. */
  #stop(signal: NodeJS.Signals): void {
    for (const child of this.#running) signalGroup(child, signal);
    this.#stopTimer ??= startTimer(this.#gracePeriod, () => {
      for (const child of this.#running) signalGroup(child, 'SIGKILL');
    });
  }
}

/** To a rank and what it has started. */
function signalGroup({ pid }: ChildProcess, signal: NodeJS.Signals): void {
  try {
    if (pid !== undefined) process.kill(-pid, signal);
  } catch {
    // It has ended, and left nothing running.
  }
}

/** Rejects when it could not be started. */
async function exit(child: ChildProcess): Promise<[number | null, NodeJS.Signals | null]> {
  return (await once(child, 'exit')) as [number | null, NodeJS.Signals | null];
}

/** Until the stream has ended, and all of it is passed on. */
function print(from: Readable | null, to: Writable, rank: number): Promise<void> {
  if (from === null) return Promise.resolve();
  const lines = new LinePrefixer(`[rank ${rank}] `);
  from.on('close', () => lines.end());
  // Nobody reads it any more, and the rank is not to wait for that.
  to.on('error', () => lines.resume());
  from.pipe(lines).pipe(to, { end: false });
  return new Promise((resolve) => lines.on('end', resolve));
}
