/** Programs of ranks that change groups during requests, and the expected results. */
import { freePort } from './freePort';
import { type DescribedError, expectGoodEnds, runLLMs, startLLMs } from './tensorParallel';

export interface Output {
  text: string;
  tokenIds: number[];
  finishReason: string;
  cumulativeLogprob: number;
  logprobs: number[];
  promptLogprobs: number[] | null;
}

/** The calls with outputs that must not change, and their formatting. */
export const CALLS = `
  const of = (options) => new SamplingParams({ maxTokens: 60, logprobs: 0, ...options });
  const show = (outputs) => outputs.flatMap(({ outputs, promptLogprobs }) => outputs.map((output) => ({
    ...output,
    logprobs: output.logprobs.map((position) => [...position.values()][0].logprob),
    promptLogprobs: promptLogprobs && promptLogprobs.slice(1).map((position) => [...position.values()][0].logprob),
  })));
  const makeLLM = (args) => createLLM({ maxModelLen: 256, maxNumSeqs: 6, maxNumBatchedTokens: 96, ...args });
  const under = (llm) => [
    llm.generate(
      ['Once upon a time', 'The dog', 'One day a girl named Lily went to the park'],
      [
        of({ temperature: 0 }),
        of({ n: 3, topP: 0.95, presencePenalty: 0.5, frequencyPenalty: 0.2 }),
        of({ promptLogprobs: 0, stop: ['friend', ' and '], minTokens: 30, ignoreEos: true }),
      ],
    ),
    llm.generate('In the garden', of({ seed: 5, minP: 0.05 })),
  ];
  const after = (llm) => llm.generate(['The cat', 'A boy'], of({}));
  const sayAll = async (calls) => say((await Promise.all(calls)).map(show));
  const request = (size, newRank, port) => ({
    newDataParallelSize: size,
    newDataParallelRank: newRank,
    newDataParallelRankLocal: -1,
    newDataParallelMasterIp: '127.0.0.1',
    newDataParallelMasterPort: port,
  });
`;

/** By call. */
export let undisturbed: Output[][];

/** Generates the expected outputs, before all tests of a file. */
export async function generateUndisturbed(): Promise<void> {
  const [[said]] = await runLLMs<Output[][]>(
    `${CALLS}
    const llm = await makeLLM();
    const calls = under(llm);
    calls.push(Promise.all(calls).then(() => after(llm)));
    await sayAll(calls);
    await llm.shutdown();`,
    1,
  );
  undisturbed = said;
  // One output ends at a stop string, long after the change.
  expect(said[0].map(({ finishReason }) => finishReason)).toContain('stop');
}

/** Expects the same tokens and text, and logprobs within the rounding of another layout. */
export function expectUndisturbed(said: Output[][]): void {
  const none = { cumulativeLogprob: 0, logprobs: 0, promptLogprobs: 0 };
  const withoutLogprobs = (outputs: Output[][]) =>
    outputs.map((call) => call.map((output) => ({ ...output, ...none })));
  expect(withoutLogprobs(said)).toEqual(withoutLogprobs(undisturbed));
  for (const [i, output] of said.flat().entries()) {
    const expected = undisturbed.flat()[i];
    const difference = Math.abs(output.cumulativeLogprob - expected.cumulativeLogprob);
    expect(difference).toBeLessThanOrEqual(1e-4 * output.tokenIds.length);
    for (const name of ['logprobs', 'promptLogprobs'] as const) {
      expect(output[name]?.length).toBe(expected[name]?.length);
      for (const [at, logprob] of (output[name] ?? []).entries()) {
        expect(Math.abs(logprob - (expected[name] as number[])[at])).toBeLessThanOrEqual(1e-4);
      }
    }
  }
}

/** Program of a rank with calls that continue during the change. */
export const STAYS = (size: number, port: number, newRank = '-1') => `${CALLS}
  const llm = await makeLLM();
  const calls = under(llm);
  await tokensGenerated(llm, 25);
  const { worker } = llm.engine.executor.driverWorker;
  const before = llm.stats().numOutputTokens;
  const changing = llm.reinitializeDistributed(request(${size}, ${newRank}, ${port}));
  // A call made during the change runs on all ranks of the new group.
  calls.push(after(llm));
  await changing;
  say({ before, rank: worker.rank, numHeads: worker.modelSpec.numHeads });
  await sayAll(calls);
  say({ numPreemptions: llm.stats().numPreemptions > 0, usage: llm.stats().kvCacheUsage });
  await llm.shutdown();`;

const JOINS = `${CALLS}
  const llm = await makeLLM();
  await sayAll([after(llm)]);
  say(llm.stats().kvCacheUsage);
  await llm.shutdown();`;

