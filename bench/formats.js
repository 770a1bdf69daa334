// Decode steps and prefill of a known model's shape with random weights in each weight format, made on
// the device.
'use strict';

const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { LLM } = require('..');
const { readShape } = require('../scripts/synthetic-checkpoint');
const { measureDecode, tokensToGenerate } = require('./decode');
const { VLLM } = require('./expected');
const { measurePrefill } = require('./prefill');
const { RecordingExecutor } = require('./recordingExecutor');

const MAX_STEP_TOKENS = 8192;
/** [rows, context] */
const DECODES = [
  [1, 128],
  [8, 128],
  [64, 128],
  [256, 128],
  [64, 1024],
];

const compressed = (format, weights, activations) => ({
  quant_method: 'compressed-tensors',
  format,
  ignore: ['lm_head'],
  config_groups: {
    group_0: { targets: ['Linear'], weights, input_activations: activations ?? null },
  },
});
const symmetric = { symmetric: true, dynamic: false };
const int4 = (groupSize) =>
  compressed('pack-quantized', {
    num_bits: 4,
    type: 'int',
    strategy: 'group',
    group_size: groupSize,
    ...symmetric,
  });

/** quantization_config of a checkpoint in each format, as published; null: in bfloat16. */
const FORMATS = {
  bfloat16: null,
  'fp8 by channel': compressed(
    'float-quantized',
    { num_bits: 8, type: 'float', strategy: 'channel', ...symmetric },
    { num_bits: 8, type: 'float', strategy: 'token', symmetric: true, dynamic: true },
  ),
  'fp8 by block': {
    quant_method: 'fp8',
    fmt: 'e4m3',
    activation_scheme: 'dynamic',
    weight_block_size: [128, 128],
  },
  'int8 by channel': compressed('int-quantized', {
    num_bits: 8,
    type: 'int',
    strategy: 'channel',
    ...symmetric,
  }),
  'int4 in groups of 128': int4(128),
};

/** The decodes and the prompt lengths that fit the model's length. */
function measurements(maxModelLen) {
  const needed = (rows, context) => context + tokensToGenerate(rows, context, MAX_STEP_TOKENS);
  return {
    decodes: DECODES.filter(([rows, context]) => needed(rows, context) <= maxModelLen),
    lengths: [MAX_STEP_TOKENS].filter((length) => length < maxModelLen),
  };
}

async function measureFormat(llm, name, peers) {
  const { decodes, lengths } = measurements(llm.engine.config.model.maxModelLen);
  const peer = (value) => (value === undefined ? {} : { peers: [{ name: VLLM.name, value }] });
  const rows = [];
  for (const [numRows, context] of decodes) {
    const { seconds } = await measureDecode(llm, numRows, context);
    const key = `${numRows} after ${context}`;
    rows.push({
      bench: name,
      what: `decode ${numRows} ${numRows === 1 ? 'row' : 'rows'} after ${context}`,
      value: 1000 * seconds,
      unit: 'ms/step',
      ...peer(peers.decode[key]),
    });
  }
  for (const length of lengths) {
    rows.push({
      bench: name,
      what: `prefill 1 x ${length}`,
      value: length / (await measurePrefill(llm, 1, length)),
      unit: 'tok/s',
      ...peer(peers.prefill[`1 x ${length}`]),
    });
  }
  return rows;
}

/** `shape`: a list of one name or config.json. */
async function benchFormats({ device, shape: [shape] = ['llama-3.1-8b'] }) {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'uniproc-formats-'));
  const rows = [];
  try {
    for (const [format, quantization] of Object.entries(FORMATS)) {
      const config = {
        ...readShape(shape),
        ...(quantization && { quantization_config: quantization }),
      };
      fs.writeFileSync(path.join(folder, 'config.json'), JSON.stringify(config));
      const { decodes, lengths } = measurements(config.max_position_embeddings);
      const longest = Math.max(...lengths, ...decodes.map(([, context]) => context), 0);
      const llm = await LLM.create({
        model: folder,
        device,
        loadFormat: 'dummy',
        seed: 0,
        skipTokenizerInit: true,
        enablePrefixCaching: false, // The prompts repeat.
        maxModelLen: Math.min(config.max_position_embeddings, longest + 128),
        maxNumSeqs: Math.max(...DECODES.map(([numRows]) => numRows)),
        maxNumBatchedTokens: MAX_STEP_TOKENS,
        distributedExecutorBackend: RecordingExecutor,
      });
      const none = { decode: {}, prefill: {} };
      const peers = (device !== 'cpu' && VLLM.formats[shape]?.[format]) || none;
      try {
        rows.push(
          ...(await measureFormat(llm, `${path.basename(shape, '.json')}, ${format}`, peers)),
        );
      } finally {
        await llm.shutdown();
      }
    }
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
  return rows;
}

module.exports = { benchFormats, FORMATS, int4 };
