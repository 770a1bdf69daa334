/** Ranks that run several programs, because their start is slow: on GPUs it takes seconds. */
import { type Rank, type RankOptions, startRanks } from './ranks';
import { expectGoodEnds } from './tensorParallel';

/**
 * Runs received bodies in sequence; `say` prints a line of JSON. Each body's last line has its number
 * and its error.
 */
const LOOP = `
process.on('message', async ({ number, body }) => {
  let error = null;
  try {
    await eval('(async () => {' + body + '\\n})()');
  } catch (thrown) {
    error = thrown?.stack ?? String(thrown);
  }
  console.log(JSON.stringify({ error, endOfBody: number }));
});
`;

interface EndOfBody {
  error: string | null;
  endOfBody: number;
}

/**
 * A group of processes that runs several programs in sequence, of one test or several. When a program
 * fails or its test aborts it, the group is killed and the next program gets a new one.
 */
export class ResidentRanks {
  #ranks: Rank[] = [];
  #numBodies = 0;
  #isBusy = false;

  /** `prelude`: definitions for every program, including `say`. Starts nothing yet. */
  constructor(
    private readonly prelude: string,
    private readonly worldSize: number,
    private readonly options: RankOptions = {},
  ) {}

  /** Returns each rank's output. Rejects with the first failing rank's error and stderr. */
  async run<T>(body: string): Promise<T[][]> {
    if (this.#isBusy) await this.kill();
    if (this.#ranks.length === 0) await this.#start();
    this.#isBusy = true;
    const number = ++this.#numBodies;
    for (const { child } of this.#ranks) child.send({ number, body });
    try {
      const said = await Promise.all(this.#ranks.map((rank) => this.#ended<T>(rank, number)));
      this.#isBusy = false;
      return said;
    } catch (error) {
      await this.kill();
      throw error;
    }
  }

  /** Runs a last program; each rank must then exit by itself without an error. */
  async end(body = ''): Promise<void> {
    if (this.#ranks.length === 0) return;
    try {
      await this.run(`${body}; process.disconnect();`);
      await expectGoodEnds(this.#ranks);
    } finally {
      await this.kill();
    }
  }

  async kill(): Promise<void> {
    const ranks = this.#ranks.splice(0);
    this.#isBusy = false;
    for (const rank of ranks) rank.kill('SIGKILL');
    await Promise.all(ranks.map(({ ended }) => ended));
  }

  async #start(): Promise<void> {
    const options = { ...this.options, isResident: true };
    this.#ranks = await startRanks(this.prelude + LOOP, this.worldSize, options);
  }

  async #ended<T>(rank: Rank, number: number): Promise<T[]> {
    await rank.said(`"endOfBody":${number}}\n`);
    const lines = rank.lines<T | EndOfBody>();
    const ends = lines.flatMap((line, at) => (isEnd(line) ? [{ ...line, at }] : []));
    const last = ends.at(-1) as (typeof ends)[number];
    if (last.error !== null) {
      throw new Error(`rank ${rank.rank} failed: ${last.error}\n${rank.stderr}`);
    }
    const before = ends.at(-2)?.at ?? -1;
    return lines.slice(before + 1, last.at) as T[];
  }
}

function isEnd(line: unknown): line is EndOfBody {
  return typeof line === 'object' && line !== null && 'endOfBody' in line;
}

/** Ranks that are started before their test and wait within their program. */
export class HeldRanks {
  private constructor(private readonly ranks: Promise<Rank[]>) {}

  /** Starts them; `program` waits at `await held()`. */
  static start(program: string, worldSize: number, options: RankOptions = {}): HeldRanks {
    const held = `const released = new Promise((resolve) => process.once('message', () => {
      process.disconnect();
      resolve();
    }));
    const held = () => released;\n`;
    const ranks = startRanks(held + program, worldSize, { ...options, isResident: true });
    return new HeldRanks(ranks);
  }

  /** Lets them continue. */
  async go(): Promise<Rank[]> {
    const ranks = await this.ranks;
    for (const { child } of ranks) child.send('go');
    return ranks;
  }

  /** For afterEach or afterAll: kills those that still run. */
  async kill(): Promise<void> {
    const ranks = await this.ranks;
    for (const rank of ranks) rank.kill('SIGKILL');
    await Promise.all(ranks.map(({ ended }) => ended));
  }
}
