/** A checkpoint's config.json, in the styles of transformers 4 and 5. */
import path from 'node:path';
import { z } from 'zod';
import { CheckpointError, UnsupportedModelError } from '../errors';
import { refuseForeignKeys } from './foreignKeys';
import { readJsonObject } from './jsonFile';
import { readRope } from './rope';
import {
  integer,
  integerOrNull,
  MAX_POSITIONS,
  parseFields,
  positive,
  positiveOrNull,
  show,
} from './schema';
import type { TransformerConfig } from './uniprocConfig';

/** Sizes and counts no model comes near; their products stay exact. */
const MAX_SIZE = 2 ** 24;
const MAX_LAYERS = 2 ** 12;

const flag = () => z.boolean().describe('true or false');
const dictionary = () => z.record(z.string(), z.unknown()).nullish().describe('an object, or null');
const dtype = () =>
  z
    .enum(['float32', 'float16', 'bfloat16'])
    .nullish()
    .describe("'float32', 'float16', 'bfloat16' or null");

/** One token id, several or none: the end of sequence. */
export const eosTokenId = z
  .union([z.int().min(0), z.array(z.int().min(0))])
  .nullish()
  .describe('a token id, a list of them, or null');

/** The keys that matter, once the family's defaults stand in for those that are missing. */
const configSchema = z.looseObject({
  vocab_size: integer(1, MAX_SIZE),
  hidden_size: integer(1, MAX_SIZE),
  intermediate_size: integer(1, MAX_SIZE),
  num_hidden_layers: integer(1, MAX_LAYERS),
  num_attention_heads: integer(1, MAX_SIZE),
  num_key_value_heads: integerOrNull(1, MAX_SIZE),
  head_dim: integerOrNull(1, MAX_SIZE),
  hidden_act: z.string().describe('a string'),
  max_position_embeddings: integer(1, MAX_POSITIONS),
  rms_norm_eps: positive(),
  tie_word_embeddings: flag(),
  attention_bias: flag(),
  mlp_bias: flag(),
  rope_theta: positiveOrNull(),
  rope_scaling: dictionary(),
  rope_parameters: dictionary(),
  partial_rotary_factor: positiveOrNull(),
  original_max_position_embeddings: integerOrNull(1, MAX_POSITIONS),
  use_sliding_window: flag(),
  sliding_window: integerOrNull(1, MAX_POSITIONS),
  max_window_layers: integer(0, MAX_POSITIONS),
  layer_types: z.array(z.string()).nullish().describe('a list of strings, or null'),
  bos_token_id: integerOrNull(0, MAX_SIZE),
  eos_token_id: eosTokenId,
  dtype: dtype(),
  torch_dtype: dtype(),
});
type ConfigJson = z.output<typeof configSchema>;

/** What transformers takes for a key that is missing, of all families. */
const COMMON_DEFAULTS = {
  hidden_size: 4096,
  num_hidden_layers: 32,
  num_attention_heads: 32,
  hidden_act: 'silu',
  rms_norm_eps: 1e-6,
  tie_word_embeddings: false,
  attention_bias: false,
  mlp_bias: false,
  use_sliding_window: false,
  max_window_layers: 28,
};
const LLAMA_DEFAULTS = {
  ...COMMON_DEFAULTS,
  vocab_size: 32000,
  intermediate_size: 11008,
  max_position_embeddings: 2048,
  bos_token_id: 1,
  eos_token_id: 2,
};
const MISTRAL_DEFAULTS = {
  ...LLAMA_DEFAULTS,
  intermediate_size: 14336,
  num_key_value_heads: 8,
  max_position_embeddings: 131072,
  sliding_window: 4096,
};
const QWEN2_DEFAULTS = {
  ...COMMON_DEFAULTS,
  vocab_size: 151936,
  intermediate_size: 22016,
  num_key_value_heads: 32,
  max_position_embeddings: 32768,
  sliding_window: 4096,
};
const QWEN3_DEFAULTS = { ...QWEN2_DEFAULTS, head_dim: 128 };

type Biases = Pick<TransformerConfig['spec'], 'qkvBias' | 'outputBias' | 'mlpBias'>;

