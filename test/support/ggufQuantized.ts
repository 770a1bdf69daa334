/** A small random Llama in GGUF's blocks, and the same in float32 as a Hugging Face checkpoint. */
import type { BlockType } from '../../lib/contract/workerSummary';
import { Random } from '../native/ops/reference';
import { BLOCK_TYPES, bytesOf, colsOf, elementsOf, randomBlocks } from './ggufBlocks';
import { F32, gguf, type Tensor, type Value } from './ggufFile';

const NUMBERS: Record<BlockType, number> = {
  q4_0: 2, q4_1: 3, q5_0: 6, q5_1: 7, q8_0: 8, q2_k: 10, q3_k: 11, q4_k: 12, q5_k: 13, q6_k: 14,
  iq4_nl: 20, iq4_xs: 23, mxfp4: 39,
}; // prettier-ignore

const [VOCAB, HIDDEN, HEADS, KV_HEADS, INTERMEDIATE, LAYERS] = [96, 256, 4, 2, 512, 2];
const HEAD = HIDDEN / HEADS;

/** Of each tensor by its name in GGUF. */
const NAMES: Record<string, string> = {
  token_embd: 'model.embed_tokens',
  output_norm: 'model.norm',
  attn_norm: 'input_layernorm',
  attn_q: 'self_attn.q_proj',
  attn_k: 'self_attn.k_proj',
  attn_v: 'self_attn.v_proj',
  attn_output: 'self_attn.o_proj',
  ffn_norm: 'post_attention_layernorm',
  ffn_gate: 'mlp.gate_proj',
  ffn_up: 'mlp.up_proj',
  ffn_down: 'mlp.down_proj',
};

const SHAPES: Record<string, [rows: number, cols: number]> = {
  token_embd: [VOCAB, HIDDEN],
  attn_q: [HIDDEN, HIDDEN],
  attn_k: [KV_HEADS * HEAD, HIDDEN],
  attn_v: [KV_HEADS * HEAD, HIDDEN],
  attn_output: [HIDDEN, HIDDEN],
  ffn_gate: [INTERMEDIATE, HIDDEN],
  ffn_up: [INTERMEDIATE, HIDDEN],
  ffn_down: [HIDDEN, INTERMEDIATE],
};

export interface QuantizedModel {
  /** The GGUF file, and the bytes of its matrices. */
  file: Buffer;
  matrixBytes: number;
  /** The files of the same model in float32. */
  config: object;
  safetensors: () => Buffer;
}

/** `typeOf`: of a tensor, such as attn_q of layer 1; token_embd has layer 0. */
export function quantizedModel(
  typeOf: (tensor: string, layer: number) => BlockType,
  changes: { metadata?: Record<string, Value>; tensors?: Record<string, Tensor> } = {},
): QuantizedModel {
  const random = new Random(3);
  const tensors: Record<string, Tensor> = {};
  /** Of the model in float32. */
  const floats: [string, number[], () => Float32Array][] = [];
  let matrixBytes = 0;
  const norm = (name: string, theirs: string) => {
    const values = Float32Array.from({ length: HIDDEN }, () => 0.5 + random.uniform());
    tensors[`${name}.weight`] = { type: F32, shape: [HIDDEN], data: bytesOfFloats(values) };
    floats.push([`${theirs}.weight`, [HIDDEN], () => values]);
  };
  const matrix = (tensor: string, layer: number, name: string, theirs: string) => {
    const type = typeOf(tensor, layer);
    const [rows, cols] = SHAPES[tensor];
    const data = randomBlocks(type, (rows * cols) / colsOf(type), random);
    tensors[`${name}.weight`] = { type: NUMBERS[type], shape: [rows, cols], data };
    matrixBytes += ((rows * cols) / colsOf(type)) * bytesOf(type);
    const isPermuted = tensor === 'attn_q' || tensor === 'attn_k';
    const values = () => Float32Array.from(elementsOf(type, data));
    floats.push([
      `${theirs}.weight`,
      [rows, cols],
      () => (isPermuted ? ordered(values(), cols) : values()),
    ]);
  };
  matrix('token_embd', 0, 'token_embd', NAMES.token_embd);
  norm('output_norm', NAMES.output_norm);
  for (let layer = 0; layer < LAYERS; layer++) {
    for (const [own, theirs] of Object.entries(NAMES)) {
      if (own === 'token_embd' || own === 'output_norm') continue;
      const names = [`blk.${layer}.${own}`, `model.layers.${layer}.${theirs}`] as const;
      if (own.endsWith('norm')) norm(...names);
      else matrix(own, layer, ...names);
    }
  }
  const metadata: Record<string, Value> = {
    'general.architecture': { text: 'llama' },
    'llama.block_count': { u32: LAYERS },
    'llama.context_length': { u32: 512 },
    'llama.embedding_length': { u32: HIDDEN },
    'llama.feed_forward_length': { u32: INTERMEDIATE },
    'llama.attention.head_count': { u32: HEADS },
    'llama.attention.head_count_kv': { u32: KV_HEADS },
    'llama.attention.layer_norm_rms_epsilon': { f32: 1e-5 },
    'tokenizer.ggml.eos_token_id': { u32: 95 },
  };
  return {
    file: gguf({
      metadata: { ...metadata, ...changes.metadata },
      tensors: { ...tensors, ...changes.tensors },
    }),
    matrixBytes,
    config: {
      architectures: ['LlamaForCausalLM'],
      vocab_size: VOCAB,
      hidden_size: HIDDEN,
      intermediate_size: INTERMEDIATE,
      num_hidden_layers: LAYERS,
      num_attention_heads: HEADS,
      num_key_value_heads: KV_HEADS,
      max_position_embeddings: 512,
      rms_norm_eps: 1e-5,
      tie_word_embeddings: true,
      eos_token_id: 95,
    },
    safetensors: () =>
      safetensorsOf(floats.map(([name, shape, values]) => [name, shape, values()])),
  };
}

/** Every type in turn. */
export const everyType = (tensor: string, layer: number): BlockType =>
  BLOCK_TYPES[(Object.keys(SHAPES).indexOf(tensor) + layer * 7) % BLOCK_TYPES.length];

const bytesOfFloats = (values: Float32Array) => new Uint8Array(values.buffer, 0, values.byteLength);

/** Row i of a head's half h is row 2 * i + h in GGUF. */
function ordered(values: Float32Array, cols: number): Float32Array {
  const out = new Float32Array(values.length);
  for (let row = 0; row < values.length / cols; row++) {
    const inHead = row % HEAD;
    const from = row - inHead + 2 * (inHead % (HEAD / 2)) + Math.floor(inHead / (HEAD / 2));
    out.set(values.subarray(from * cols, (from + 1) * cols), row * cols);
  }
  return out;
}

function safetensorsOf(tensors: readonly [string, number[], Float32Array][]): Buffer {
  let end = 0;
  const header = tensors.map(([name, shape, { byteLength }]) => {
    const begin = end;
    end += byteLength;
    return [name, { dtype: 'F32', shape, data_offsets: [begin, end] }];
  });
  const json = Buffer.from(JSON.stringify(Object.fromEntries(header)));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  return Buffer.concat([length, json, ...tensors.map(([, , values]) => bytesOfFloats(values))]);
}
