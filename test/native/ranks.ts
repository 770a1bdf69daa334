/** Ranks of a group, each with its own device, in this process or in separate ones. */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';
import { type CommunicatorOptions, native, type NativeCommunicator } from '../../lib/native';

const ended: (() => Promise<unknown>)[] = [];

afterEach(async () => {
  await Promise.all(ended.splice(0).map((end) => end()));
});

export type GroupOptions = Partial<Pick<CommunicatorOptions, 'timeout'>>;

const optionsOf = (rank: number, worldSize: number, { timeout = 200_000 }: GroupOptions) => ({
  rank,
  worldSize,
  timeout,
  customAllReduce: true,
});

/** Unconnected ranks in this process. */
export async function startRanks(
  worldSize: number,
  options: GroupOptions = {},
): Promise<NativeCommunicator[]> {
  const ranks = Array.from({ length: worldSize }, async (_, rank) => {
    const device = new (native().DeviceThread)('cpu', 0, 1);
    await device.open();
    const communicator = new (native().Communicator)(device, optionsOf(rank, worldSize, options));
    ended.push(async () => {
      communicator.abort('the test is over');
      await communicator.shutdown();
      await device.shutdown();
    });
    return communicator;
  });
  return Promise.all(ranks);
}

/** A rank in a separate process, which executes calls sent to it. */
export class RankProcess implements NativeCommunicator {
  readonly child: ChildProcess;
  #calls = new Map<number, { resolve: (value: never) => void; reject: (error: Error) => void }>();
  #nextId = 0;

  constructor(rank: number, worldSize: number, options: GroupOptions = {}) {
    this.child = fork(
      path.join(__dirname, 'communicatorRank.js'),
      [JSON.stringify(optionsOf(rank, worldSize, options))],
      { serialization: 'advanced' },
    );
    this.child.on('message', (message) => {
      const { id, value, error } = message as { id: number; value: never; error?: object };
      const call = this.#calls.get(id);
      this.#calls.delete(id);
      if (error) call?.reject(Object.assign(new Error(), error));
      else call?.resolve(value);
    });
    ended.push(() => this.end('SIGKILL'));
  }

  async end(signal: NodeJS.Signals): Promise<void> {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    const exit = once(this.child, 'exit');
    this.child.kill(signal);
    await exit;
  }

  #call<T>(method: string, ...args: unknown[]): Promise<T> {
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      this.#calls.set(id, { resolve, reject });
      this.child.send({ id, method, args });
    });
  }

  address = () => this.#call<Uint8Array>('address');
  connect = (addresses: Uint8Array[]) => this.#call<undefined>('connect', addresses);
  allReduce = (...args: Parameters<NativeCommunicator['allReduce']>) =>
    this.#call<Uint8Array>('allReduce', ...args);
  allGather = (...args: Parameters<NativeCommunicator['allGather']>) =>
    this.#call<Uint8Array>('allGather', ...args);
  broadcast = (...args: Parameters<NativeCommunicator['broadcast']>) =>
    this.#call<Uint8Array>('broadcast', ...args);
  barrier = () => this.#call<undefined>('barrier');
  /** Repeats an allReduce of `bytes` bytes until it fails. */
  reduceForever = (bytes: number) => this.#call<never>('reduceForever', bytes);
  /** Starts a child process that outlives it; resolves to its id. */
  startChild = () => this.#call<number>('startChild');
  abort = (reason: string) => void this.#call('abort', reason);
  shutdown = () => this.#call<undefined>('shutdown');
}

export function startProcesses(worldSize: number, options: GroupOptions = {}): RankProcess[] {
  return Array.from({ length: worldSize }, (_, rank) => new RankProcess(rank, worldSize, options));
}

/** Connects the ranks. */
export async function connect<T extends NativeCommunicator>(ranks: T[]): Promise<T[]> {
  const addresses = await Promise.all(ranks.map((rank) => rank.address()));
  await Promise.all(ranks.map((rank) => rank.connect(addresses)));
  return ranks;
}
