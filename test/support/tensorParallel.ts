/** Programs that several ranks run: an LLM of all ranks, and what it says as lines of JSON. */
import { type Rank, type RankOptions, startRanks } from './ranks';

/** The names that the programs of ranks find. */
export const LLM_PRELUDE = `
const uniproc = require('uniproc');
const { LLM, SamplingParams, Worker } = uniproc;
const rank = Number(process.env.RANK);
const worldSize = Number(process.env.WORLD_SIZE);
const say = (line) => console.log(JSON.stringify(line));
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

const createLLM = (args = {}) => LLM.create({
  device: process.env.UNIPROC_TEST_DEVICE ?? 'cpu',
  dtype: 'float32',
  maxModelLen: 128,
  kvCacheMemoryBytes: 2 ** 23,
  seed: 7,
  tensorParallelSize: worldSize,
  distributedExecutorBackend: 'external_launcher',
  distributedTimeout: 20_000,
  ...args,
});

/** An error, and how long it took to come. */
const describeError = (error, start) => ({
  name: error.name,
  code: error.code,
  message: error.message,
  cause: error.cause?.code ?? null,
  elapsed: performance.now() - start,
});

/** The error that a promise rejects with; null when it does not. */
const errorOf = (promise, start = performance.now()) =>
  promise.then(() => null, (error) => describeError(error, start));

/** Until the executor has failed; an engine with nothing to do keeps no process alive. */
const failed = async (llm) => {
  const alive = setInterval(() => {}, 1000);
  await new Promise((resolve) => llm.events.once('failed', resolve));
  clearInterval(alive);
};

/** Until as many tokens were generated. */
const tokensGenerated = async (llm, count) => {
  while (llm.stats().numOutputTokens < count) await pause(1);
};
`;

/** Each rank has one CPU thread, and checks its schedule with the others. */
export const LLM_ENV = { UNIPROC_CPU_THREADS: '1', UNIPROC_CHECK_SCHEDULE: '1' };

/** As describeError has it. */
export interface DescribedError {
  name: string;
  code: string;
  message: string;
  cause: string | null;
  elapsed: number;
}

/**
 * Starts ranks that run `body`, the body of an async function that finds the names above. Each has
 * one CPU thread, and checks its schedule with the others.
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

/** What each rank said, once all have ended as they should. */
export async function runLLMs<T>(
  body: string,
  numRanks: number,
  options: RankOptions = {},
): Promise<T[][]> {
  const ranks = await startLLMs(body, numRanks, options);
  await expectGoodEnds(ranks);
  return ranks.map((rank) => rank.lines<T>());
}

/** They end by themselves, with no error said. Compared together: the first fault may be any rank's. */
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

/** A position's likeliest tokens, and the one that stands there, by id. */
export type Logprobs = [tokenId: number, logprob: number][];

/** Of the tokens that two positions both name, the furthest that their logprobs are apart. */
export function furthest(ours: Logprobs, theirs: Logprobs): number {
  const known = new Map(theirs);
  const differences = ours
    .filter(([tokenId]) => known.has(tokenId))
    .map(([tokenId, logprob]) => Math.abs(logprob - (known.get(tokenId) as number)));
  // The token that stands there is named by both.
  return differences.length === 0 ? Infinity : Math.max(...differences);
}
