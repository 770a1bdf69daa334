/** The environment variables that a launcher sets: rank, world size and rendezvous endpoint. */
import { ConfigError } from '../errors';

export interface RankPlace {
  rank: number;
  worldSize: number;
}

/** The store through which a group's ranks find each other. */
export interface RendezvousEndpoint {
  host: string;
  port: number;
  /** Rank 0 serves the store unless the port already has one; false: the launcher serves it. */
  hostsStore: boolean;
  /** Prefix of the group's keys in the store. */
  prefix: string;
}

/** Reads RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE. Throws ConfigError naming the variable. */
export function rankFromEnvironment(): RankPlace & { localRank: number; localWorldSize: number } {
  const worldSize = integerVariable('WORLD_SIZE', 1);
  return {
    rank: integerVariable('RANK', 0, worldSize - 1),
    localRank: integerVariable('LOCAL_RANK', 0),
    worldSize,
    // Optional, as in PyTorch.
    localWorldSize: process.env.LOCAL_WORLD_SIZE
      ? integerVariable('LOCAL_WORLD_SIZE', 1, worldSize)
      : worldSize,
  };
}

/**
 * The endpoint of `env://` (MASTER_ADDR, MASTER_PORT) or `tcp://host:port`. For `env://` with
 * TORCHELASTIC_USE_AGENT_STORE=True the launcher serves the store. Throws ConfigError.
 */
export function rendezvousEndpoint(initMethod: string): RendezvousEndpoint {
  if (initMethod === 'env://') {
    const host = variable('MASTER_ADDR');
    const port = integerVariable('MASTER_PORT', 1, 65535);
    const hostsStore = process.env.TORCHELASTIC_USE_AGENT_STORE !== 'True';
    // The launcher's store survives a restart of the ranks.
    const runId = process.env.TORCHELASTIC_RUN_ID || 'none';
    const restart = process.env.TORCHELASTIC_RESTART_COUNT || '0';
    return { host, port, hostsStore, prefix: `uniproc/${runId}/${restart}` };
  }
  const [, ipv6, name, digits] = /^tcp:\/\/(?:\[([^\]]+)\]|([^:/]+)):(\d+)$/.exec(initMethod) ?? [];
  const port = Number(digits);
  if (!(port >= 1 && port <= 65535)) {
    throw new ConfigError(
      `the init method is ${initMethod}; it must be env:// or tcp://host:port, with port 1 to 65535`,
    );
  }
  return { host: ipv6 || name, port, hostsStore: true, prefix: 'uniproc/none/0' };
}

/** Throws ConfigError when the variable is unset or empty. */
export function variable(name: string): string {
  const value = process.env[name];
  if (value === undefined || value === '') {
    throw new ConfigError(
      `${name} is not set; start this program with torchrun or uniproc launch, or set ${name}`,
    );
  }
  return value;
}

/** Throws ConfigError when the variable is not an integer within the range. */
function integerVariable(name: string, min: number, max = Number.MAX_SAFE_INTEGER): number {
  const value = variable(name);
  const number = Number(value);
  if (!/^\d+$/.test(value) || number < min || number > max) {
    const range = max === Number.MAX_SAFE_INTEGER ? `of at least ${min}` : `from ${min} to ${max}`;
    throw new ConfigError(`${name} is ${value}; it must be an integer ${range}`);
  }
  return number;
}
