/** Requests running while ranks join and leave, compared with undisturbed ones. */
import { freePort } from './support/freePort';
import type { Rank } from './support/ranks';
import {
  CALLS,
  expectUndisturbed,
  generateUndisturbed,
  type Output,
  specifyGrowingAndShrinking,
  specifyLeavingAndJoining,
  STAYS,
  undisturbed,
} from './support/reinitialization';
import { type DescribedError, expectGoodEnds, runLLMs, startLLMs } from './support/tensorParallel';

beforeAll(generateUndisturbed);

specifyLeavingAndJoining();

specifyGrowingAndShrinking(4);

test('2 → 4 → 2, keeping the last two, with new ranks', async () => {
  const [port, lastPort] = [await freePort(), await freePort()];
  const grows = (rank: number) => `${CALLS}
    const llm = await makeLLM();
    const calls = ${rank < 2 ? `under(llm)` : '[]'};
    ${
      rank < 2
        ? `await tokensGenerated(llm, 15);
           await llm.reinitializeDistributed(request(4, -1, ${port}));`
        : ''
    }
    const stays = rank >= 2;
    const newRank = stays ? rank - 2 : uniproc.ReconfigureRankType.SHUTDOWN_CURRENT_RANK;
    const settled = Promise.allSettled(calls);
    const changing = llm.reinitializeDistributed(request(2, newRank, ${lastPort}));
    const last = stays ? after(llm) : null;
    await changing;
    if (stays) await sayAll([last]);
    else say((await settled).map(({ reason }) => reason.code));
    await llm.shutdown();`;
  const start = async (rank: number, worldSize: number, masterPort?: number): Promise<Rank[]> =>
    startLLMs(grows(rank), worldSize, { ranks: [rank], masterPort });
  const firstPort = await freePort();
  const ranks = (
    await Promise.all([
      start(0, 2, firstPort),
      start(1, 2, firstPort),
      start(2, 4, port),
      start(3, 4, port),
    ])
  ).flat();
  await expectGoodEnds(ranks);
  const [[first], [second], [third], [fourth]] = ranks.map((rank) => rank.lines());
  expect(first).toEqual(['SHUT_DOWN', 'SHUT_DOWN']);
  expect(second).toEqual(['SHUT_DOWN', 'SHUT_DOWN']);
  expect(fourth).toEqual(third);
  const tokens = (outputs: Output[]) => outputs.map(({ tokenIds }) => tokenIds);
  expect(tokens((third as Output[][])[0])).toEqual(tokens(undisturbed[2]));
});

test('2 → 2: ranks may swap', async () => {
  const program = STAYS(2, await freePort(), '1 - rank');
  const ranks = await startLLMs(program, 2);
  await expectGoodEnds(ranks);
  for (const [oldRank, rank] of ranks.entries()) {
    const [standing, outputs] = rank.lines<object>();
    expect(standing).toMatchObject({ rank: 1 - oldRank, numHeads: 4 });
    expectUndisturbed(outputs as Output[][]);
  }
});

test('a change that ranks do not agree on, or cannot make, changes nothing', async () => {
  const said = await runLLMs<(DescribedError | string)[]>(
    `${CALLS}
    const llm = await makeLLM();
    const calls = under(llm);
    const errors = [];
    const attempt = async (...fields) => errors.push(await errorOf(llm.reinitializeDistributed(request(...fields))));
    await attempt(1 + rank, -1, 29500);
    await attempt(1, -1, 29500);
    await attempt(3, -1, 29500);
    await attempt(2, 0, 29500);
    await attempt(0, -1, 29500);
    if (rank === 0) calls.push(after(llm));
    await attempt(2, -1, 29500);
    if (rank === 1) calls.push(after(llm));
    say(errors.map(({ code, message }) => code + ': ' + message));
    await sayAll(calls);
    await llm.shutdown();`,
    2,
  );
  const [errors, outputs] = said[0] as unknown as [string[], Output[][]];
  expect(errors).toEqual([
    'CONFIG_INVALID: reinitializeDistributed: newDataParallelSize is 2 on rank 1, but 1 on rank 0; ' +
      'pass the same on every rank',
    'CONFIG_INVALID: reinitializeDistributed: rank 1 would be rank 1 of 1; ' +
      'a rank must be less than the size',
    expect.stringMatching(/^INVALID_STATE: .* rank 0: tensorParallelSize is 3; it must divide/),
    'CONFIG_INVALID: reinitializeDistributed: rank 1 would be rank 0 of 2, and so would rank 0',
    expect.stringMatching(/^CONFIG_INVALID: reinitializeDistributed: newDataParallelSize is 0/),
    'INVALID_STATE: reinitializeDistributed was called after 2 calls on rank 1, but after 3 on rank 0; ' +
      'call it at the same position on every rank',
  ]);
  expectUndisturbed(outputs);
  expect(said[1]).toEqual(said[0]);
});

