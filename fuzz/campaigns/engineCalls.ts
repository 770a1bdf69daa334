/** Calls of the engine campaign: valid ones, and ones that must be refused. */
import { type LLM, type RequestOutput, SamplingParams } from '../../lib';
import type { SamplingParamsOptions } from '../../lib/config/samplingParams';

const SHARED = Array.from({ length: 20 }, (_, i) => (i * 37 + 6) % 2000);
export const PROMPTS = [
  'Once upon a time',
  'One day',
  'The little robot \u00e9\ud83d\ude00',
  { promptTokenIds: [7] },
  { promptTokenIds: SHARED },
  { promptTokenIds: [...SHARED, 9, 10, 11] },
  { promptTokenIds: [...SHARED, ...SHARED, ...SHARED, 5] },
];
export const MESSAGES = [{ role: 'user', content: 'Tell me a story about a dog.' }];

function range(start: number, length: number): number[] {
  return Array.from({ length }, (_, i) => start + i);
}

export const PARAMS: SamplingParamsOptions[] = [
  { temperature: 0, maxTokens: 1 },
  { temperature: 0, maxTokens: 12 },
  { temperature: 0, maxTokens: 24, stop: ['.', ' the'] },
  { temperature: 0, maxTokens: 10, logprobs: 2, promptLogprobs: 1 },
  { temperature: 0, maxTokens: 8, minTokens: 8, presencePenalty: 1, repetitionPenalty: 1.3 },
  { temperature: 0.8, seed: 1, maxTokens: 20 },
  { temperature: 1, seed: 2, n: 3, maxTokens: 10, topK: 20, topP: 0.9 },
  { temperature: 1.5, seed: 3, maxTokens: 16, minP: 0.05, frequencyPenalty: 0.5, ignoreEos: true },
  { temperature: 0.7, seed: 4, maxTokens: 9, logitBias: { 100: 5, 200: -50 }, badWords: ['dog'] },
  {
    temperature: 0.5,
    seed: 5,
    maxTokens: 12,
    allowedTokenIds: [50, 60, 70, 80],
    detokenize: false,
  },
  { temperature: 0.9, seed: 6, maxTokens: null, stopTokenIds: [30, 40, 50] },
  // Longer than a slot's own list memory, so that few of these run at a time.
  { temperature: 0.8, seed: 7, n: 2, maxTokens: 10, allowedTokenIds: range(300, 1500) },
  { temperature: 1, seed: 8, maxTokens: 8, badWords: range(0, 900).map((id) => [id]) },
];

/** Calls that must be refused without affecting others. */
export const INVALID: ((llm: LLM) => Promise<unknown>)[] = [
  (llm) => llm.generate({ promptTokenIds: [] }),
  (llm) => llm.generate({ promptTokenIds: [2048] }),
  (llm) => llm.generate({ promptTokenIds: [-1] }),
  (llm) => llm.generate({ promptTokenIds: [0.5] }),
  (llm) => llm.generate({ promptTokenIds: new Array<number>(96).fill(7) }),
  (llm) => llm.generate(['One day', null as never]),
  (llm) => llm.generate('One day', { topP: 2 }),
  (llm) => llm.generate('One day', [new SamplingParams(), new SamplingParams()]),
  (llm) => llm.generate('One day', new SamplingParams({ allowedTokenIds: [9999] })),
  (llm) => llm.generate('One day', new SamplingParams({ logprobs: 1000 })),
  (llm) => {
    const badWords = range(0, 1800).map((id) => [id]);
    return llm.generate('One day', new SamplingParams({ badWords }));
  },
  (llm) => llm.generate('One day', undefined, { timeoutMs: -1 }),
  (llm) => llm.generate('One day', undefined, { priority: 0.5 }),
  (llm) => llm.chat([]),
  (llm) => llm.chat([{ role: 'nobody', content: 'Hello' }]),
  (llm) => llm.stream({ promptTokenIds: [] }).next(),
  (llm) =>
    Promise.resolve().then(() => llm.generate('a', new SamplingParams({ temperature: NaN }))),
  (llm) => Promise.resolve().then(() => llm.generate('a', new SamplingParams({ topP: 0 }))),
];

/** The prompt and the parameters of these indices; a prompt beyond the last is a chat. */
export function ask(
  llm: LLM,
  prompt: number,
  params: number,
  options: object,
): Promise<RequestOutput[]> {
  const sampling = new SamplingParams(PARAMS[params]);
  if (prompt === PROMPTS.length) return llm.chat(MESSAGES, sampling, options);
  return llm.generate(PROMPTS[prompt], sampling, options);
}

/** The compared parts of a prompt's outputs. */
export function essence({ promptTokenIds, outputs }: RequestOutput): string {
  return JSON.stringify([
    Array.from(promptTokenIds),
    outputs.map(({ tokenIds, text, finishReason }) => [Array.from(tokenIds), text, finishReason]),
  ]);
}
