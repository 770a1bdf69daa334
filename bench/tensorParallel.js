// Decode steps of a model on several GPUs compared with one: random weights made on the GPUs, in the
// shapes of known models.
'use strict';

const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { LLAMA3, SHAPES } = require('../scripts/synthetic-checkpoint');
const { runRanks, worldSizes } = require('./ranks');
const { figure } = require('./table');

const TENSOR_PARALLEL_SHAPES = {
  'llama-3.1-8b': SHAPES['llama-3.1-8b'],
  'llama-3.1-70b': {
    ...LLAMA3,
    hidden_size: 8192,
    intermediate_size: 28672,
    num_hidden_layers: 80,
    num_attention_heads: 64,
    num_key_value_heads: 8,
    head_dim: 128,
    tie_word_embeddings: false,
  },
};
const ROWS = [1, 8, 32, 64];
const CONTEXT = 128;
/** Minimum speed-up of two GPUs over one, by shape and rows. */
const LEAST_SPEED = { 'llama-3.1-8b': { 1: 1.5 } };

const GIB = 2 ** 30;

/** [{ numRows, seconds, ... }] of a decode step on `worldSize` ranks; null if the run failed. */
async function measure(name, engineArgs, worldSize) {
  try {
    return await runRanks('tensorParallelRank.js', worldSize, {
      engineArgs: { ...engineArgs, tensorParallelSize: worldSize },
      rows: ROWS,
      context: CONTEXT,
    });
  } catch (error) {
    console.error(`${name} on ${worldSize}: ${error.message}; see above`);
    return null;
  }
}

function rowsOf(name, onGpu, worldSize, steps, alone) {
  const ranks = onGpu
    ? `${worldSize} GPU${worldSize > 1 ? 's' : ''}`
    : `${worldSize} CPU rank${worldSize > 1 ? 's' : ''}`;
  return steps.flatMap(({ numRows, seconds, idleSeconds }, i) => {
    const of = `${ranks}, ${numRows} ${numRows === 1 ? 'row' : 'rows'} after ${CONTEXT}`;
    const rows = [{ bench: name, what: `decode ${of}`, value: 1000 * seconds, unit: 'ms/step' }];
    rows.push({
      bench: name,
      what: `  device idle, ${of}`,
      value: 1e6 * idleSeconds,
      unit: 'µs/step',
    });
    if (alone) {
      rows.push({
        bench: name,
        what: `  speed of ${of}`,
        value: alone[i].seconds / seconds,
        unit: 'times one',
        ...(worldSize === 2 && { least: LEAST_SPEED[name]?.[numRows] }),
      });
    }
    for (const { what, value, unit } of rows)
      console.error(`${name}: ${what}: ${figure(value)} ${unit}`);
    return rows;
  });
}

/** The given shapes: known names or config.json files. */
async function benchTensorParallel({ device, dtype, shape: shapes }) {
  const onGpu = device !== 'cpu';
  if (!onGpu && !shapes) {
    console.error('the known shapes need several GPUs; give --shape CONFIG.json on a CPU');
    return [];
  }
  const sizes = onGpu ? [1, ...worldSizes()] : [1, 2];
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'uniproc-bench-'));
  try {
    const rows = [];
    for (const shape of shapes ?? Object.keys(TENSOR_PARALLEL_SHAPES)) {
      const name = path.basename(shape, '.json');
      const model = path.join(folder, name);
      const known = TENSOR_PARALLEL_SHAPES[shape];
      fs.mkdirSync(model);
      fs.writeFileSync(
        path.join(model, 'config.json'),
        known ? JSON.stringify(known) : fs.readFileSync(shape),
      );
      const engineArgs = {
        model,
        device: onGpu ? 'cuda' : 'cpu',
        dtype,
        loadFormat: 'dummy',
        skipTokenizerInit: true,
        enablePrefixCaching: false, // The prompts repeat.
        seed: 0,
        maxModelLen: 512,
        maxNumSeqs: Math.max(...ROWS),
        maxNumBatchedTokens: 2048,
        kvCacheMemoryBytes: 4 * GIB,
      };
      let alone = null;
      for (const worldSize of sizes) {
        const steps = await measure(name, engineArgs, worldSize);
        if (!steps) continue;
        rows.push(...rowsOf(name, onGpu, worldSize, steps, alone));
        if (worldSize === 1) alone = steps;
      }
    }
    return rows;
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
}

module.exports = { benchTensorParallel };
