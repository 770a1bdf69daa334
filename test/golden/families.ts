/**
 * Compares every model family with Hugging Face transformers. make.py creates and documents
 * checkpoints/ and expected/, and ensures that the reference's choices are unambiguous.
 */
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { type EngineArgs, LLM, type RequestOutput, SamplingParams } from '../../lib';

const MAX_TOKENS = 32;
const FLOAT32_TOLERANCE = 1e-4;
const HALF_TOLERANCE = 3e-2;
/**
 * In half types on a GPU, where steps of 17 tokens and more also round tokens to float8 (docs/cuda.md),
 * which the reference does not: 2 to 3 % of each product.
 */
const FLOAT8_TOLERANCE = 0.15;
const WITH_FLOAT8_TOKENS = new Set([
  'llama-grouped-fbgemm',
  'llama-grouped-fp8-channel',
  'qwen2-fp8-tensor',
  'qwen3-fp8-static',
  'qwen3-mixed',
  'qwen3-modelopt',
]);

/** The reference's prediction at one position of a sequence. */
export interface Prediction {
  /** Logprob of the token at this position. */
  logprob: number;
  /** Its rank from 1, and its distance to the nearest other logprob; only in float32. */
  rank: number;
  margin: number;
  /** The top five: [token id, logprob]. */
  top: [number, number][];
}

interface ExpectedPrompt {
  promptTokenIds: number[];
  /** [MAX_TOKENS]: the greedy continuation in float32. */
  tokenIds: number[];
  /** One per position of prompt and continuation, except the first. */
  float32: Prediction[];
  bfloat16: Prediction[];
  float16: Prediction[];
}

/** One position's logprobs, with its token. */
interface Position {
  tokenId: number;
  logprobs: Map<number, { logprob: number; rank: number }>;
}

const families = readdirSync(path.join(__dirname, 'checkpoints'));

export function readExpected(family: string): ExpectedPrompt[] {
  const file = path.join(__dirname, 'expected', `${family}.json`);
  return (JSON.parse(readFileSync(file, 'utf8')) as { prompts: ExpectedPrompt[] }).prompts;
}

function sequenceOf({ promptTokenIds, tokenIds }: ExpectedPrompt): number[] {
  return [...promptTokenIds, ...tokenIds];
}

/** Runs `calls` of generate in sequence on one engine. */
async function generate(
  family: string,
  args: EngineArgs,
  calls: number[][][],
  maxTokens: number,
): Promise<RequestOutput[]> {
  const longest = Math.max(...readExpected(family).map((prompt) => sequenceOf(prompt).length));
  const llm = await LLM.create({
    model: path.join(__dirname, 'checkpoints', family),
    maxModelLen: longest + 1,
    kvCacheMemoryBytes: 2 ** 24,
    skipTokenizerInit: true,
    languageModelOnly: true,
    ...args,
  });
  const params = new SamplingParams({
    temperature: 0,
    maxTokens,
    logprobs: 5,
    promptLogprobs: 5,
    ignoreEos: true,
  });
  try {
    const outputs: RequestOutput[] = [];
    for (const prompts of calls) {
      const inputs = prompts.map((promptTokenIds) => ({ promptTokenIds }));
      outputs.push(...(await llm.generate(inputs, params)));
    }
    return outputs;
  } finally {
    await llm.shutdown();
  }
}

/** The positions of the prompt, except the first. */
function promptPositions({ promptTokenIds, promptLogprobs }: RequestOutput): Position[] {
  if (promptLogprobs?.length !== promptTokenIds.length || promptLogprobs[0] !== null) {
    throw new Error('promptLogprobs must have null and then a Map for each further prompt token');
  }
  return promptLogprobs.slice(1).map((logprobs, i) => {
    if (logprobs === null) throw new Error(`no logprobs for prompt token ${i + 1}`);
    return { tokenId: promptTokenIds[i + 1], logprobs };
  });
}

