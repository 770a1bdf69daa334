/**
 * Writes a checkpoint of random bfloat16 weights for benchmarks:
 *
 *     node scripts/synthetic-checkpoint.js FOLDER llama-3.2-1b|llama-3.1-8b|qwen3-0.6b|...|CONFIG.json
 *
 * Copies config.json and writes the tensors of a Llama, Mistral, Qwen2, Qwen3 or Qwen3-MoE of that shape: matrices
 * normal(0, 0.02), norms and biases 1. Like a large checkpoint it has files of about 1 GB with an index. Writes with one thread per core.
 */
'use strict';

const { once } = require('node:events');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { isMainThread, Worker, workerData } = require('node:worker_threads');

const FILE_BYTES = 1e9;

const LLAMA3 = {
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
    ...LLAMA3,
    hidden_size: 2048,
    intermediate_size: 8192,
    num_hidden_layers: 16,
    num_attention_heads: 32,
    num_key_value_heads: 8,
    head_dim: 64,
    tie_word_embeddings: true,
  },
  'llama-3.1-8b': {
    ...LLAMA3,
    hidden_size: 4096,
    intermediate_size: 14336,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: 8,
    head_dim: 128,
    tie_word_embeddings: false,
  },
  'qwen3-0.6b': {
    architectures: ['Qwen3ForCausalLM'],
    model_type: 'qwen3',
    torch_dtype: 'bfloat16',
    vocab_size: 151936,
    hidden_size: 1024,
    intermediate_size: 3072,
    num_hidden_layers: 28,
    num_attention_heads: 16,
    num_key_value_heads: 8,
    head_dim: 128,
    hidden_act: 'silu',
    max_position_embeddings: 40960,
    rms_norm_eps: 1e-6,
    rope_theta: 1000000,
    attention_bias: false,
    tie_word_embeddings: true,
  },
  'qwen3-30b-a3b': {
    architectures: ['Qwen3MoeForCausalLM'],
    model_type: 'qwen3_moe',
    torch_dtype: 'bfloat16',
    vocab_size: 151936,
    hidden_size: 2048,
    intermediate_size: 6144,
    moe_intermediate_size: 768,
    num_experts: 128,
    num_experts_per_tok: 8,
    norm_topk_prob: true,
    decoder_sparse_step: 1,
    mlp_only_layers: [],
    num_hidden_layers: 48,
    num_attention_heads: 32,
    num_key_value_heads: 4,
    head_dim: 128,
    hidden_act: 'silu',
    max_position_embeddings: 40960,
    rms_norm_eps: 1e-6,
    rope_theta: 1000000,
    attention_bias: false,
    tie_word_embeddings: false,
  },
  'qwen2.5-7b': {
    architectures: ['Qwen2ForCausalLM'],
    model_type: 'qwen2',
    torch_dtype: 'bfloat16',
    vocab_size: 152064,
    hidden_size: 3584,
    intermediate_size: 18944,
    num_hidden_layers: 28,
    num_attention_heads: 28,
    num_key_value_heads: 4,
    hidden_act: 'silu',
    max_position_embeddings: 32768,
    rms_norm_eps: 1e-6,
    rope_theta: 1000000,
    use_sliding_window: false,
    tie_word_embeddings: false,
  },
  'mistral-7b': {
    architectures: ['MistralForCausalLM'],
    model_type: 'mistral',
    torch_dtype: 'bfloat16',
    vocab_size: 32768,
    hidden_size: 4096,
    intermediate_size: 14336,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: 8,
    head_dim: 128,
    hidden_act: 'silu',
    max_position_embeddings: 32768,
    rms_norm_eps: 1e-5,
    rope_theta: 1000000,
    sliding_window: null,
    tie_word_embeddings: false,
  },
};

const headNorms = ({ headDim }) => [
  ['self_attn.q_norm', [headDim]],
  ['self_attn.k_norm', [headDim]],
];

/** [name, shape] of the tensors that a family's layers have beside a Llama's. */
const FAMILY_TENSORS = {
  qwen2: ({ heads, kvHeads }) => [
    ['self_attn.q_proj.bias', [heads]],
    ['self_attn.k_proj.bias', [kvHeads]],
    ['self_attn.v_proj.bias', [kvHeads]],
  ],
  qwen3: headNorms,
  qwen3_moe: headNorms,
};

/** The tensors of a gated MLP. */
const mlpTensors = (prefix, hidden, intermediate) => [
  [`${prefix}.gate_proj`, [intermediate, hidden]],
  [`${prefix}.up_proj`, [intermediate, hidden]],
  [`${prefix}.down_proj`, [hidden, intermediate]],
];

/** The tensors of Qwen3-MoE's router and experts. */
function expertTensors(config) {
  const { num_experts: count, hidden_size: hidden, moe_intermediate_size: size } = config;
  const experts = Array.from({ length: count }, (_, i) =>
    mlpTensors(`mlp.experts.${i}`, hidden, size),
  );
  return [['mlp.gate', [count, hidden]], ...experts.flat()];
}

