/** The environment variables of Python's huggingface_hub, read at each call. */
import { readFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { ConfigError } from '../errors';

export interface HubEnvironment {
  /** Without a slash at its end. */
  endpoint: string;
  /** Folder of the cache. */
  cache: string;
  /** Null: none. */
  token: string | null;
  /** Use the cache only. */
  isOffline: boolean;
}

const isTrue = (value: string | undefined) => /^(1|on|yes|true)$/i.test(value ?? '');

/**
 * HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_TOKEN_PATH, HF_ENDPOINT and HF_HUB_OFFLINE. Rejects with ConfigError
 * for a token or an address that cannot be one.
 */
export async function readEnvironment(
  env: NodeJS.ProcessEnv = process.env,
): Promise<HubEnvironment> {
  const given = (name: string) => env[name] || undefined;
  const cacheHome = given('XDG_CACHE_HOME') ?? path.join(os.homedir(), '.cache');
  const home = given('HF_HOME') ?? path.join(cacheHome, 'huggingface');
  const tokenFile = given('HF_TOKEN_PATH') ?? path.join(home, 'token');
  const fromFile = () => readFile(expanded(tokenFile), 'utf8').catch(() => '');
  const token = (given('HF_TOKEN') ?? (await fromFile())).trim();
  // fetch would quote a token that no header can have in its error.
  if (!/^[\x21-\x7e]*$/.test(token)) {
    const place = given('HF_TOKEN') === undefined ? `the file ${tokenFile}` : 'HF_TOKEN';
    throw new ConfigError(`${place} is not a token: it has white space or other characters`);
  }
  const endpoint = given('HF_ENDPOINT') ?? 'https://huggingface.co';
  checkEndpoint(endpoint);
  return {
    endpoint: endpoint.replace(/\/+$/, ''),
    cache: expanded(given('HF_HUB_CACHE') ?? path.join(home, 'hub')),
    token: token === '' ? null : token,
    isOffline: isTrue(env.HF_HUB_OFFLINE) || isTrue(env.TRANSFORMERS_OFFLINE),
  };
}

/** `~` at the beginning is the home folder, as in Python. */
const expanded = (folder: string) => path.resolve(folder.replace(/^~(?=\/|$)/, os.homedir()));

/** Throws ConfigError, which does not quote what may have a password. */
function checkEndpoint(endpoint: string): void {
  const url = URL.canParse(endpoint) ? new URL(endpoint) : null;
  const isHttp = url?.protocol === 'https:' || url?.protocol === 'http:';
  if (url !== null && isHttp && url.username === '' && url.password === '') return;
  throw new ConfigError('HF_ENDPOINT must be an http or https URL without a user and password');
}