function generatedPositions({ outputs: [{ tokenIds, logprobs }] }: RequestOutput): Position[] {
  if (logprobs?.length !== tokenIds.length) {
    throw new Error('logprobs must have a Map for each generated token');
  }
  return tokenIds.map((tokenId, i) => ({ tokenId, logprobs: logprobs[i] }));
}

function logprobOf({ tokenId, logprobs }: Position): number {
  return logprobs.get(tokenId)?.logprob ?? NaN;
}

/** The top logprobs in descending order, without their tokens. */
function topLogprobs({ logprobs }: Position): number[] {
  return [...logprobs.values()].map(({ logprob }) => logprob).sort((a, b) => b - a);
}

/** The id of rank 1. */
function argMax({ logprobs }: Position): number | undefined {
  return [...logprobs].find(([, { rank }]) => rank === 1)?.[0];
}

function isWithin(tolerance: number, ours: number, reference: number): boolean {
  return Math.abs(ours - reference) <= tolerance; // false for NaN
}

/** Difference between the reference's top two logprobs. */
function topTwoGap({ top: [first, second] }: Prediction): number {
  return first[1] - second[1];
}

/** A line for each logprob (the token's or one of the top five) that differs from the reference. */
function wrongLogprobs(ours: Position[], reference: Prediction[]): string[] {
  expect(ours).toHaveLength(reference.length);
  return ours.flatMap((position, i) => {
    const pairs = [
      [logprobOf(position), reference[i].logprob],
      ...reference[i].top.map(([, logprob], k) => [topLogprobs(position)[k], logprob]),
    ];
    return pairs
      .filter(([mine, theirs]) => !isWithin(FLOAT32_TOLERANCE, mine, theirs))
      .map(([mine, theirs]) => `position ${i}: ${mine}, reference ${theirs}`);
  });
}

/** A line for each rank that differs from the reference by more than rounding explains. */
function wrongRanks(ours: Position[], reference: Prediction[]): string[] {
  expect(ours).toHaveLength(reference.length);
  const clear = 2 * FLOAT32_TOLERANCE;
  return ours.flatMap(({ tokenId, logprobs }, i) => {
    const { rank, margin, top } = reference[i];
    const ranks: [number, number][] = margin > clear ? [[tokenId, rank]] : [];
    // The fifth's lower neighbour is unknown.
    for (let k = 0; k < top.length - 1; k++) {
      const above = k === 0 ? Infinity : top[k - 1][1] - top[k][1];
      const below = top[k][1] - top[k + 1][1];
      if (Math.min(above, below) > clear) ranks.push([top[k][0], k + 1]);
    }
    return ranks
      .filter(([id, expected]) => logprobs.get(id)?.rank !== expected)
      .map(
        ([id, expected]) => `position ${i}: ${id} is ${logprobs.get(id)?.rank}, not ${expected}`,
      );
  });
}

