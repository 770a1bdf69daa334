/** Runs one campaign in this process: its seeds first, then new cases until the time is up. */
import { openSync, readFileSync, writeSync } from 'node:fs';
import path from 'node:path';
import { setImmediate } from 'node:timers/promises';
import fc from 'fast-check';
import {
  type BytesTarget,
  type Campaign,
  type CampaignOptions,
  expect,
  type Failure,
  type Progress,
  type StructuredTarget,
} from './campaign';
import { decodeCase, encodeCase, readSeeds, ROOT, writeSeed } from './cases';
import { mutateBytes, mutateJson, shrinkBytes } from './mutate';
import { Random } from './random';

export interface ChildOptions extends CampaignOptions {
  /** Exports `campaigns`. */
  module: string;
  name: string;
  /** Folder with one folder of seeds per campaign. */
  seeds: string;
  seconds: number;
  seed: number;
  /** File of a case to run alone. */
  replay: string | null;
  /** File with the running case: a u32 length and the case. */
  current: string;
}

/** Messages from the child to the runner. */
export type Message = { progress: Progress } | { failure: Failure } | { done: true };

/** Maximum distinct failures of a campaign. */
const MAX_FAILURES = 5;
/** Maximum failures that repeat another one. */
const MAX_REPEATED = 50;
/** Maximum cases between two turns of the event loop. */
const BATCH = 256;
/** Time between two reports. */
const REPORT_MILLISECONDS = 1000;
const SHRINK_MILLISECONDS = 5000;
/** Maximum resident memory; no case needs as much. */
const MAX_RESIDENT_BYTES = 3 * 2 ** 30;

export function runCampaign(options: ChildOptions): void {
  const { campaigns } = require(options.module) as { campaigns: Campaign[] }; // eslint-disable-line @typescript-eslint/no-require-imports
  const campaign = campaigns.find(({ name }) => name === options.name);
  expect(campaign !== undefined, `there is no campaign ${options.name}`);
  new Run(campaign, options).run().then(
    () => process.exit(),
    (error: unknown) => {
      console.error(error);
      process.exit(3);
    },
  );
}

function send(message: Message): Promise<void> {
  return new Promise((resolve) => process.send?.(message, undefined, undefined, () => resolve()));
}

class Run {
  #target!: BytesTarget | StructuredTarget<unknown>;
  #cases = 0;
  #start = 0;
  #reportedAt = 0;
  readonly #folder: string;
  readonly #random: Random;
  readonly #current: number;
  #buffer = Buffer.alloc(64 * 1024);
  /** Failures by location and message. */
  readonly #failures = new Map<string, Failure>();
  #numRepeated = 0;
  /** Unhandled exceptions and rejections since the last case. */
  #uncaught: unknown[] = [];

  constructor(
    readonly campaign: Campaign,
    readonly options: ChildOptions,
  ) {
    this.#folder = path.join(options.seeds, campaign.name);
    this.#random = new Random(options.seed);
    this.#current = openSync(options.current, 'w');
  }

