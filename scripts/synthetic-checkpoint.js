/**
 * Writes a checkpoint of random bfloat16 weights, for measuring:
 *
 *     node scripts/synthetic-checkpoint.js FOLDER llama-3.2-1b|llama-3.1-8b|CONFIG.json
 *
 * config.json as given, and model.safetensors with the tensors of a Llama of that shape: matrices
 * normal(0, 0.02), norms 1.
 */
'use strict';

const fs = require('node:fs');
const path = require('node:path');

const llama3 = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  hidden_act: 'silu',
  torch_dtype: 'bfloat16',
  rms_norm_eps: 1e-5,
  rope_theta: 500000,
  vocab_size: 128256,
  max_position_embeddings: 131072,
};
const SHAPES = {
  'llama-3.2-1b': {
    ...llama3,
    hidden_size: 2048,
    intermediate_size: 8192,
    num_hidden_layers: 16,
    num_attention_heads: 32,
    num_key_value_heads: 8,
    head_dim: 64,
    tie_word_embeddings: true,
  },
  'llama-3.1-8b': {
    ...llama3,
    hidden_size: 4096,
    intermediate_size: 14336,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: 8,
    head_dim: 128,
    tie_word_embeddings: false,
  },
};

/** [name, shape] of every tensor. */
function tensorsOf(config) {
  const { hidden_size: hidden, intermediate_size: intermediate, vocab_size: vocab } = config;
  const headDim = config.head_dim ?? hidden / config.num_attention_heads;
  const heads = config.num_attention_heads * headDim;
  const kvHeads = config.num_key_value_heads * headDim;
  const layer = [
    ['input_layernorm', [hidden]],
    ['self_attn.q_proj', [heads, hidden]],
    ['self_attn.k_proj', [kvHeads, hidden]],
    ['self_attn.v_proj', [kvHeads, hidden]],
    ['self_attn.o_proj', [hidden, heads]],
    ['post_attention_layernorm', [hidden]],
    ['mlp.gate_proj', [intermediate, hidden]],
    ['mlp.up_proj', [intermediate, hidden]],
    ['mlp.down_proj', [hidden, intermediate]],
  ];
  return [
    ['model.embed_tokens.weight', [vocab, hidden]],
    ...Array.from({ length: config.num_hidden_layers }, (_, i) =>
      layer.map(([name, shape]) => [`model.layers.${i}.${name}.weight`, shape]),
    ).flat(),
    ['model.norm.weight', [hidden]],
    ...(config.tie_word_embeddings ? [] : [['lm_head.weight', [vocab, hidden]]]),
  ];
}

/** A bfloat16's bits, cut off. */
function bfloat16(values) {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  return Buffer.from(Uint16Array.from(bits, (word) => word >>> 16).buffer);
}

/** An odd number of normal values, so that no two tensors repeat them at the same place. */
function randomBlock() {
  const values = new Float32Array(8_388_607);
  for (let i = 0; i < values.length; ++i) {
    const radius = Math.sqrt(-2 * Math.log(1 - Math.random()));
    values[i] = 0.02 * radius * Math.cos(2 * Math.PI * Math.random());
  }
  return bfloat16(values);
}

/** Writes the checkpoint and returns its bytes. */
function writeSyntheticCheckpoint(folder, shape) {
  const config = SHAPES[shape] ?? JSON.parse(fs.readFileSync(shape, 'utf8'));
  fs.mkdirSync(folder, { recursive: true });
  fs.writeFileSync(path.join(folder, 'config.json'), JSON.stringify(config, null, 2));

  const header = {};
  let end = 0;
  for (const [name, dims] of tensorsOf(config)) {
    const begin = end;
    end += 2 * dims.reduce((a, b) => a * b);
    header[name] = { dtype: 'BF16', shape: dims, data_offsets: [begin, end] };
  }
  const json = Buffer.from(JSON.stringify(header).padEnd(8));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));

  const file = fs.openSync(path.join(folder, 'model.safetensors'), 'w');
  fs.writeSync(file, length);
  fs.writeSync(file, json);
  const block = randomBlock();
  for (const { shape: dims, data_offsets: offsets } of Object.values(header)) {
    let left = offsets[1] - offsets[0];
    if (dims.length === 1) {
      fs.writeSync(file, bfloat16(new Float32Array(left / 2).fill(1)));
      continue;
    }
    for (; left > 0; left -= Math.min(left, block.length)) {
      fs.writeSync(file, block, 0, Math.min(left, block.length));
    }
  }
  fs.closeSync(file);
  return end;
}

module.exports = { writeSyntheticCheckpoint };

if (require.main === module) {
  const [folder, shape] = process.argv.slice(2);
  if (!folder || !shape) {
    console.error(`usage: synthetic-checkpoint.js FOLDER ${Object.keys(SHAPES).join('|')}|CONFIG`);
    process.exit(1);
  }
  console.log(`${(writeSyntheticCheckpoint(folder, shape) / 1e9).toFixed(2)} GB in ${folder}`);
}
