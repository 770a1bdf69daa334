/** Models on several GPUs, one process each, against one GPU and transformers. */
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { folderWith } from '../support/folder';
import { startNode, startProcess } from '../support/ranks';
import { HeldRanks, ResidentRanks } from '../support/residentRanks';
import { stories } from '../support/stories';
import { familiesFor } from '../support/families';
import {
  type DescribedError,
  expectGoodEnds,
  furthest,
  LLM_ENV,
  LLM_PRELUDE,
  type Logprobs,
  runLLMs,
  startLLMs,
} from '../support/tensorParallel';
import { describeOnGpus, expectNoMoreHeld } from './gpus';

const ROOT = path.resolve(__dirname, '..', '..');
const TOLERANCE = 1e-4;

/** Starting an engine on a GPU takes seconds, and initializing NCCL more. */
jest.setTimeout(180_000);

interface Generated {
  tokenIds: number[];
  /** One per position of the prompt, except the first, and of the output. */
  logprobs: Logprobs[];
}

const PRELUDE = `
const createOnGpu = (args = {}) => createLLM({
  device: 'cuda',
  maxModelLen: 512,
  maxNumSeqs: 8,
  kvCacheMemoryBytes: 2 ** 26,
  distributedTimeoutMs: 60_000,
  distributedExecutorBackend: worldSize > 1 ? 'external_launcher' : 'uni',
  ...args,
});
const pairs = (position) => [...position].map(([tokenId, { logprob }]) => [tokenId, logprob]);
const show = ({ promptLogprobs, outputs }) => outputs.map(({ tokenIds, logprobs }) => ({
  tokenIds: [...tokenIds],
  logprobs: [...(promptLogprobs ?? []).slice(1), ...(logprobs ?? [])].map(pairs),
}));
`;

/** Outputs of the small model, greedy and sampled. */
const storiesProgram = (args: object) => `
  const llm = await createOnGpu(${JSON.stringify(args)});
  const prompts = ${JSON.stringify(stories.prompts.map(({ prompt }) => prompt))};
  const of = (options) => new SamplingParams({ maxTokens: 48, logprobs: 5, promptLogprobs: 5, ...options });
  const outputs = [
    ...(await llm.generate(prompts, of({ temperature: 0 }))),
    ...(await llm.generate(prompts, of({ temperature: 0.9, topP: 0.95, seed: 11 }))),
    ...(await llm.generate(prompts[0], of({ n: 3, topK: 40, seed: 12 }))),
  ];
  for (const output of outputs.flatMap(show)) say(output);
  await llm.shutdown();`;

const tokensOf = (generated: Generated[]) => generated.map(({ tokenIds }) => tokenIds);

