/** Models with sliding windows on the CPU, and divided among ranks, against transformers. */
import { cases, CHUNK, HEAD_STARTS, LENGTH, specifySlidingWindows } from './support/slidingWindows';
import { runLLMs } from './support/tensorParallel';

specifySlidingWindows('cpu');

/** Each rank's outputs, with every family in turn. */
const PROGRAM = `
  const cases = require('./test/golden/windows.json');
  for (const [family, { promptTokenIds, tokenIds }] of Object.entries(cases)) {
    for (const asyncScheduling of [false, true]) {
      const llm = await createLLM({
        model: 'test/golden/checkpoints/' + family,
        skipTokenizerInit: true,
        maxModelLen: ${LENGTH},
        maxNumBatchedTokens: ${CHUNK},
        asyncScheduling,
      });
      const prompts = ${JSON.stringify(HEAD_STARTS)}.map((known) => ({
        promptTokenIds: [...promptTokenIds, ...tokenIds.slice(0, known)],
      }));
      const params = prompts.map((prompt) => new SamplingParams({
        temperature: 0,
        maxTokens: ${LENGTH} - prompt.promptTokenIds.length,
        ignoreEos: true,
      }));
      const outputs = await llm.generate(prompts, params);
      say([family, outputs.map(({ outputs }) => outputs[0].tokenIds)]);
      await llm.shutdown();
    }
  }`;

test.each([2, 4])("%i ranks generate transformers' tokens", async (worldSize) => {
  const expected = cases.flatMap(([family, { tokenIds }]) => {
    const ofFamily = [family, HEAD_STARTS.map((known) => tokenIds.slice(known))];
    return [ofFamily, ofFamily];
  });
  const said = await runLLMs<[string, number[][]]>(PROGRAM, worldSize);
  expect(said).toHaveLength(worldSize);
  for (const ofRank of said) expect(ofRank).toEqual(expected);
});