/** What sets a family apart from the others. */
interface Family {
  /** As config.json's model_type names it. */
  modelType: string;
  defaults: Record<string, unknown>;
  biases(json: ConfigJson): Biases;
  qkNorm: boolean;
  /** [num_hidden_layers]: tokens each layer attends to, 0 for all. */
  slidingWindows(file: string, json: ConfigJson): number[];
}

const noBiases: Biases = { qkvBias: false, outputBias: false, mlpBias: false };

/** One window for all layers, or none. */
function sameWindow(window: number): (file: string, json: ConfigJson) => number[] {
  return (_, json) => new Array<number>(json.num_hidden_layers).fill(window);
}

/** Qwen: some layers slide, as `layer_types` says or from `max_window_layers` on. */
function windowsByLayer(file: string, json: ConfigJson): number[] {
  const window = (json.use_sliding_window && json.sliding_window) || 0;
  const numLayers = json.num_hidden_layers;
  if (!json.layer_types) {
    return Array.from({ length: numLayers }, (_, i) => (i >= json.max_window_layers ? window : 0));
  }
  if (json.layer_types.length !== numLayers) {
    throw new CheckpointError(
      file,
      `layer_types has ${json.layer_types.length} entries, but num_hidden_layers is ${numLayers}`,
    );
  }
  return json.layer_types.map((type, i) => {
    if (type === 'full_attention') return 0;
    if (type !== 'sliding_attention') {
      throw new UnsupportedModelError(
        file,
        `layer_types[${i}] is ${show(type)}; only 'full_attention' and 'sliding_attention' are supported`,
      );
    }
    if (window > 0) return window;
    throw new CheckpointError(
      file,
      `layer_types[${i}] is 'sliding_attention', but use_sliding_window is ` +
        `${json.use_sliding_window} and sliding_window is ${show(json.sliding_window)}`,
    );
  });
}

const FAMILIES = new Map<string, Family>([
  [
    'LlamaForCausalLM',
    {
      modelType: 'llama',
      defaults: LLAMA_DEFAULTS,
      biases: ({ attention_bias, mlp_bias }) => ({
        qkvBias: attention_bias,
        outputBias: attention_bias,
        mlpBias: mlp_bias,
      }),
      qkNorm: false,
      slidingWindows: sameWindow(0),
    },
  ],
  [
    'MistralForCausalLM',
    {
      modelType: 'mistral',
      defaults: MISTRAL_DEFAULTS,
      biases: () => noBiases,
      qkNorm: false,
      slidingWindows: (file, json) => sameWindow(json.sliding_window ?? 0)(file, json),
    },
  ],
  [
    'Qwen2ForCausalLM',
    {
      modelType: 'qwen2',
      defaults: QWEN2_DEFAULTS,
      biases: () => ({ ...noBiases, qkvBias: true }),
      qkNorm: false,
      slidingWindows: windowsByLayer,
    },
  ],
  [
    'Qwen3ForCausalLM',
    {
      modelType: 'qwen3',
      defaults: QWEN3_DEFAULTS,
      biases: ({ attention_bias }) => ({
        ...noBiases,
        qkvBias: attention_bias,
        outputBias: attention_bias,
      }),
      qkNorm: true,
      slidingWindows: windowsByLayer,
    },
  ],
]);

/** The first of the architectures named that is supported. */
function chooseFamily(file: string, architectures: unknown): { name: string; family: Family } {
  const supported = [...FAMILIES.keys()];
  if (!Array.isArray(architectures) || !architectures.every((name) => typeof name === 'string')) {
    throw new CheckpointError(
      file,
      `architectures is ${show(architectures)}; it must be a list of names, such as ['${supported[0]}']`,
    );
  }
  for (const name of architectures) {
    const family = FAMILIES.get(name);
    if (family) return { name, family };
  }
  throw new UnsupportedModelError(
    file,
    `architecture ${architectures.join(', ') || '(none)'} is not supported; supported: ${supported.join(', ')}`,
  );
}

function refuseQuantization(file: string, quantization: unknown): void {
  if (quantization === undefined || quantization === null) return;
  const method = (quantization as Record<string, unknown>).quant_method;
  throw new UnsupportedModelError(
    file,
    `quantization_config with quant_method ${show(method)} is not supported; ` +
      'use the checkpoint in float32, float16 or bfloat16',
  );
}

