// The server against the engine that it serves: the same requests through HTTP, in the format of
// `vllm bench serve`, and from the engine's own streams, in turns.
'use strict';

const { spawn } = require('node:child_process');
const path = require('node:path');
const { createHandler, LLM, SamplingParams } = require('..');
const { NodeServer } = require('../dist/server/nodeServer');
const { WORKLOADS } = require('./engineWorkload');
const { randomInteger, seededRandom } = require('./random');
const { figure } = require('./table');

/** Rounds of each arm, in turns; the figures are medians. */
const ROUNDS = 5;
/** Requests alone, one after another, for the time to the first token. */
const SINGLE_REQUESTS = 15;
/** Least share of the engine's throughput, and most additional milliseconds to the first token, on a GPU. */
const LEAST_SHARE = 0.97;
const MOST_FIRST_TOKEN = 1;

const LIMITS = { maxConnections: 4096, headerTimeoutMs: 30_000, idleTimeoutMs: 65_000 };

const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];

/** Bodies of POST /v1/completions, as `vllm bench serve --backend openai` writes them. */
function bodiesOf({ numRequests, promptTokens, outputTokens }, vocabSize) {
  const random = seededRandom(0);
  return Array.from({ length: numRequests }, () => ({
    model: 'bench',
    prompt: Array.from({ length: randomInteger(random, ...promptTokens) }, () =>
      randomInteger(random, 0, vocabSize - 1),
    ),
    temperature: 0,
    repetition_penalty: 1,
    max_tokens: randomInteger(random, ...outputTokens),
    logprobs: null,
    stream: true,
    stream_options: { include_usage: true },
    ignore_eos: true,
  }));
}

/** The requests from the engine's own streams: { seconds, results } as of serverClient.js. */
async function fromEngine(llm, bodies) {
  const begin = performance.now();
  const results = await Promise.all(
    bodies.map(async ({ prompt, max_tokens: maxTokens }) => {
      const start = performance.now();
      const params = new SamplingParams({ temperature: 0, maxTokens, ignoreEos: true });
      const stream = llm.stream({ promptTokenIds: prompt }, params);
      let firstTokenMs = null;
      for await (const { tokenIds } of stream) {
        if (tokenIds.length > 0) firstTokenMs ??= performance.now() - start;
      }
      return { firstTokenMs, numTokens: stream.usage.numOutputTokens };
    }),
  );
  return { seconds: (performance.now() - begin) / 1000, results };
}

/** The requests through HTTP, from a process of its own. */
async function fromServer(url, requests, atOnce = true) {
  const client = spawn(process.execPath, [path.join(__dirname, 'serverClient.js')], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  client.stdin.end(JSON.stringify({ url: `${url}/v1/completions`, requests, atOnce }));
  let text = '';
  for await (const data of client.stdout) text += data;
  return JSON.parse(text);
}

function throughputOf({ seconds, results }, bodies) {
  results.forEach(({ numTokens }, i) => {
    if (numTokens === bodies[i].max_tokens) return;
    throw new Error(`a request for ${bodies[i].max_tokens} tokens generated ${numTokens}`);
  });
  return bodies.reduce((sum, { max_tokens: count }) => sum + count, 0) / seconds;
}

/** Measures the model in the given folder; default: the package's small model. */
async function benchServer({ model, device, dtype }) {
  const kind = device.split(':')[0];
  const workload = WORKLOADS[kind];
  const name = `server of ${model === undefined ? 'stories' : path.basename(model)}`;
  const maxModelLen = workload.promptTokens[1] + workload.outputTokens[1];
  // A prefix cache would make the second arm of a round faster.
  const llm = await LLM.create({ model, device, dtype, maxModelLen, enablePrefixCaching: false });
  const server = await NodeServer.listen(createHandler({ models: { bench: llm } }), {
    host: '127.0.0.1',
    port: 0,
    writeTimeoutMs: 60_000,
    ...LIMITS,
  });
  const rows = [];
  const add = (what, value, unit, against = {}) => {
    console.error(`${name}: ${what}: ${figure(value)} ${unit}`);
    rows.push({ bench: name, what, value, unit, ...against });
  };
  try {
    const bodies = bodiesOf(workload, llm.engine.config.model.transformer.spec.vocabSize);
    await fromEngine(llm, bodies.slice(0, 4));
    await fromServer(server.url, bodies.slice(0, 4));
    const engine = [];
    const http = [];
    for (let round = 0; round < ROUNDS; round++) {
      engine.push(throughputOf(await fromEngine(llm, bodies), bodies));
      http.push(throughputOf(await fromServer(server.url, bodies), bodies));
    }
    const onGpu = kind === 'cuda';
    add(`${bodies.length} requests from the engine's streams`, median(engine), 'tok/s');
    add('  through HTTP', median(http), 'tok/s');
    const ratios = http.map((value, i) => value / engine[i]);
    add("  share of the engine's", median(ratios), '', { ...(onGpu && { least: LEAST_SHARE }) });
    const singles = bodies.slice(0, SINGLE_REQUESTS);
    const own = [];
    for (const body of singles) own.push(...(await fromEngine(llm, [body])).results);
    const { results: served } = await fromServer(server.url, singles, false);
    // The first of a client also warms it up.
    const more = served.map(({ firstTokenMs }, i) => firstTokenMs - own[i].firstTokenMs).slice(1);
    add('time to the first token, more through HTTP', median(more), 'ms', {
      ...(onGpu && { bound: MOST_FIRST_TOKEN }),
    });
  } finally {
    await server.drain(0, new AbortController().signal);
    await llm.shutdown();
  }
  return rows;
}

module.exports = { benchServer };
