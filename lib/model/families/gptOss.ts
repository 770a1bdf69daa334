/**
 * gpt-oss (OpenAI 2025): attention sinks, a window in every other layer, and experts with biases and a
 * clamped SwiGLU, in a float type or, as published, in mxfp4.
 */
import { show } from '../../config/schema';
import type { TransformerSpec } from '../../config/uniprocConfig';
import { CheckpointError, UnsupportedModelError } from '../../errors';
import { MX_BLOCK } from '../quantizationMethods';
import type { TensorEntry, TensorTable } from '../safetensors';
import type { Strides } from '../spec';
import { readLocalExperts } from './experts';
import { COMMON_DEFAULTS, type ConfigJson, DENSE_MODULES, type Family, plainSpec } from './family';
import { windowsByLayer } from './qwen2';

const DEFAULT_NUM_EXPERTS = 128;
const DEFAULT_ROPE = {
  rope_type: 'yarn',
  factor: 32,
  beta_fast: 32,
  beta_slow: 1,
  truncate: false,
  original_max_position_embeddings: 4096,
};
/** Of native/base/types.h. */
const LIMIT = 7;

const LAYER = 'model.layers.{layer}';
const EXPERT = `${LAYER}.mlp.experts.{expert}`;

export const gptOss: Family = {
  modelType: 'gpt_oss',
  defaults: {
    ...COMMON_DEFAULTS,
    vocab_size: 201088,
    hidden_size: 2880,
    intermediate_size: 2880,
    num_hidden_layers: 36,
    num_attention_heads: 64,
    num_key_value_heads: 8,
    head_dim: 64,
    max_position_embeddings: 131072,
    rms_norm_eps: 1e-5,
    rope_theta: 150000,
    sliding_window: 128,
    attention_bias: true,
    num_experts_per_tok: 4,
  },
  ownKeys: ['layer_types', 'num_experts', 'num_local_experts'],
  readSpec: (file, json) => {
    if ((json.swiglu_limit ?? LIMIT) !== LIMIT) {
      throw new UnsupportedModelError(
        file,
        `swiglu_limit ${json.swiglu_limit} is not supported; it must be ${LIMIT}`,
      );
    }
    const layerTypes =
      json.layer_types ??
      Array.from({ length: json.num_hidden_layers }, (_, layer) =>
        layer % 2 === 0 ? 'sliding_attention' : 'full_attention',
      );
    return {
      ...plainSpec(json),
      attentionSinks: true,
      qkvBias: json.attention_bias,
      outputBias: json.attention_bias,
      activation: 'clampedSwiglu',
      ropes: [{ ...json, rope_parameters: json.rope_parameters ?? DEFAULT_ROPE }],
      slidingWindows: windowsByLayer(file, {
        ...json,
        use_sliding_window: true,
        layer_types: layerTypes,
      }),
      experts: readGptOssExperts(file, json),
    };
  },
  modules: {
    ...DENSE_MODULES,
    'attention.sinks': `${LAYER}.self_attn.sinks`,
    'experts.norm': `${LAYER}.post_attention_layernorm`,
    'experts.router': `${LAYER}.mlp.router`,
    'experts.gate': `${EXPERT}.gate_proj`,
    'experts.up': `${EXPERT}.up_proj`,
    'experts.down': `${EXPERT}.down_proj`,
  },
  renameTensors: separateExperts,
  configKeys: { numExperts: 'num_local_experts', expertIntermediateSize: 'intermediate_size' },
};

/** The router's softmax over the chosen experts alone is the normalized one over all. */
function readGptOssExperts(file: string, json: ConfigJson) {
  const experts = readLocalExperts(file, json, DEFAULT_NUM_EXPERTS);
  return { ...experts, routerBias: true, bias: true };
}

/** Bytes of a block of mxfp4. */
const BLOCK_BYTES = MX_BLOCK / 2;

type Matrix = 'gate_up_proj' | 'down_proj';
type Kind = '' | '_bias' | '_blocks' | '_scales';

/** The part of a module that a tensor of each kind holds. */
const SUFFIXES: Record<Kind, string> = {
  '': 'weight',
  _bias: 'bias',
  _blocks: 'blocks',
  _scales: 'scales',
};

/**
 * The tensors of each expert. The files stack them, with the rows of gate and up in turns: in a float
 * type transposed, gate_up_proj [numExperts, hiddenSize, 2 * intermediateSize] and down_proj
 * [numExperts, intermediateSize, hiddenSize]; in mxfp4 `_blocks` [numExperts, rows, cols / 32, 16] of
 * uint8, two codes in each, and `_scales` [numExperts, rows, cols / 32] of E8M0; and `_bias`
 * [numExperts, rows]. Sinks get the suffix of a weight. Throws CheckpointError for a stack of another
 * number of experts, and for mxfp4 of another shape or type, or without blocks or scales.
 */
