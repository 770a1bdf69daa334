// Converts a Llama checkpoint in bfloat16 to GGUF for timing llama.cpp: the same bytes of weights, but
// with a meaningless vocabulary and rotary halves not interleaved, so that its text has no meaning.
// In a quantized format the layers' matrices, or all, are random blocks of its types.
//
// GGUF 3 (ggml's docs/gguf.md): header, metadata, tensor descriptions, then the data, aligned to 32.
'use strict';

const { randomBytes } = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');

const ALIGNMENT = 32;
/** Codes of metadata types and of tensor types. */
const UINT32 = 4;
const INT32 = 5;
const FLOAT32 = 6;
const STRING = 8;
const ARRAY = 9;
const TENSOR_F32 = 0;
const TENSOR_BF16 = 30;
/** Types of blocks: elements, bytes, and where a block has its scales in float16. */
const Q4_0 = { type: 2, columns: 32, blockBytes: 18, scales: [0] };
const Q4_1 = { type: 3, columns: 32, blockBytes: 20, scales: [0, 2] };
const Q8_0 = { type: 8, columns: 32, blockBytes: 34, scales: [0] };
const Q4_K = { type: 12, columns: 256, blockBytes: 144, scales: [0, 2] };
const Q6_K = { type: 14, columns: 256, blockBytes: 210, scales: [208] };
/** 2^-11 in float16, and of blocks whose scale is multiplied by their groups', 2^-14. */
const BLOCK_SCALE = 0x1000;
const SUPERBLOCK_SCALE = 0x0400;

/** Layers where llama.cpp's Q4_K_M has values and down projections in Q6_K. */
function hasMoreBits(layer, layers) {
  const eighth = Math.floor(layers / 8);
  return layer < eighth || layer >= 7 * eighth || (layer - eighth) % 3 === 2;
}

/** Formats of files: the type of the matrix of this name. */
const FORMATS = {
  q4_0: () => Q4_0,
  q4_1: () => Q4_1,
  q8_0: () => Q8_0,
  q4_k_m: (name, layers) => {
    const [, layer, matrix] = /layers\.(\d+)\.(.*)/.exec(name) ?? [];
    if (layer === undefined) return Q6_K;
    const isLarger = /v_proj|down_proj/.test(matrix) && hasMoreBits(Number(layer), layers);
    return isLarger ? Q6_K : Q4_K;
  },
};

const aligned = (offset) => ALIGNMENT * Math.ceil(offset / ALIGNMENT);

function uint32(value) {
  const buffer = Buffer.alloc(4);
  buffer.writeUInt32LE(value);
  return buffer;
}

function uint64(value) {
  const buffer = Buffer.alloc(8);
  buffer.writeBigUInt64LE(BigInt(value));
  return buffer;
}

function float32(value) {
  const buffer = Buffer.alloc(4);
  buffer.writeFloatLE(value);
  return buffer;
}

function string(text) {
  const bytes = Buffer.from(text);
  return Buffer.concat([uint64(bytes.length), bytes]);
}

const encode = { [UINT32]: uint32, [INT32]: uint32, [FLOAT32]: float32, [STRING]: string };

const value = (type, x) => Buffer.concat([uint32(type), encode[type](x)]);
const array = (type, values) =>
  Buffer.concat([uint32(ARRAY), uint32(type), uint64(values.length), ...values.map(encode[type])]);

function metadata(config) {
  const headDim = config.head_dim ?? config.hidden_size / config.num_attention_heads;
  const tokens = Array.from({ length: config.vocab_size }, (_, i) => `<${i}>`);
  return {
    'general.architecture': value(STRING, 'llama'),
    'general.alignment': value(UINT32, ALIGNMENT),
    'llama.block_count': value(UINT32, config.num_hidden_layers),
    'llama.context_length': value(UINT32, config.max_position_embeddings),
    'llama.embedding_length': value(UINT32, config.hidden_size),
    'llama.feed_forward_length': value(UINT32, config.intermediate_size),
    'llama.attention.head_count': value(UINT32, config.num_attention_heads),
    'llama.attention.head_count_kv': value(UINT32, config.num_key_value_heads),
    'llama.attention.key_length': value(UINT32, headDim),
    'llama.attention.value_length': value(UINT32, headDim),
    'llama.rope.dimension_count': value(UINT32, headDim),
    'llama.rope.freq_base': value(FLOAT32, config.rope_theta ?? 10000),
    'llama.attention.layer_norm_rms_epsilon': value(FLOAT32, config.rms_norm_eps),
    'llama.vocab_size': value(UINT32, config.vocab_size),
    'tokenizer.ggml.model': value(STRING, 'gpt2'),
    'tokenizer.ggml.pre': value(STRING, 'llama-bpe'),
    'tokenizer.ggml.tokens': array(STRING, tokens),
    'tokenizer.ggml.token_type': array(
      INT32,
      tokens.map(() => 1),
    ),
    'tokenizer.ggml.merges': array(STRING, ['< 0']),
    'tokenizer.ggml.bos_token_id': value(UINT32, 0),
    'tokenizer.ggml.eos_token_id': value(UINT32, 1),
  };
}

