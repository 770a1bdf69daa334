/** What a launcher tells a rank: its place in the world, and where the ranks meet. */
import { ConfigError } from '../errors';

/** One rank's place in the world. */
export interface RankPlace {
  rank: number;
  worldSize: number;
}

/** Where a group meets. */
export interface MeetingPlace {
  /** The store's. */
  host: string;
  port: number;
  /** Rank 0 serves the store, unless somebody does already; else it is there. */
  hostsStore: boolean;
  /** Of the group's keys in the store. */
  prefix: string;
}

/** RANK, LOCAL_RANK, WORLD_SIZE and LOCAL_WORLD_SIZE. Throws ConfigError that names the variable. */
export function rankFromEnvironment(): RankPlace & { localRank: number; localWorldSize: number } {
  const worldSize = integerVariable('WORLD_SIZE', 1);
  return {
    rank: integerVariable('RANK', 0, worldSize - 1),
    localRank: integerVariable('LOCAL_RANK', 0),
    worldSize,
    // PyTorch does without it, and so may a wrapper.
    localWorldSize: process.env.LOCAL_WORLD_SIZE
      ? integerVariable('LOCAL_WORLD_SIZE', 1, worldSize)
      : worldSize,
  };
}

/**
 * The place that `env://` (MASTER_ADDR, MASTER_PORT) or `tcp://host:port` names. With
 * TORCHELASTIC_USE_AGENT_STORE=True the launcher serves the store at the former. Throws ConfigError.
 */
export function meetingPlace(initMethod: string): MeetingPlace {
  if (initMethod === 'env://') {
    const host = variable('MASTER_ADDR');
    const port = integerVariable('MASTER_PORT', 1, 65535);
    const hostsStore = process.env.TORCHELASTIC_USE_AGENT_STORE !== 'True';
    // The launcher's store outlives ranks that it starts again.
    const runId = process.env.TORCHELASTIC_RUN_ID || 'none';
    const restart = process.env.TORCHELASTIC_RESTART_COUNT || '0';
    return { host, port, hostsStore, prefix: `uniproc/${runId}/${restart}` };
  }
  const [, ipv6, name, digits] = /^tcp:\/\/(?:\[([^\]]+)\]|([^:/]+)):(\d+)$/.exec(initMethod) ?? [];
  const port = Number(digits);
  if (!(port >= 1 && port <= 65535)) {
    throw new ConfigError(
      `the init method ${initMethod} must be env:// or tcp://host:port, the port 1 to 65535`,
    );
  }
  return { host: ipv6 || name, port, hostsStore: true, prefix: 'uniproc/none/0' };
}

/** A variable that the launcher sets. Throws ConfigError when it is not there. */
export function variable(name: string): string {
  const value = process.env[name];
  if (value === undefined || value === '') {
    throw new ConfigError(`${name} is not set; start this program with torchrun or set it`);
  }
  return value;
}

/** One that is a whole number. Throws ConfigError for anything else. */
function integerVariable(name: string, least: number, most = Number.MAX_SAFE_INTEGER): number {
  const value = variable(name);
  const number = Number(value);
  if (!/^\d+$/.test(value) || number < least || number > most) {
    const range = most === Number.MAX_SAFE_INTEGER ? `${least} or more` : `${least} to ${most}`;
    throw new ConfigError(`${name} is ${value}; it must be a whole number, ${range}`);
  }
  return number;
}
