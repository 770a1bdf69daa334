// Time from a process start to its first token, with the checkpoint in the page cache.
'use strict';

const { execFile } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { promisify } = require('node:util');
const { writeSyntheticCheckpoint } = require('../scripts/synthetic-checkpoint');

const STORIES = path.join(__dirname, '..', 'models', 'stories');
/** Maximum seconds from a process start to its first token beside the load of the weights. */
const MOST_BESIDE_LOAD = 1;

const run = promisify(execFile);

/**
 * Seconds of each stage since the process start, of the load, and of processor time beside the load;
 * `bytes` of the weights.
 */
async function measureStartUp(engineArgs) {
  const started = performance.timeOrigin + performance.now();
  const { stdout } = await run(process.execPath, [
    path.join(__dirname, 'firstToken.js'),
    JSON.stringify(engineArgs),
  ]);
  const { bytes, cpuSecondsBesideLoad, ...times } = JSON.parse(stdout);
  const since = (time) => (time - started) / 1000;
  return {
    bytes,
    cpuSecondsBesideLoad,
    required: since(times.required),
    deviceOpen: since(times.deviceOpen),
    weightsIn: since(times.weightsIn),
    created: since(times.created),
    firstToken: since(times.firstToken),
    loadSeconds: (times.weightsIn - times.loadBegins) / 1000,
  };
}

/** Rows of a start, [what, seconds]: the whole, then its parts, which add up to it. */
function startUpRows({ required, deviceOpen, weightsIn, created, firstToken }) {
  return [
    ['start to first token', firstToken],
    ['  package required', required],
    ['  device open', deviceOpen - required],
    ['  weights in', weightsIn - deviceOpen],
    ['  warmed up', created - weightsIn],
    ['  first token', firstToken - created],
  ];
}

/** The given model, or synthetic checkpoints of the given shapes; else the model in models/. */
async function benchStart({ model, shape: shapes = [], device, dtype }) {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'uniproc-bench-'));
  try {
    const rows = [];
    for (const name of model || shapes.length === 0 ? [model ?? STORIES] : shapes) {
      const bench = path.basename(name, '.json');
      const isShape = !model && shapes.length > 0;
      const checkpoint = isShape ? path.join(folder, bench) : name;
      if (isShape) await writeSyntheticCheckpoint(checkpoint, name);
      const skipTokenizerInit = !fs.existsSync(path.join(checkpoint, 'tokenizer.json'));
      const engineArgs = { model: checkpoint, device, dtype, skipTokenizerInit };
      // The first start of a model on a machine with a GPU times its products as well.
      if (device !== 'cpu') await measureStartUp(engineArgs);
      const startUp = await measureStartUp(engineArgs);
      for (const [what, value] of startUpRows(startUp))
        rows.push({ bench, what, value, unit: 's' });
      const value = startUp.firstToken - startUp.loadSeconds;
      rows.push({ bench, what: 'without the load', value, unit: 's', bound: MOST_BESIDE_LOAD });
      const { cpuSecondsBesideLoad } = startUp;
      const what = '  processor time of it';
      rows.push({ bench, what, value: cpuSecondsBesideLoad, unit: 's' });
    }
    return rows;
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
}

module.exports = { benchStart, measureStartUp, startUpRows };