const nameOfTensor = (name) => (name.endsWith('.bias') ? name : `${name}.weight`);

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
    ...(config.model_type === 'qwen3_moe'
      ? expertTensors(config)
      : mlpTensors('mlp', hidden, intermediate)),
    ...(FAMILY_TENSORS[config.model_type]?.({ heads, kvHeads, headDim }) ?? []),
  ];
  return [
    ['model.embed_tokens.weight', [vocab, hidden]],
    ...Array.from({ length: config.num_hidden_layers }, (_, i) =>
      layer.map(([name, shape]) => [`model.layers.${i}.${nameOfTensor(name)}`, shape]),
    ).flat(),
    ['model.norm.weight', [hidden]],
    ...(config.tie_word_embeddings ? [] : [['lm_head.weight', [vocab, hidden]]]),
  ];
}

/** Distributes the tensors over files: [file][tensor] of [name, shape]. */
function splitIntoFiles(tensors) {
  const files = [[]];
  let bytes = 0;
  for (const tensor of tensors) {
    if (bytes >= FILE_BYTES) {
      files.push([]);
      bytes = 0;
    }
    files.at(-1).push(tensor);
    bytes += bytesOf(tensor);
  }
  return files;
}

function bytesOf([, shape]) {
  return 2 * shape.reduce((a, b) => a * b);
}

/** A number's bfloat16 bits, truncated. */
function bfloat16(values) {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  return Uint16Array.from(bits, (word) => word >>> 16);
}

/** An odd number of normal values, so that tensors do not repeat them at the same offsets. */
function randomBlock() {
  const values = new Float32Array(8_388_607);
  for (let i = 0; i < values.length; ++i) {
    const radius = Math.sqrt(-2 * Math.log(1 - Math.random()));
    values[i] = 0.02 * radius * Math.cos(2 * Math.PI * Math.random());
  }
  return bfloat16(values);
}

function writeFile({ file, tensors }, block) {
  const header = {};
  let end = 0;
  for (const tensor of tensors) {
    const [name, shape] = tensor;
    const begin = end;
    end += bytesOf(tensor);
    header[name] = { dtype: 'BF16', shape, data_offsets: [begin, end] };
  }
  // Align the data to 8 bytes, as the format's own library does.
  const text = JSON.stringify(header);
  const json = Buffer.from(text.padEnd(8 * Math.ceil(text.length / 8)));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));

  const descriptor = fs.openSync(file, 'w');
  fs.writeSync(descriptor, length);
  fs.writeSync(descriptor, json);
  for (const tensor of tensors) {
    if (tensor[1].length === 1) {
      fs.writeSync(descriptor, bfloat16(new Float32Array(tensor[1][0]).fill(1)));
      continue;
    }
    let left = bytesOf(tensor);
    while (left > 0) {
      left -= fs.writeSync(descriptor, block, 0, Math.min(left, block.byteLength));
    }
  }
  fs.closeSync(descriptor);
}

/** The config.json of a known shape, or of a file. */
function readShape(shape) {
  return SHAPES[shape] ?? JSON.parse(fs.readFileSync(shape, 'utf8'));
}

/** Writes the checkpoint; resolves to the bytes of its tensors. */
async function writeSyntheticCheckpoint(folder, shape) {
  const config = readShape(shape);
  fs.mkdirSync(folder, { recursive: true });
  fs.writeFileSync(path.join(folder, 'config.json'), JSON.stringify(config, null, 2));

  const tensors = tensorsOf(config);
  const split = splitIntoFiles(tensors);
  const number = (i) => String(i).padStart(5, '0');
  const nameOf = (i) => `model-${number(i + 1)}-of-${number(split.length)}.safetensors`;
  const files = split.map((part, i) => ({ file: path.join(folder, nameOf(i)), tensors: part }));
  const weightMap = split.flatMap((part, i) => part.map(([name]) => [name, nameOf(i)]));
  fs.writeFileSync(
    path.join(folder, 'model.safetensors.index.json'),
    JSON.stringify({ weight_map: Object.fromEntries(weightMap) }),
  );

  const block = randomBlock();
  const shared = new Uint16Array(new SharedArrayBuffer(block.byteLength));
  shared.set(block);
  const numThreads = Math.min(files.length, os.availableParallelism());
  await Promise.all(
    Array.from({ length: numThreads }, (_, thread) => {
      const mine = files.filter((_file, i) => i % numThreads === thread);
      return once(new Worker(__filename, { workerData: { files: mine, block: shared } }), 'exit');
    }),
  );
  return tensors.reduce((bytes, tensor) => bytes + bytesOf(tensor), 0);
}

module.exports = { LLAMA3, readShape, SHAPES, writeSyntheticCheckpoint };

async function main([folder, shape]) {
  if (!folder || !shape) {
    console.error(`usage: synthetic-checkpoint.js FOLDER ${Object.keys(SHAPES).join('|')}|CONFIG`);
    process.exitCode = 1;
    return;
  }
  const bytes = await writeSyntheticCheckpoint(folder, shape);
  console.log(`${(bytes / 1e9).toFixed(2)} GB in ${folder}`);
}

if (!isMainThread) {
  for (const file of workerData.files) writeFile(file, workerData.block);
} else if (require.main === module) {
  void main(process.argv.slice(2));
}