const NAMES = [
  [/^model\.embed_tokens\./, 'token_embd.'],
  [/^model\.norm\./, 'output_norm.'],
  [/^lm_head\./, 'output.'],
  [/^model\.layers\.(\d+)\./, 'blk.$1.'],
  ['input_layernorm', 'attn_norm'],
  ['self_attn.q_proj', 'attn_q'],
  ['self_attn.k_proj', 'attn_k'],
  ['self_attn.v_proj', 'attn_v'],
  ['self_attn.o_proj', 'attn_output'],
  ['post_attention_layernorm', 'ffn_norm'],
  ['mlp.gate_proj', 'ffn_gate'],
  ['mlp.up_proj', 'ffn_up'],
  ['mlp.down_proj', 'ffn_down'],
];

const ggufName = (name) => NAMES.reduce((text, [from, to]) => text.replace(from, to), name);

/** [{ name, shape, file, begin, end }] of the tensors in the folder's safetensors files. */
function listTensors(folder) {
  const files = fs.readdirSync(folder).filter((file) => file.endsWith('.safetensors'));
  return files.flatMap((file) => {
    const descriptor = fs.openSync(path.join(folder, file), 'r');
    const length = Buffer.alloc(8);
    fs.readSync(descriptor, length, 0, 8, 0);
    const header = Buffer.alloc(Number(length.readBigUInt64LE()));
    fs.readSync(descriptor, header, 0, header.length, 8);
    fs.closeSync(descriptor);
    const start = 8 + header.length;
    return Object.entries(JSON.parse(header.toString()))
      .filter(([name]) => name !== '__metadata__')
      .map(
        ([
          name,
          {
            dtype,
            shape,
            data_offsets: [begin, end],
          },
        ]) => {
          if (dtype !== 'BF16')
            throw new Error(`${name} in ${folder} is ${dtype}; it must be BF16`);
          return {
            name,
            shape,
            file: path.join(folder, file),
            begin: start + begin,
            end: start + end,
          };
        },
      );
  });
}

/** The tensor's bytes in GGUF, in pieces: vectors as float32, which llama.cpp requires. */
function* dataOf({ shape, file, begin, end }) {
  const descriptor = fs.openSync(file, 'r');
  try {
    const piece = Buffer.alloc(Math.min(2 ** 24, end - begin));
    for (let at = begin; at < end;) {
      const size = fs.readSync(descriptor, piece, 0, Math.min(piece.length, end - at), at);
      at += size;
      if (shape.length > 1) {
        yield piece.subarray(0, size);
      } else {
        const widened = Buffer.alloc(2 * size);
        for (let i = 0; i < size; i += 2) piece.copy(widened, 2 * i + 2, i, i + 2);
        yield widened;
      }
    }
  } finally {
    fs.closeSync(descriptor);
  }
}

/** `size` bytes of random blocks, in pieces. */
function* randomBlocks({ blockBytes, columns, scales }, size) {
  const piece = randomBytes(blockBytes * Math.min(2 ** 18, size / blockBytes));
  const scale = columns > 32 ? SUPERBLOCK_SCALE : BLOCK_SCALE;
  for (let block = 0; block < piece.length; block += blockBytes) {
    for (const at of scales) piece.writeUInt16LE(scale, block + at);
  }
  for (let left = size; left > 0; left -= piece.length) {
    yield piece.subarray(0, Math.min(left, piece.length));
  }
}

/**
 * Writes the checkpoint in `folder` to `file`: in bfloat16, or its matrices in `format`, q8_0, q4_0,
 * q4_1 or q4_k_m; with `layersAlone` not its embedding and head.
 */
function writeGguf(file, folder, format, layersAlone = false) {
  const config = JSON.parse(fs.readFileSync(path.join(folder, 'config.json'), 'utf8'));
  const tensors = listTensors(folder);
  const entries = Object.entries(metadata(config));
  const parts = [Buffer.from('GGUF'), uint32(3), uint64(tensors.length), uint64(entries.length)];
  for (const [key, bytes] of entries) parts.push(string(key), bytes);
  const quantizedOf = ({ name, shape }) =>
    format && shape.length > 1 && (!layersAlone || name.startsWith('model.layers.'))
      ? FORMATS[format](name, config.num_hidden_layers)
      : undefined;
  const sizes = tensors.map((tensor) => {
    const { shape, begin, end } = tensor;
    const quantized = quantizedOf(tensor);
    if (quantized) return ((end - begin) / 2 / quantized.columns) * quantized.blockBytes;
    return (end - begin) * (shape.length > 1 ? 1 : 2);
  });
  let offset = 0;
  tensors.forEach((tensor, i) => {
    const { name, shape } = tensor;
    const floats = shape.length > 1 ? TENSOR_BF16 : TENSOR_F32;
    // Dimensions from the innermost on.
    const dimensions = [...shape].reverse();
    parts.push(string(ggufName(name)), uint32(shape.length), ...dimensions.map(uint64));
    parts.push(uint32(quantizedOf(tensor)?.type ?? floats), uint64(offset));
    offset = aligned(offset + sizes[i]);
  });
  const header = Buffer.concat(parts);
  const descriptor = fs.openSync(file, 'w');
  try {
    const pad = (size) => fs.writeSync(descriptor, Buffer.alloc(aligned(size) - size));
    fs.writeSync(descriptor, header);
    pad(header.length);
    tensors.forEach((tensor, i) => {
      const quantized = quantizedOf(tensor);
      const pieces = quantized ? randomBlocks(quantized, sizes[i]) : dataOf(tensor);
      for (const bytes of pieces) fs.writeSync(descriptor, bytes);
      pad(sizes[i]);
    });
  } finally {
    fs.closeSync(descriptor);
  }
}

module.exports = { FORMATS, writeGguf };