/** Specifies that a device matches the reference, in every type, for single and batched prompts. */
export function specifyFamilies(device: string): void {
  describe.each(families)('%s in float32', (family) => {
    const expected = readExpected(family);
    const prompts = expected.map(({ promptTokenIds }) => promptTokenIds);
    const byLength = prompts.map((prompt, i) => [prompt.length, i] as const);

    describe.each<[string, EngineArgs]>([
      ['sync scheduling', { asyncScheduling: false }],
      ['async scheduling', { asyncScheduling: true }],
      ['prompts in chunks among decodes', { maxNumBatchedTokens: 48, maxNumSeqs: 8 }],
    ])('%s', (_, args) => {
      let alone: RequestOutput[];
      let batched: RequestOutput[];

      beforeAll(async () => {
        const calls = [...prompts.map((prompt) => [prompt]), prompts];
        const outputs = await generate(
          family,
          { ...args, device, dtype: 'float32' },
          calls,
          MAX_TOKENS,
        );
        alone = outputs.slice(0, prompts.length);
        batched = outputs.slice(prompts.length);
      });

      describe.each([
        ['alone', () => alone],
        ['batched with the others', () => batched],
      ])('%s', (_, outputs) => {
        describe.each(byLength)('a prompt of %i tokens', (promptLength, i) => {
          const ofPrompt = expected[i].float32.slice(0, promptLength - 1);
          const ofOutput = expected[i].float32.slice(promptLength - 1);

          test("generates the reference's greedy tokens", () => {
            expect(outputs()[i].outputs[0].tokenIds).toEqual(expected[i].tokenIds);
          });

          test("has the reference's logprobs of generated tokens", () => {
            expect(wrongLogprobs(generatedPositions(outputs()[i]), ofOutput)).toEqual([]);
          });

          test("has the reference's prompt logprobs", () => {
            expect(wrongLogprobs(promptPositions(outputs()[i]), ofPrompt)).toEqual([]);
          });

          test("has the reference's ranks", () => {
            expect(wrongRanks(generatedPositions(outputs()[i]), ofOutput)).toEqual([]);
            expect(wrongRanks(promptPositions(outputs()[i]), ofPrompt)).toEqual([]);
          });
        });
      });
    });
  });

  describe.each(families)('%s', (family) => {
    const expected = readExpected(family);
    const byLength = expected.map(({ promptTokenIds }, i) => [promptTokenIds.length, i] as const);

    const roundsTokens = device !== 'cpu' && WITH_FLOAT8_TOKENS.has(family);
    const halfTolerance = roundsTokens ? FLOAT8_TOLERANCE : HALF_TOLERANCE;

    describe.each(['bfloat16', 'float16'] as const)('in %s', (dtype) => {
      let forced: RequestOutput[];
      let continued: RequestOutput[];

      beforeAll(async () => {
        const prompts = expected.map(({ promptTokenIds }) => promptTokenIds);
        forced = await generate(family, { device, dtype }, [expected.map(sequenceOf)], 1);
        continued = await generate(family, { device, dtype }, [prompts], MAX_TOKENS);
      });

      describe.each(byLength)('a prompt of %i tokens and its continuation', (promptLength, i) => {
        const reference = expected[i][dtype];

        test("have the reference's logprobs as a prompt", () => {
          const ours = promptPositions(forced[i]);
          expect(ours).toHaveLength(reference.length);
          const wrong = ours.flatMap((position, at) => {
            const [mine, theirs] = [logprobOf(position), reference[at].logprob];
            const right = isWithin(halfTolerance, mine, theirs);
            return right ? [] : [`position ${at}: ${mine}, reference ${theirs}`];
          });
          expect(wrong).toEqual([]);
        });

        test("have the reference's arg max wherever it is unambiguous", () => {
          const ours = promptPositions(forced[i]);
          expect(ours).toHaveLength(reference.length);
          const clear = reference.map((prediction) => topTwoGap(prediction) > halfTolerance);
          expect(ours.map(argMax).filter((_, at) => clear[at])).toEqual(
            reference.map(({ top: [[id]] }) => id).filter((_, at) => clear[at]),
          );
        });

        test("have the reference's logprobs when generated, up to an ambiguous choice", () => {
          const ofOutput = reference.slice(promptLength - 1);
          const ours = generatedPositions(continued[i]);
          expect(ours).toHaveLength(MAX_TOKENS);
          for (const [at, position] of ours.entries()) {
            const { logprob, top } = ofOutput[at];
            if (topTwoGap(ofOutput[at]) > halfTolerance) expect(position.tokenId).toBe(top[0][0]);
            // The contexts differ from here on.
            if (position.tokenId !== expected[i].tokenIds[at]) break;
            expect(Math.abs(logprobOf(position) - logprob)).toBeLessThanOrEqual(halfTolerance);
          }
        });
      });
    });
  });
}