test('a refused change is refused on every rank at once, whatever step a rank awaits', async () => {
  const said = await runLLMs<string[] | Output[][]>(
    `${CALLS}
    const llm = await makeLLM();
    const { executor } = llm.engine;
    const refusals = [];
    const refused = async () => {
      for (const size of [1 + rank, 3]) {
        refusals.push((await errorOf(llm.reinitializeDistributed(request(size, -1, 29500)))).code);
      }
    };
    // Rank 1 requests the changes with step 4, so rank 0 awaits step 5, which rank 1 launches last.
    const attempts = new Promise((resolve) => {
      const launch = executor.executeModel.bind(executor);
      let numSteps = 0;
      executor.executeModel = (step, options) => {
        const output = launch(step, options);
        if (step.totalNumScheduledTokens > 0) numSteps++;
        if (rank === 1 && numSteps === 4) resolve(refused());
        if (rank === 0 && numSteps === 6) setImmediate(() => resolve(refused()));
        return output;
      };
    });
    const calls = under(llm);
    await attempts;
    calls.push(after(llm));
    say(refusals);
    await sayAll(calls);
    await llm.shutdown();`,
    2,
  );
  const [refusals, outputs] = said[0];
  expect(refusals).toEqual(['CONFIG_INVALID', 'INVALID_STATE']);
  expectUndisturbed(outputs as Output[][]);
  expect(said[1]).toEqual(said[0]);
});

test('ranks that do not join fail pending calls within the timeout', async () => {
  const body = `${CALLS}
    const llm = await makeLLM({ distributedTimeoutMs: 8000 });
    const calls = under(llm).map((call) => errorOf(call));
    await tokensGenerated(llm, 10);
    say(await errorOf(llm.reinitializeDistributed(request(2, -1, ${await freePort()}))));
    for (const error of await Promise.all(calls)) say(error);
    say(await errorOf(llm.generate('Once')));
    await llm.shutdown();`;
  const [errors] = await runLLMs<DescribedError>(body, 1);
  expect(errors).toHaveLength(4);
  for (const error of errors) {
    expect(error).toMatchObject({ code: 'EXECUTOR_FAILED', cause: 'RENDEZVOUS' });
    expect(error.message).toContain('rank 1 did not join within 8000 ms');
  }
  expect(errors[0].elapsed).toBeLessThan(100_000);
});

test('is refused without a launcher, and with rank-local requests', async () => {
  const body = (backend: string) => `${CALLS}
    const llm = await makeLLM({ distributedExecutorBackend: '${backend}' });
    const call = llm.generate('Once', of({}), { timeoutMs: 60_000 });
    await tokensGenerated(llm, 5);
    say(await errorOf(llm.reinitializeDistributed(request(2, -1, 29500))));
    say((await call)[0].outputs[0].tokenIds.length);
    await llm.shutdown();`;
  const [[refused, numTokens]] = await runLLMs<DescribedError>(body('external_launcher'), 1);
  expect(refused.code).toBe('INVALID_STATE');
  expect(refused.message).toContain('1 requests that only this rank may end');
  expect(numTokens).toBe(60);
  const alone = body('uni').replace('request(2', 'request(1');
  const [[unsupported, numTokensAlone]] = await runLLMs<DescribedError>(alone, 1);
  expect(unsupported.code).toBe('NOT_SUPPORTED');
  expect(numTokensAlone).toBe(60);
});
