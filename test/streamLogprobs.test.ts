/** A stream's logprobs equal the complete output's, with the real model and tokenizer. */
import path from 'node:path';
import { LLM, type OutputDelta, type OutputStream, SamplingParams } from '../lib';

let llm: LLM;

beforeAll(async () => {
  llm = await LLM.create({ model: path.join(__dirname, '..', 'models', 'stories'), device: 'cpu' });
});

afterAll(() => llm.shutdown());

/** All deltas, merged; pausing after each read merges several tokens. */
async function readAll(stream: OutputStream, pause: boolean): Promise<OutputDelta[]> {
  const deltas: OutputDelta[] = [];
  for await (const delta of stream) {
    deltas.push(delta);
    if (pause) await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return deltas;
}

const params = new SamplingParams({
  temperature: 0,
  maxTokens: 12,
  logprobs: 2,
  promptLogprobs: 1,
});

test.each([false, true])('deltas carry logprobs, merged or not (%s)', async (pause) => {
  const [whole] = await llm.generate('Once upon a time', params);
  const deltas = await readAll(llm.stream('Once upon a time', params), pause);
  expect(deltas.flatMap(({ logprobs }) => logprobs ?? [])).toEqual(whole.outputs[0].logprobs);
  for (const { logprobs, tokenIds } of deltas) {
    expect(logprobs?.map((position) => [...position.keys()][0])).toEqual(tokenIds);
  }
  expect(deltas[0].promptLogprobs).toEqual(whole.promptLogprobs);
  expect(deltas.slice(1).every((delta) => delta.promptLogprobs === undefined)).toBe(true);
});

test('an output and its deltas are the same after JSON', async () => {
  const [whole] = await llm.generate('Once upon a time', params);
  const { outputs, promptLogprobs } = JSON.parse(JSON.stringify(whole)) as typeof whole;
  expect(outputs[0].logprobs).toEqual(
    whole.outputs[0].logprobs?.map((position) =>
      Array.from(position, ([tokenId, entry]) => ({ tokenId, ...entry })),
    ),
  );
  expect(promptLogprobs).toHaveLength(whole.promptTokenIds.length);
  expect(JSON.stringify(whole)).not.toMatch(/\{\}|null,null/);
});