function* separateExperts(table: TensorTable, spec: TransformerSpec) {
  const tensors = new Map<string, TensorEntry>();
  for (const [name, entry] of table.tensors) {
    yield;
    const stack = /^(.*\.mlp\.experts)\.(gate_up_proj|down_proj)(|_bias|_blocks|_scales)$/.exec(
      name,
    );
    if (stack) {
      const [matrix, kind] = [stack[2] as Matrix, stack[3] as Kind];
      if (kind === '_blocks' || kind === '_scales')
        checkMxfp4(table, name, entry, matrix, kind, spec);
      else checkStack(table, name, entry, kind, spec);
      for (let expert = 0; expert < entry.shape[0]; expert++) {
        yield;
        for (const [part, own] of partsOf(matrix, kind, entry, expert)) {
          tensors.set(`${stack[1]}.${expert}.${part}.${SUFFIXES[kind]}`, own);
        }
      }
    } else if (name.endsWith('.self_attn.sinks')) {
      tensors.set(`${name}.weight`, entry);
    } else {
      tensors.set(name, entry);
    }
  }
  return tensors;
}

function checkStack(
  table: TensorTable,
  name: string,
  { shape: [numExperts, ...shape], ...entry }: TensorEntry,
  kind: '' | '_bias',
  { experts }: TransformerSpec,
): void {
  if (numExperts === experts?.numExperts && shape.length === (kind === '_bias' ? 1 : 2)) return;
  throw new CheckpointError(
    table.files[entry.file],
    `tensor ${name} has shape ${show([numExperts, ...shape])}; config.json requires ` +
      `num_local_experts, ${experts?.numExperts}, and ${kind === '_bias' ? 'one dimension' : 'two dimensions'} more`,
  );
}

function checkMxfp4(
  table: TensorTable,
  name: string,
  entry: TensorEntry,
  matrix: Matrix,
  kind: '_blocks' | '_scales',
  { experts, hiddenSize }: TransformerSpec,
): void {
  const file = table.files[entry.file];
  const size = experts?.intermediateSize ?? 0;
  const [rows, cols] = matrix === 'down_proj' ? [hiddenSize, size] : [2 * size, hiddenSize];
  if (cols % MX_BLOCK !== 0) {
    throw new UnsupportedModelError(
      file,
      `tensor ${name} is in mxfp4, but ${matrix === 'down_proj' ? 'intermediate_size' : 'hidden_size'}, ` +
        `${cols}, is no multiple of ${MX_BLOCK}, the columns of a block`,
    );
  }
  const blocks = [experts?.numExperts, rows, cols / MX_BLOCK];
  const required = kind === '_blocks' ? [...blocks, BLOCK_BYTES] : blocks;
  if (entry.shape.join() !== required.join()) {
    throw new CheckpointError(
      file,
      `tensor ${name} has shape ${show(entry.shape)}; config.json requires ${show(required)}: ` +
        `num_local_experts ${experts?.numExperts}, hidden_size ${hiddenSize}, intermediate_size ${size}`,
    );
  }
  if (entry.dtype !== 'U8') {
    throw new CheckpointError(file, `tensor ${name} has dtype ${entry.dtype}; it must be U8`);
  }
  const other = name.replace(/_(blocks|scales)$/, kind === '_blocks' ? '_scales' : '_blocks');
  if (!table.tensors.has(other)) {
    throw new CheckpointError(table.source, `tensor ${other} is missing, but ${name} is there`);
  }
}

/** One expert's parts of a stack. */
function partsOf(
  matrix: Matrix,
  kind: Kind,
  stack: TensorEntry,
  expert: number,
): [string, TensorEntry][] {
  const [numExperts, ...shape] = stack.shape;
  const parts = matrix === 'down_proj' ? ['down_proj'] : ['gate_proj', 'up_proj'];
  const bytes = stack.numBytes / numExperts;
  // A row of mxfp4, or an element.
  const isMxfp4 = kind === '_blocks' || kind === '_scales';
  const stepBytes =
    bytes / (isMxfp4 ? [shape[0]] : shape).reduce((product, size) => product * size, 1);
  return parts.map((part, i) => [
    part,
    {
      ...stack,
      ...partOf(kind, shape, parts.length),
      offset: stack.offset + expert * bytes + i * stepBytes,
      numBytes: bytes / parts.length,
    },
  ]);
}

/**
 * Every `step`-th row of mxfp4, or of the last dimension of a vector, or of a matrix, transposed. The
 * strides of blocks count codes of 4 bits.
 */
function partOf(
  kind: Kind,
  shape: readonly number[],
  step: number,
): { shape: number[]; strides?: Strides } {
  const [rows, cols] = shape;
  switch (kind) {
    case '_blocks':
      return {
        shape: [rows / step, cols * BLOCK_BYTES],
        ...(step > 1 && { strides: { row: step * cols * MX_BLOCK, col: 1 } }),
      };
    case '_scales':
      return {
        shape: [rows / step, cols],
        ...(step > 1 && { strides: { row: step * cols, col: 1 } }),
      };
    case '_bias':
      return { shape: [rows / step], strides: { row: step, col: 1 } };
    default:
      return { shape: [cols / step, rows], strides: { row: step, col: cols } };
  }
}