/** Tests 2 → 1 and 1 → 2, on any device. */
export function specifyLeavingAndJoining(): void {
  test('2 → 1: the staying rank continues alone, the leaving one shuts down', async () => {
    const port = await freePort();
    const ranks = await startLLMs(
      `if (rank === 0) {
        ${STAYS(1, port)}
      } else {
        ${CALLS}
        const llm = await makeLLM();
        const calls = under(llm).map((call) => errorOf(call));
        await tokensGenerated(llm, 25);
        // Meanwhile it launches a step or two ahead of the other.
        await pause(50);
        const { device } = llm.engine.executor.driverWorker.worker;
        await llm.reinitializeDistributed(request(1, uniproc.ReconfigureRankType.SHUTDOWN_CURRENT_RANK, ${port}));
        calls.push(errorOf(llm.generate('Once')), errorOf(device.memory()));
        for (const error of await Promise.all(calls)) say(error);
      }`,
      2,
    );
    await expectGoodEnds(ranks);
    const [standing, outputs, end] = ranks[0].lines<object>();
    expect(standing).toMatchObject({ rank: 0, numHeads: 8 });
    expectUndisturbed(outputs as Output[][]);
    expect(end).toEqual({ numPreemptions: true, usage: 0 });
    const errors = ranks[1].lines<DescribedError>();
    expect(errors.map(({ code }) => code)).toEqual(Array(4).fill('SHUT_DOWN'));
  });

  test('1 → 2: a new process joins, shares the computation and makes the later calls', async () => {
    const port = await freePort();
    const resident = await startLLMs(STAYS(2, port), 1);
    const joiner = await startLLMs(JOINS, 2, { ranks: [1], masterPort: port });
    await expectGoodEnds([...resident, ...joiner]);
    const [standing, outputs, end] = resident[0].lines<object>();
    expect(standing).toMatchObject({ rank: 0, numHeads: 4 });
    expectUndisturbed(outputs as Output[][]);
    expect(end).toEqual({ numPreemptions: true, usage: 0 });
    const [joined, usage] = joiner[0].lines<Output[][]>();
    expect(joined).toEqual([(outputs as Output[][])[2]]);
    expect(usage).toBe(0);
  });
}

/** Tests 1 → N → N/2 → N: the first rank's calls continue throughout; new ranks replace the left ones. */
export function specifyGrowingAndShrinking(worldSize: number): void {
  const half = worldSize / 2;
  test(`1 → ${worldSize} → ${half} → ${worldSize}: requests continue through all changes`, async () => {
    const first = await freePort();
    const ports = [await freePort(), await freePort(), await freePort()];
    const sizes = [worldSize, half, worldSize];
    /** Program of a rank that exists before change `firstChange`; it leaves at the second one if `leaves`. */
    const program = (firstChange: number, leaves: boolean) => `${CALLS}
      const llm = await makeLLM();
      const calls = ${firstChange === 0 ? 'under(llm)' : '[]'}.map((call) => call.catch((error) => error));
      const numUnfinished = [];
      const [sizes, ports] = ${JSON.stringify([sizes, ports])};
      for (let change = ${firstChange}; change < ${leaves ? 2 : 3}; change++) {
        await tokensGenerated(llm, llm.stats().numOutputTokens + 10);
        numUnfinished.push(llm.engine.numUnfinishedRequests);
        const leaves = ${leaves} && change === 1;
        const newRank = leaves ? uniproc.ReconfigureRankType.SHUTDOWN_CURRENT_RANK : -1;
        await llm.reinitializeDistributed(request(sizes[change], newRank, ports[change]));
      }
      ${leaves ? '' : 'calls.push(after(llm));'}
      say(numUnfinished);
      say((await Promise.all(calls)).map(show));
      await llm.shutdown();`;
    const start = (ranks: number[], size: number, port: number, ...args: [number, boolean]) =>
      startLLMs(program(...args), size, { ranks, masterPort: port });
    const from = (least: number, most: number) =>
      Array.from({ length: most - least }, (_, i) => least + i);
    const [resident] = await start([0], 1, first, 0, false);
    const groups = [
      await start(from(1, half), worldSize, ports[0], 1, false),
      await start(from(half, worldSize), worldSize, ports[0], 1, true),
      await start(from(half, worldSize), worldSize, ports[2], 3, false),
    ];
    await expectGoodEnds([resident, ...groups.flat()]);

    const [numUnfinished, outputs] = resident.lines<object>() as [number[], Output[][]];
    expect(numUnfinished).toHaveLength(3);
    for (const count of numUnfinished) expect(count).toBeGreaterThan(0);
    expectUndisturbed(outputs);
    const [staying, leaving, joining] = groups;
    for (const rank of [...staying, ...joining]) {
      expect(rank.lines<Output[][]>()[1]).toEqual([outputs[2]]);
    }
    for (const rank of leaving) expect(rank.lines()[1]).toEqual([]);
  });
}
