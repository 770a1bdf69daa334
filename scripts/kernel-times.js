/**
 * Sums of the kernels of decode steps, on the first GPU:
 *
 *     node scripts/kernel-times.js [SHAPE|CONFIG.json|FOLDER]... [--rows 1,64,256] [--context 128]
 *                                  [--steps 4] [--sampled] [--device cuda:N] [--json FILE]
 *
 * SHAPE is one of scripts/synthetic-checkpoint.js, by default llama-3.2-1b and llama-3.1-8b; a shape
 * gets random weights made on the GPU, a folder is a checkpoint. For each number of rows the steps are
 * computed twice. A process of its own measures a step by the device's clock, as bench/decode.js does.
 * Another runs under Nsight Compute (`ncu`, in PATH or the variable NCU), which records every kernel
 * between the engine's profile(true) and profile(false), also within CUDA graphs, with the clocks and
 * caches as they are. Nsight Compute runs one kernel after the other, so the sum counts no overlap and
 * no launch gap: a step shorter than its sum overlaps kernels, a longer one waits.
 *
 * --sampled uses temperature 0.6 and top-p 0.9 in place of greedy sampling.
 */
'use strict';

const { execFile } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { parseArgs, promisify } = require('node:util');
const { readShape } = require('./synthetic-checkpoint');

const run = promisify(execFile);
const WARM_UP_STEPS = 8;
const MAX_STEP_TOKENS = 8192;
const METRIC = 'gpu__time_duration.sum';
const NCU_OPTIONS = [
  ...['--profile-from-start', 'off', '--graph-profiling', 'node', '--target-processes', 'all'],
  ...['--clock-control', 'none', '--cache-control', 'none', '--metrics', METRIC],
  ...['--csv', '--page', 'raw', '--print-units', 'base'],
];

/** The fields of a line of CSV, with quotes around fields removed. */
function fieldsOf(line) {
  return [...line.matchAll(/"((?:[^"]|"")*)"|([^,]+)/g)].map(([, quoted, plain]) =>
    quoted === undefined ? plain : quoted.replaceAll('""', '"'),
  );
}

/**
 * A kernel's name without return type, namespaces and parameters:
 * `void ns::(anonymous namespace)::sumKernel<float, 4>(const float *)` is sumKernel<float, 4>.
 */
function shortName(name) {
  const plain = name
    .replace(/\(anonymous namespace\)::|<unnamed>::/g, '')
    .replace(/^(void|static) /, '');
  let depth = 0;
  let end = 0;
  // The parameters begin at the first parenthesis outside of template arguments.
  for (; end < plain.length && !(depth === 0 && plain[end] === '('); ++end) {
    if (plain[end] === '<') depth++;
    if (plain[end] === '>') depth--;
  }
  return plain
    .slice(0, end)
    .replace(/\([\w: ]+\)(?=\d)/g, '')
    .replace(/\b\w+::/g, '');
}

/** [{ name, microseconds }] of every kernel in `ncu --csv --page raw --print-units base`. */
function kernelsOf(csv) {
  const lines = csv.split('\n').filter((line) => line.startsWith('"'));
  if (lines.length < 2) throw new Error(`Nsight Compute recorded no kernel:\n${csv}`);
  const header = fieldsOf(lines[0]);
  const nameAt = header.indexOf('Kernel Name');
  const timeAt = header.findIndex((field) => field.startsWith(METRIC));
  const units = fieldsOf(lines[1].replaceAll('""', '"-"'))[timeAt];
  const scale = { ns: 1e-3, nsecond: 1e-3, us: 1, usecond: 1 }[units];
  if (nameAt < 0 || !scale) throw new Error(`no kernel names or no time in ${lines[0]} ${units}`);
  return lines.slice(2).map((line) => {
    const fields = fieldsOf(line);
    const microseconds = scale * Number(fields[timeAt].replaceAll(',', ''));
    return { name: shortName(fields[nameAt]), microseconds };
  });
}

/** [{ name, launches, microseconds }] per step, the longest sum first. */
function sumsOf(kernels, numSteps) {
  const sums = new Map();
  for (const { name, microseconds } of kernels) {
    const sum = sums.get(name) ?? { name, launches: 0, microseconds: 0 };
    sum.launches += 1 / numSteps;
    sum.microseconds += microseconds / numSteps;
    sums.set(name, sum);
  }
  return [...sums.values()].sort((a, b) => b.microseconds - a.microseconds);
}

