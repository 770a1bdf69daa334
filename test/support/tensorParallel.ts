/** Programs of ranks that share an LLM and print lines of JSON. */
import { type Rank, type RankOptions, startRanks } from './ranks';

/** Definitions for the ranks' programs. */
export const LLM_PRELUDE = `
const uniproc = require('uniproc');
const { LLM, SamplingParams, Worker } = uniproc;
const rank = Number(process.env.RANK);
const worldSize = Number(process.env.WORLD_SIZE);
const say = (line) => console.log(JSON.stringify(line));
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** The ranks' timeout says why they hang, before the test's ends; a busy machine is faster. */
const createLLM = (args = {}) => LLM.create({
  device: process.env.UNIPROC_TEST_DEVICE ?? 'cpu',
  dtype: 'float32',
  maxModelLen: 128,
  kvCacheMemoryBytes: 2 ** 23,
  seed: 7,
  tensorParallelSize: worldSize,
  distributedExecutorBackend: 'external_launcher',
  distributedTimeoutMs: 150_000,
  ...args,
});

/** An error and its delay. */
const describeError = (error, start) => ({
  name: error.name,
  code: error.code,
  message: error.message,
  cause: error.cause?.code ?? null,
  elapsed: performance.now() - start,
});

/** A promise's rejection, or null. */
const errorOf = (promise, start = performance.now()) =>
  promise.then(() => null, (error) => describeError(error, start));

/** Resolves when the executor has failed; an idle engine does not keep the process alive. */
const failed = async (llm) => {
  const alive = setInterval(() => {}, 1000);
  await new Promise((resolve) => llm.events.once('failed', resolve));
  clearInterval(alive);
};

/** Resolves when count tokens have been generated. */
const tokensGenerated = async (llm, count) => {
  while (llm.stats().numOutputTokens < count) await pause(1);
};
`;

/** One CPU thread per rank, and comparison of schedules. */
export const LLM_ENV = { UNIPROC_CPU_THREADS: '1', UNIPROC_CHECK_SCHEDULE: '1' };

/** Result of describeError. */
export interface DescribedError {
  name: string;
  code: string;
  message: string;
  cause: string | null;
  elapsed: number;
}

/**
 * Starts ranks that run `body`, the body of an async function with the definitions above. Each has one
 * CPU thread and compares its schedule with the others.
 */
export function startLLMs(
  body: string,
  numRanks: number,
  { env = {}, ...options }: RankOptions = {},
): Promise<Rank[]> {
  const program = `${LLM_PRELUDE}\n(async () => {\n${body}\n})();`;
  return startRanks(program, numRanks, {
    ...options,
    env: (rank) => ({ ...LLM_ENV, ...(typeof env === 'function' ? env(rank) : env) }),
  });
}

/** Each rank's output, after all have exited without error. */
export async function runLLMs<T>(
  body: string,
  numRanks: number,
  options: RankOptions = {},
): Promise<T[][]> {
  const ranks = await startLLMs(body, numRanks, options);
  await expectGoodEnds(ranks);
  return ranks.map((rank) => rank.lines<T>());
}

/** Expects exits without errors; compares all ranks together, because any may have failed first. */
export async function expectGoodEnds(ranks: readonly Rank[]): Promise<void> {
  const ends = await Promise.all(
    ranks.map(async (rank) => ({
      rank: rank.rank,
      ...(await rank.ended),
      stderr: rank.stderr,
    })),
  );
  const good = { code: 0, signal: null, stderr: '' };
  expect(ends).toEqual(ranks.map(({ rank }) => ({ rank, ...good })));
}

/** Logprobs of a position's likeliest tokens and its actual token. */
export type Logprobs = [tokenId: number, logprob: number][];

/** The largest difference of logprobs over the tokens common to two positions. */
export function furthest(ours: Logprobs, theirs: Logprobs): number {
  const known = new Map(theirs);
  const differences = ours
    .filter(([tokenId]) => known.has(tokenId))
    .map(([tokenId, logprob]) => Math.abs(logprob - (known.get(tokenId) as number)));
  // Both contain the actual token.
  return differences.length === 0 ? Infinity : Math.max(...differences);
}