describeOnGpus('a model', (worldSize) => {
  let alone: Generated[];
  const resident = new ResidentRanks(LLM_PRELUDE + PRELUDE, worldSize, { env: LLM_ENV });
  const run = <T>(body: string) => resident.run<T>(body);

  beforeAll(async () => {
    [alone] = await runLLMs<Generated>(PRELUDE + storiesProgram({ dtype: 'float32' }), 1);
  });
  afterAll(() => resident.end());

  test.each([
    { disableCustomAllReduce: false, enforceEager: false },
    { disableCustomAllReduce: true, enforceEager: false },
    { disableCustomAllReduce: false, enforceEager: true },
    { disableCustomAllReduce: true, enforceEager: true },
  ])('in float32 gives the tokens and logprobs of one GPU, with %j', async (args) => {
    const said = await run<Generated>(storiesProgram({ dtype: 'float32', ...args }));
    for (const ofRank of said) expect(ofRank).toEqual(said[0]);
    expect(tokensOf(said[0])).toEqual(tokensOf(alone));
    const distances = said[0].flatMap(({ logprobs }, i) => {
      expect(logprobs).toHaveLength(alone[i].logprobs.length);
      return logprobs.map((position, at) => furthest(position, alone[i].logprobs[at]));
    });
    expect(Math.max(...distances)).toBeLessThanOrEqual(TOLERANCE);
  });

  test.each(['bfloat16', 'float16'])(
    'in %s gives all ranks the same outputs, reproducibly, with and without graphs',
    async (dtype) => {
      const said = await run<Generated>(storiesProgram({ dtype }));
      for (const ofRank of said) expect(ofRank).toEqual(said[0]);
      expect(await run(storiesProgram({ dtype }))).toEqual(said);
      const eager = await run<Generated>(storiesProgram({ dtype, enforceEager: true }));
      expect(tokensOf(eager[0])).toEqual(tokensOf(said[0]));
    },
  );

  test('of other families matches transformers', async () => {
    interface Expected {
      tokenIds: number[];
      float32: { top: Logprobs }[];
    }
    const families = familiesFor(worldSize);
    const said = await run<[string, Generated[]]>(
      `const params = new SamplingParams({ temperature: 0, maxTokens: 32, logprobs: 5, promptLogprobs: 5, ignoreEos: true });
      for (const family of ${JSON.stringify(families)}) {
        const prompts = require('./test/golden/expected/' + family + '.json').prompts;
        const longest = Math.max(...prompts.map(({ promptTokenIds }) => promptTokenIds.length));
        const llm = await createOnGpu({
          model: 'test/golden/checkpoints/' + family,
          dtype: 'float32',
          maxModelLen: longest + 33,
          skipTokenizerInit: true,
        });
        const inputs = prompts.map(({ promptTokenIds }) => ({ promptTokenIds }));
        say([family, (await llm.generate(inputs, params)).flatMap(show)]);
        await llm.shutdown();
      }`,
    );
    for (const ofRank of said) expect(ofRank).toEqual(said[0]);
    expect(said[0].map(([family]) => family)).toEqual(families);
    for (const [family, generated] of said[0]) {
      const file = path.join(ROOT, 'test', 'golden', 'expected', `${family}.json`);
      const { prompts } = JSON.parse(readFileSync(file, 'utf8')) as { prompts: Expected[] };
      for (const [i, { tokenIds, float32 }] of prompts.entries()) {
        expect([family, generated[i].tokenIds]).toEqual([family, tokenIds]);
        const distances = generated[i].logprobs.map((ours, at) => furthest(ours, float32[at].top));
        expect(Math.max(...distances)).toBeLessThanOrEqual(TOLERANCE);
      }
    }
  });

  describe('under a launcher', () => {
    const APP = `
      require(${JSON.stringify(path.join(ROOT, 'test', 'executor', 'requireTypescript.js'))});
      const { LLM, SamplingParams } = require('uniproc');
      (async () => {
        const llm = await LLM.create({
          device: 'cuda', dtype: 'float32', maxModelLen: 512, maxNumSeqs: 8, seed: 7,
          kvCacheMemoryBytes: 2 ** 26,
          tensorParallelSize: Number(process.env.WORLD_SIZE),
          distributedExecutorBackend: 'external_launcher',
        });
        const prompts = ${JSON.stringify(stories.prompts.map(({ prompt }) => prompt))};
        const outputs = await llm.generate(prompts, new SamplingParams({ temperature: 0, maxTokens: 48 }));
        const tokenIds = outputs.map(({ outputs: [{ tokenIds }] }) => [...tokenIds]);
        console.log('tokens ' + JSON.stringify(tokenIds));
        await llm.shutdown();
      })();`;
    const greedy = () => tokensOf(alone).slice(0, stories.prompts.length);
    const linesOf = (stdout: string) =>
      [...stdout.matchAll(/tokens (\[\[.*\]\])/g)].map(
        ([, json]) => JSON.parse(json) as number[][],
      );

    async function appFile(): Promise<string> {
      return path.join(await folderWith({ 'app.js': APP }), 'app.js');
    }

    test('of this package', async () => {
      const launcher = startNode(0, [
        path.join(ROOT, 'dist', 'cli.js'),
        'launch',
        '--nproc-per-node',
        String(worldSize),
        await appFile(),
      ]);
      expect(await launcher.ended).toEqual({ code: 0, signal: null });
      expect(linesOf(launcher.stdout)).toEqual(Array(worldSize).fill(greedy()));
    });

    const hasTorchrun = spawnSync('torchrun', ['--help']).status === 0;
    (hasTorchrun ? test : test.skip)('torchrun (skipped where there is none)', async () => {
      const launcher = startProcess(0, 'torchrun', [
        '--standalone',
        '--local-addr',
        '127.0.0.1',
        '--no-python',
        '--nproc-per-node',
        String(worldSize),
        process.execPath,
        await appFile(),
      ]);
      expect({ ...(await launcher.ended), stderr: launcher.stderr }).toMatchObject({ code: 0 });
      expect(linesOf(launcher.stdout)).toEqual(Array(worldSize).fill(greedy()));
    });
  });

  describe('a rank killed during generation', () => {
    const ends = [0, worldSize - 1];
    const all = Array.from({ length: worldSize }, (_, rank) => rank);
    const cases = [
      { args: { disableCustomAllReduce: false, enforceEager: false }, victims: all },
      { args: { disableCustomAllReduce: true, enforceEager: false }, victims: ends },
      { args: { disableCustomAllReduce: false, enforceEager: true }, victims: ends },
    ].flatMap(({ args, victims }) => victims.map((victim) => ({ args, victim })));

    const program = (args: object) => `${LLM_PRELUDE}${PRELUDE}
      (async () => {
        const { Ops } = require('./build/Release/uniproc_testing.node');
        const gpu = new Ops({ kind: 'cuda', index: rank }); // opened while another group's test runs
        await held();
        const llm = await createOnGpu({ maxModelLen: 1024, dtype: 'bfloat16', ...${JSON.stringify(args)} });
        const params = new SamplingParams({ maxTokens: 1000, ignoreEos: true });
        const generateForEver = async () => {
          for (;;) await llm.generate(['Once', 'The dog'], params);
        };
        const failure = errorOf(generateForEver());
        await tokensGenerated(llm, 60);
        console.log('"generating"');
        const error = await failure;
        const again = await errorOf(llm.generate('Once', params));
        await llm.shutdown();
        say({ error, again });
      })();`;
    const groups: HeldRanks[] = [];
    const groupOf = (i: number) =>
      (groups[i] ??= HeldRanks.start(program(cases[i].args), worldSize, { env: LLM_ENV }));

    afterAll(() => Promise.all(groups.filter(Boolean).map((group) => group.kill())));

    test.each(cases.map((each, i) => ({ i, ...each })))(
      'rank $victim, with $args: the others fail immediately, and shut down normally',
      async ({ i, victim }) => {
        const ranks = await groupOf(i).go();
        if (i + 1 < cases.length) groupOf(i + 1);
        await Promise.all(ranks.map((rank) => rank.said('generating')));
        ranks[victim].kill('SIGKILL');
        const killed = performance.now();
        const others = ranks.filter(({ rank }) => rank !== victim);
        await Promise.all(others.map(({ ended }) => ended));
        // The timeout is a minute.
        expect(performance.now() - killed).toBeLessThan(40_000);
        await expectGoodEnds(others);
        for (const rank of others) {
          const [, said] = rank.lines<{ error: DescribedError; again: DescribedError }>();
          for (const { code, cause, message } of [said.error, said.again]) {
            expect({ code, cause, message }).toEqual({
              code: 'EXECUTOR_FAILED',
              cause: 'PEER_LOST',
              message: expect.any(String) as string,
            });
          }
        }
      },
    );
  });

  test('creating and shutting down engines leaks no memory, threads or files', async () => {
    // In new processes that have the GPUs to themselves, because free memory is compared.
    await resident.end();
    const apart = new ResidentRanks(
      `${LLM_PRELUDE}${PRELUDE}
      const { readdirSync } = require('node:fs');
      const { Ops } = require('./build/Release/uniproc_testing.node');
      const gpu = new Ops({ kind: 'cuda', index: rank });
      const params = new SamplingParams({ maxTokens: 6, ignoreEos: true });
      async function cycle() {
        const llm = await createOnGpu({ dtype: 'bfloat16' });
        await llm.generate(['Once', 'The dog'], params);
        await llm.shutdown();
      }
      const numHeld = (kind) => readdirSync('/proc/self/' + kind).length;
      const held = () => [gpu.memory().free, numHeld('task'), numHeld('fd')];`,
      worldSize,
      { env: LLM_ENV },
    );
    const cycles = (count: number) =>
      apart.run(`for (let i = 0; i < ${count}; i++) await cycle();`);
    // Read when all ranks have shut down: a GPU's memory stays in use while a peer maps it.
    const readHeld = () => apart.run<number[]>('say(held());');
    try {
      await cycles(3);
      const before = await readHeld();
      await cycles(6);
      const after = await readHeld();
      for (const rank of before.keys()) expectNoMoreHeld(before[rank][0], after[rank][0]);
    } finally {
      await apart.end();
    }
  });

  test('works with one visible GPU per rank', async () => {
    const visible = process.env.CUDA_VISIBLE_DEVICES?.split(',');
    const body = `${PRELUDE}${storiesProgram({ dtype: 'float32' })}`;
    const ranks = await startLLMs(body, worldSize, {
      env: (rank) => ({ CUDA_VISIBLE_DEVICES: visible?.[rank] ?? String(rank), LOCAL_RANK: '0' }),
    });
    await expectGoodEnds(ranks);
    for (const rank of ranks) expect(tokensOf(rank.lines<Generated>())).toEqual(tokensOf(alone));
  });
});