/** Records `numSteps` decode steps of `numRows` rows, or without a profiler measures them. */
async function child({ engineArgs, numRows, context, numSteps, isSampled, isProfiled }) {
  const { LLM, SamplingParams } = require('..');
  const { RecordingExecutor } = require('../bench/recordingExecutor');
  const { makePrompts } = require('../bench/prompts');
  const llm = await LLM.create({ ...engineArgs, distributedExecutorBackend: RecordingExecutor });
  const { executor } = llm.engine;
  const { device } = executor.driverWorker.worker;
  let numSeen = 0;
  const ends = [];
  // When a step's tokens arrive the next step is already enqueued, so the steps enqueued between
  // two arrivals are as many as the arrivals.
  executor.onStep = ({ numScheduledTokens, totalNumScheduledTokens }) => {
    if (numScheduledTokens.size !== numRows || totalNumScheduledTokens !== numRows) return;
    numSeen++;
    if (numSeen !== WARM_UP_STEPS && numSeen !== WARM_UP_STEPS + numSteps) return;
    ends.push(isProfiled ? device.profile(numSeen === WARM_UP_STEPS) : device.stepTimes());
  };
  const prefillSteps = Math.ceil((numRows * context) / (MAX_STEP_TOKENS - numRows)) + 1;
  const sampling = new SamplingParams({
    temperature: isSampled ? 0.6 : 0,
    topP: isSampled ? 0.9 : 1,
    maxTokens: prefillSteps + WARM_UP_STEPS + numSteps + 2,
    ignoreEos: true,
    detokenize: false,
  });
  const { vocabSize } = llm.engine.config.model.transformer.spec;
  await llm.generate(makePrompts(numRows, context, vocabSize), sampling);
  if (ends.length !== 2) throw new Error(`only ${numSeen} steps decoded ${numRows} rows`);
  const [before, after] = await Promise.all(ends);
  await llm.shutdown();
  if (isProfiled) return;
  const milliseconds = after.busyMs + after.idleMs - before.busyMs - before.idleMs;
  console.log(JSON.stringify({ milliseconds: milliseconds / (after.numSteps - before.numSteps) }));
}

async function measure(options, folder) {
  const argument = (isProfiled) => [
    __filename,
    JSON.stringify({ ...options, isProfiled, numSteps: isProfiled ? options.numSteps : 32 }),
  ];
  const { stdout } = await run(process.execPath, argument(false));
  const { milliseconds } = JSON.parse(stdout);
  const log = path.join(folder, 'ncu.csv');
  const ncu = process.env.NCU ?? 'ncu';
  const args = [...NCU_OPTIONS, '--log-file', log, process.execPath, ...argument(true)];
  await run(ncu, args).catch((error) => {
    const output = fs.existsSync(log) ? fs.readFileSync(log, 'utf8') : '';
    throw new Error(`${ncu} failed: ${error.message}\n${output.slice(-2000)}`);
  });
  return {
    milliseconds,
    kernels: sumsOf(kernelsOf(fs.readFileSync(log, 'utf8')), options.numSteps),
  };
}

function print(what, { milliseconds, kernels }) {
  const sum = kernels.reduce((total, { microseconds }) => total + microseconds, 0);
  const step = 1000 * milliseconds;
  console.log(
    `\n${what}: ${step.toFixed(0)} µs a step, ${sum.toFixed(0)} µs of kernels, ` +
      `${(step - sum).toFixed(0)} µs between them`,
  );
  for (const { name, launches, microseconds } of kernels) {
    console.log(
      [
        `${microseconds.toFixed(1).padStart(9)} µs`,
        `${((100 * microseconds) / sum).toFixed(1).padStart(5)}%`,
        `${Number(launches.toFixed(2))} x ${(microseconds / launches).toFixed(2)} µs`.padStart(16),
        name.length > 90 ? `${name.slice(0, 87)}...` : name,
      ].join('  '),
    );
  }
}

async function main(args) {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      rows: { type: 'string', default: '1,64,256' },
      context: { type: 'string', default: '128' },
      steps: { type: 'string', default: '4' },
      sampled: { type: 'boolean', default: false },
      device: { type: 'string', default: 'cuda' },
      json: { type: 'string' },
    },
  });
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'uniproc-kernels-'));
  const results = [];
  try {
    const shapes = positionals.length > 0 ? positionals : ['llama-3.2-1b', 'llama-3.1-8b'];
    for (const shape of shapes) {
      const isFolder = fs.existsSync(path.join(shape, 'config.json'));
      const name = path.basename(shape, '.json');
      const model = isFolder ? path.resolve(shape) : path.join(folder, name);
      if (!isFolder) {
        fs.mkdirSync(model);
        fs.writeFileSync(path.join(model, 'config.json'), JSON.stringify(readShape(shape)));
      }
      for (const numRows of values.rows.split(',').map(Number)) {
        const context = Number(values.context);
        const numSteps = Number(values.steps);
        const engineArgs = {
          model,
          device: values.device,
          ...(!isFolder && { loadFormat: 'dummy', seed: 0 }),
          skipTokenizerInit: true,
          enablePrefixCaching: false, // The prompts repeat.
          maxModelLen: context + 128,
          maxNumSeqs: numRows,
          maxNumBatchedTokens: MAX_STEP_TOKENS,
        };
        const isSampled = values.sampled;
        const options = { engineArgs, numRows, context, numSteps, isSampled };
        const result = await measure(options, folder);
        print(`${name}, ${numRows} x ${context}${isSampled ? ', sampled' : ''}`, result);
        results.push({ name, numRows, context, isSampled, ...result });
        // Keep what an interrupted run has measured.
        if (values.json) fs.writeFileSync(values.json, JSON.stringify(results, null, 2));
      }
    }
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
}

module.exports = { kernelsOf, shortName, sumsOf };

if (require.main === module) {
  const [first] = process.argv.slice(2);
  const task = first?.startsWith('{') ? child(JSON.parse(first)) : main(process.argv.slice(2));
  task.catch((error) => {
    console.error(error);
    process.exit(1);
  });
}
