/** The runner: starts each campaign in its own process and prints the results. */
import { fork } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import type { Campaign, CampaignOptions, Failure, NativeCampaign, Result } from './campaign';
import { ROOT, SEEDS, writeSeed } from './cases';
import type { ChildOptions, Message } from './child';
import { runNative } from './native';

interface Options extends CampaignOptions {
  module: string;
  /** Folder with one folder of seeds per campaign. */
  seeds: string;
  /** Seconds without a report after which a campaign counts as hanging. */
  silence: number;
  seconds: number;
  seed: number;
  replay: string | null;
}

/** Maximum milliseconds for a campaign to start, on a busy machine. */
const START = 300_000;
/** Heap limit of a campaign. */
const MAX_HEAP_MIB = 1024;

/** Resolves to the exit code: 1 when a campaign failed. */
export async function main(args: string[]): Promise<number> {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      seconds: { type: 'string', default: '60' },
      jobs: { type: 'string', default: '1' },
      device: { type: 'string', default: 'cpu' },
      seed: { type: 'string', default: String(Date.now() % 2 ** 31) },
      replay: { type: 'string' },
      seeds: { type: 'string', default: SEEDS },
      silence: { type: 'string', default: '120' },
      module: { type: 'string', default: path.join(__dirname, 'campaigns', 'index.ts') },
    },
  });
  const options: Options = {
    module: path.resolve(values.module),
    seeds: path.resolve(values.seeds),
    silence: toNumber('silence', values.silence),
    seconds: toNumber('seconds', values.seconds),
    seed: toNumber('seed', values.seed),
    device: values.device === 'cuda' ? 'cuda' : 'cpu',
    replay: values.replay === undefined ? null : path.resolve(values.replay),
  };
  // eslint-disable-next-line @typescript-eslint/no-require-imports -- the module is an option
  const { campaigns } = require(options.module) as { campaigns: (Campaign | NativeCampaign)[] };
  const unknown = positionals.find((name) => campaigns.every((campaign) => campaign.name !== name));
  if (unknown !== undefined) {
    console.error(`unknown campaign ${unknown}; the campaigns are:`);
    for (const { name, about } of campaigns) console.error(`  ${name.padEnd(18)} ${about}`);
    return 2;
  }
  if (options.replay !== null && positionals.length !== 1) {
    console.error('--replay needs exactly one campaign, the one of the case');
    return 2;
  }
  const waiting = campaigns.filter(
    ({ name }) => positionals.length === 0 || positionals.includes(name),
  );
  console.log(`seed ${options.seed}; ${options.seconds} s each`);
  let numFailures = 0;
  const worker = async (): Promise<void> => {
    for (let campaign = waiting.shift(); campaign !== undefined; campaign = waiting.shift()) {
      const result = await run(campaign, options);
      if (typeof result === 'string') {
        console.log(`${campaign.name.padEnd(18)} did not run: ${result}`);
        continue;
      }
      report(campaign.name, result);
      numFailures += result.failures.length;
    }
  };
  const jobs = Math.max(1, toNumber('jobs', values.jobs));
  await Promise.all(Array.from({ length: jobs }, worker));
  return numFailures > 0 ? 1 : 0;
}

function toNumber(name: string, text: string): number {
  const value = Number(text);
  if (text === '' || !(value >= 0)) throw new Error(`--${name} is ${text}; it must be a number`);
  return value;
}

function run(campaign: Campaign | NativeCampaign, options: Options): Promise<Result | string> {
  return 'sources' in campaign ? runNative(campaign, options) : runInChild(campaign, options);
}

/** Resolves when the campaign's process has exited. */
function runInChild({ name }: Campaign, options: Options): Promise<Result> {
  const folder = mkdtempSync(path.join(tmpdir(), 'uniproc-fuzz-'));
  const current = path.join(folder, 'case');
  const childOptions: ChildOptions = { ...options, name, current };
  const child = fork(path.join(__dirname, 'child.js'), [JSON.stringify(childOptions)], {
    execArgv: ['--expose-gc', `--max-old-space-size=${MAX_HEAP_MIB}`],
    stdio: ['ignore', 'inherit', 'pipe', 'ipc'],
  });
  const result: Result = { cases: 0, seconds: 0, counts: {}, failures: [] };
  let isDone = false;
  let isSilent = false;
  let said = '';
  child.stderr?.on('data', (chunk: Buffer) => (said = (said + chunk.toString()).slice(-4000)));
  const hang = () => {
    isSilent = true;
    child.kill('SIGKILL');
  };
  let watchdog = setTimeout(hang, Math.max(START, 1000 * options.silence));
  child.on('message', (message: Message) => {
    clearTimeout(watchdog);
    watchdog = setTimeout(hang, 1000 * options.silence);
    if ('progress' in message) Object.assign(result, message.progress);
    else if ('failure' in message) result.failures.push(message.failure);
    else isDone = true;
  });
  return new Promise((resolve) => {
    child.on('close', (code, signal) => {
      clearTimeout(watchdog);
      if (!isDone) {
        const how = isSilent
          ? `it hangs: it has not reported for ${options.silence} s`
          : `it ended: ${signal ?? code}`;
        result.failures.push(lastCase(name, current, options, `${how}\n${said}`));
      }
      rmSync(folder, { recursive: true, force: true });
      resolve(result);
    });
  });
}

/** The failure of a crashed or killed process: its running case. */
function lastCase(name: string, current: string, options: Options, message: string): Failure {
  if (options.replay !== null) return { message, seed: path.relative(ROOT, options.replay) };
  const noted = readFileSync(current);
  if (noted.length < 4) return { message, seed: null };
  const bytes = noted.subarray(4, 4 + noted.readUInt32LE());
  return {
    message,
    seed: path.relative(ROOT, writeSeed(path.join(options.seeds, name), bytes, '')),
  };
}

function report(name: string, { cases, seconds, counts, failures }: Result): void {
  const rate = seconds > 0 ? Math.round(cases / seconds) : 0;
  const more = Object.entries(counts).map(([what, count]) => `, ${count} ${what}`);
  console.log(
    `${name.padEnd(18)} ${cases} cases${more.join('')} in ${seconds.toFixed(1)} s ` +
      `(${rate} a second), ${failures.length} failures`,
  );
  for (const { message, seed } of failures) {
    console.log(`  ${message.split('\n').join('\n  ')}`);
    if (seed !== null) console.log(`  npm run fuzz -- ${name} --replay ${seed}`);
  }
}