/** The heads' number and size, those of the keys and values included. */
function readHeads(file: string, json: ConfigJson) {
  const numHeads = json.num_attention_heads;
  const numKvHeads = json.num_key_value_heads ?? numHeads;
  if (numHeads % numKvHeads !== 0) {
    throw new CheckpointError(
      file,
      `num_attention_heads is ${numHeads}; it must be a multiple of num_key_value_heads, ${numKvHeads}`,
    );
  }
  const headDim = json.head_dim ?? json.hidden_size / numHeads;
  if (!Number.isInteger(headDim)) {
    throw new CheckpointError(
      file,
      `hidden_size is ${json.hidden_size}; without head_dim it must be a multiple of ` +
        `num_attention_heads, ${numHeads}`,
    );
  }
  if (headDim % 2 !== 0) {
    throw new CheckpointError(
      file,
      `head_dim is ${headDim}; rotary embedding needs an even number`,
    );
  }
  return { numHeads, numKvHeads, headDim };
}

/** Checks that the ids `key` names are in the vocabulary. */
export function checkTokenIds(
  file: string,
  key: string,
  ids: readonly number[],
  vocabSize: number,
): void {
  const outside = ids.find((id) => id >= vocabSize);
  if (outside === undefined) return;
  throw new CheckpointError(
    file,
    `${key} is ${outside}; with a vocab_size of ${vocabSize} it must be below that`,
  );
}

export interface FileTransformerConfig extends TransformerConfig {
  /** config.json says which ends of sequence there are; else they are the family's default. */
  namesEos: boolean;
}

/**
 * Reads `folder`/config.json. A key that is missing has the value transformers 5 gives it for that
 * family. Throws CheckpointError (missing, not JSON, a key with a value that cannot be) and
 * UnsupportedModelError (an architecture, a quantization, a rope type or another key of config.json
 * that this library does not run).
 */
export async function readTransformerConfig(folder: string): Promise<FileTransformerConfig> {
  const file = path.join(folder, 'config.json');
  return parseTransformerConfig(file, await readJsonObject(file));
}

/** What `given`, the content of `file`, says of the model. Throws as readTransformerConfig. */
export function parseTransformerConfig(
  file: string,
  given: Record<string, unknown>,
): FileTransformerConfig {
  refuseQuantization(file, given.quantization_config);
  const { name: architecture, family } = chooseFamily(file, given.architectures);
  const json = parseFields(
    configSchema,
    { ...family.defaults, ...given },
    (message) => new CheckpointError(file, message),
  );

  // Two names of one function.
  if (json.hidden_act !== 'silu' && json.hidden_act !== 'swish') {
    throw new UnsupportedModelError(
      file,
      `hidden_act ${show(json.hidden_act)} is not supported; only 'silu' is`,
    );
  }
  const eosTokenIds = [json.eos_token_id ?? []].flat();
  checkTokenIds(file, 'eos_token_id', eosTokenIds, json.vocab_size);
  checkTokenIds(file, 'bos_token_id', [json.bos_token_id ?? 0], json.vocab_size);
  const heads = readHeads(file, json);
  const rope = readRope(file, json, heads.headDim);
  const slidingWindows = family.slidingWindows(file, json);
  refuseForeignKeys(file, given, {
    modelType: family.modelType,
    headDim: heads.headDim,
    qkNorm: family.qkNorm,
    slidingWindows,
  });

  return {
    architecture,
    spec: {
      vocabSize: json.vocab_size,
      hiddenSize: json.hidden_size,
      intermediateSize: json.intermediate_size,
      numLayers: json.num_hidden_layers,
      ...heads,
      rmsNormEps: json.rms_norm_eps,
      ropeTheta: rope.theta,
      ropeScaling: rope.scaling,
      slidingWindows,
      ...family.biases(json),
      qkNorm: family.qkNorm,
      tieWordEmbeddings: json.tie_word_embeddings,
    },
    dtype: json.dtype ?? json.torch_dtype ?? null,
    maxPositionEmbeddings: rope.maxPositions,
    bosTokenId: json.bos_token_id ?? null,
    eosTokenIds,
    namesEos: Object.hasOwn(given, 'eos_token_id'),
  };
}