  async run(): Promise<void> {
    process.on('uncaughtException', (error) => this.#uncaught.push(error));
    process.on('unhandledRejection', (error) => this.#uncaught.push(error));
    this.#target = await this.campaign.open(this.options);
    this.#start = performance.now();
    await this.#tell(true); // the runner's watch over silence begins
    if (this.options.replay !== null) {
      await this.#replay(this.options.replay, readFileSync(this.options.replay));
    } else {
      for (const { file, bytes } of readSeeds(this.#folder)) await this.#replay(file, bytes);
      if (this.#target.kind === 'bytes') await this.#mutate(this.#target);
      else await this.#generate(this.#target);
    }
    await this.#tell(true);
    await this.#try(() => this.#target.close?.(), null);
    await send({ done: true });
  }

  get #isOver(): boolean {
    return (
      performance.now() - this.#start >= this.options.seconds * 1000 ||
      this.#failures.size >= MAX_FAILURES ||
      this.#numRepeated >= MAX_REPEATED
    );
  }

  /** Yields to the event loop, and reports if the last report is old enough. */
  async #tell(isLast = false): Promise<void> {
    await setImmediate();
    const now = performance.now();
    if (!isLast && now - this.#reportedAt < REPORT_MILLISECONDS) return;
    this.#reportedAt = now;
    const seconds = (now - this.#start) / 1000;
    const { counts = {} } = this.#target;
    await send({ progress: { cases: this.#cases, seconds, counts: { ...counts } } });
    const resident = process.memoryUsage.rss();
    expect(resident < MAX_RESIDENT_BYTES, () => `the process has grown to ${resident} bytes`);
  }

  /** Runs a case from a file: a seed or --replay's. */
  async #replay(file: string, bytes: Buffer): Promise<void> {
    const target = this.#target;
    this.#note(bytes);
    this.#cases++;
    const check = () =>
      target.kind === 'bytes' ? target.check(bytes) : target.check(decodeCase(bytes));
    await this.#try(check, () => file);
  }

  async #mutate(target: BytesTarget): Promise<void> {
    const seeds = [...target.seeds, ...readSeeds(this.#folder).map(({ bytes }) => bytes)];
    const words = target.words.map((word) => Buffer.from(word));
    const keys = target.words.filter((word) => typeof word === 'string');
    const json = seeds.map((seed) => jsonOf(seed, target.jsonFrom));
    for (const seed of target.seeds) {
      await this.#checkBytes(target, seed);
      await this.#tell();
    }
    while (!this.#isOver) {
      const end = performance.now() + REPORT_MILLISECONDS;
      for (let i = 0; i < BATCH && performance.now() < end; i++) {
        const chosen = this.#random.below(seeds.length);
        const asJson = json[chosen];
        const bytes =
          asJson !== null && !this.#random.oneIn(3)
            ? asJson.join(mutateJson(asJson.value, keys, this.#random))
            : this.#mutated(target, seeds, words, chosen);
        const checked = this.#checkBytes(target, bytes);
        if (checked !== undefined) await checked;
      }
      await this.#tell();
    }
  }

  #mutated(
    { prefix = 0 }: BytesTarget,
    seeds: readonly Buffer[],
    words: readonly Buffer[],
    chosen: number,
  ): Buffer {
    const seed = seeds[chosen];
    if (prefix === 0 || this.#random.oneIn(16)) {
      return mutateBytes(seed, seeds, words, this.#random);
    }
    const rest = mutateBytes(seed.subarray(prefix), seeds, words, this.#random);
    const bytes = Buffer.concat([seed.subarray(0, prefix), rest]);
    // The first byte selects the chunk sizes and more.
    if (bytes.length > 0 && this.#random.oneIn(2)) bytes[0] = this.#random.below(256);
    return bytes;
  }

  /** Returns a promise only for asynchronous checks, since most are synchronous and there are many. */
  #checkBytes(target: BytesTarget, bytes: Buffer): Promise<void> | undefined {
    this.#note(bytes);
    this.#cases++;
    let error: unknown;
    try {
      const result = target.check(bytes);
      if (result === undefined && this.#uncaught.length === 0) return undefined;
      return this.#try(
        () => result,
        () => this.#seedOf(target, bytes),
      );
    } catch (thrown) {
      error = thrown;
    }
    return this.#fail(error, () => this.#seedOf(target, bytes));
  }

  async #seedOf(target: BytesTarget, bytes: Buffer): Promise<string> {
    const fails = async (shorter: Buffer): Promise<boolean> => {
      this.#note(shorter);
      let isFault = false;
      try {
        await target.check(shorter);
      } catch {
        isFault = true;
      }
      // Unhandled rejections are reported one turn later; attribute them to this case.
      await setImmediate();
      return this.#uncaught.splice(0).length > 0 || isFault;
    };
    await setImmediate();
    this.#uncaught = [];
    const smallest = await shrinkBytes(bytes, fails, SHRINK_MILLISECONDS);
    return writeSeed(this.#folder, smallest, target.jsonFrom === 0 ? '.json' : '.bin');
  }

  async #generate(target: StructuredTarget<unknown>): Promise<void> {
    let batch = 0;
    const note = (value: unknown) => {
      this.#cases++;
      this.#note(encodeCase(value));
    };
    const property = fc.asyncProperty(target.arbitrary, async (value) => {
      note(value);
      await target.check(value);
      const [error] = this.#uncaught.splice(0);
      if (error !== undefined) throw error as Error;
      const isDue = performance.now() - this.#reportedAt >= REPORT_MILLISECONDS;
      if (isDue || this.#cases % BATCH === 0) await this.#tell();
    });
    while (!this.#isOver) {
      const left = this.options.seconds * 1000 - (performance.now() - this.#start);
      const details = await fc.check(property, {
        seed: (this.options.seed + batch++) | 0,
        numRuns: BATCH,
        interruptAfterTimeLimit: Math.max(left, SHRINK_MILLISECONDS),
        markInterruptAsFailure: false,
      });
      if (details.failed && details.counterexample !== null) {
        const [value] = details.counterexample;
        await this.#fail(details.errorInstance, () =>
          Promise.resolve(writeSeed(this.#folder, encodeCase(value), '.json')),
        );
      }
      await this.#tell();
    }
  }

  /** Records an error that `check` throws or that was unhandled meanwhile. */
  async #try(
    check: () => void | Promise<void>,
    seed: (() => string | Promise<string>) | null,
  ): Promise<void> {
    let error: unknown;
    try {
      await check();
      error = this.#uncaught.splice(0)[0];
    } catch (thrown) {
      error = thrown;
    }
    if (error !== undefined) await this.#fail(error, seed);
  }

  async #fail(error: unknown, seed: (() => string | Promise<string>) | null): Promise<void> {
    // The same error may also be an unhandled rejection.
    await setImmediate();
    this.#uncaught = [];
    const signature = signatureOf(error);
    if (this.#failures.has(signature)) {
      this.#numRepeated++;
      return;
    }
    const message = error instanceof Error ? (error.stack ?? error.message) : String(error);
    const failure: Failure = { message, seed: null };
    this.#failures.set(signature, failure);
    if (seed !== null) failure.seed = path.relative(ROOT, await seed());
    await send({ failure });
  }

  /** Records the case before running it, in case the process dies. */
  #note(bytes: Buffer): void {
    const length = 4 + bytes.length;
    if (this.#buffer.length < length) this.#buffer = Buffer.alloc(2 * length);
    this.#buffer.writeUInt32LE(bytes.length);
    bytes.copy(this.#buffer, 4);
    writeSync(this.#current, this.#buffer, 0, length, 0);
  }
}

/** A seed's JSON, and a function that makes a case from another value; null if it is not JSON. */
function jsonOf(
  seed: Buffer,
  from: number | undefined,
): { value: unknown; join: (value: unknown) => Buffer } | null {
  if (from === undefined) return null;
  try {
    const value = JSON.parse(seed.subarray(from).toString()) as unknown;
    const before = seed.subarray(0, from);
    const join = (mutated: unknown) =>
      Buffer.concat([
        before,
        Buffer.from(mutated === undefined ? 'null' : JSON.stringify(mutated)),
      ]);
    return { value, join };
  } catch {
    return null;
  }
}

/** Identifies a failure by its error and the frame that threw it. */
function signatureOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const frames = (error.stack ?? '').split('\n').filter((line) => line.includes(' at '));
  const frame = frames.find((line) => /[/\\]lib[/\\]/.test(line)) ?? frames.at(0) ?? '';
  return `${error.name} ${error.message.replace(/-?\d[\d.]*(e[+-]?\d+)?/g, '#').slice(0, 30)} ${frame}`;
}
