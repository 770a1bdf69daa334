/** A checkpoint's config.json, in the styles of transformers 4 and 5. */
import path from 'node:path';
import { fileExists, readJsonObject } from '../config/jsonFile';
import { parseFields, show } from '../config/schema';
import type { Quantization, TransformerConfig } from '../config/uniprocConfig';
import { CheckpointError, UnsupportedModelError } from '../errors';
import { readActivation } from './activations';
import { type ConfigJson, configSchema, type Family } from './families/family';
import { refuseForeignKeys } from './foreignKeys';
import { readTextConfig } from './languageModel';
import { readPooling } from './pooling';
import { readQuantization } from './quantization';
import { FAMILIES } from './registry';
import { readRope } from './rope';

/** Chooses the first supported architecture; without any, that of model_type. */
function chooseFamily(
  file: string,
  { architectures, model_type: modelType }: Record<string, unknown>,
): { name: string; family: Family } {
  const supported = [...FAMILIES.keys()];
  if ((architectures ?? null) === null) {
    const byType = [...FAMILIES].find(([, family]) => family.modelType === modelType);
    if (byType) return { name: byType[0], family: byType[1] };
    if (typeof modelType === 'string') {
      const types = [...FAMILIES.values()].map((family) => family.modelType);
      throw new UnsupportedModelError(
        file,
        `model_type ${show(modelType)} is not supported; supported: ${types.join(', ')}`,
      );
    }
  }
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

/** Numbers of query and key-value heads, and their size. */
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

/** Checks that the ids under `key` are in the vocabulary. */
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
    `${key} is ${outside}; it must be below vocab_size, ${vocabSize}`,
  );
}

/**
 * Refuses blocks of scales that rows would cut through: of modules that are rows of one tensor, and of
 * heads that are rotated in part or in interleaved pairs, whose rows have another order in memory.
 */
function refuseQuantizedRows(
  file: string,
  { modules, modelType }: Family,
  { schemes }: Quantization,
  headDim: number,
  { isPartial, isInterleaved }: { isPartial: boolean; isInterleaved: boolean },
): void {
  const sizes = schemes.map(({ block }) => block?.[0] ?? 1).filter((rows) => rows > 1);
  if (sizes.length === 0) return;
  if (modules['attention.q'] === modules['attention.k']) {
    throw new UnsupportedModelError(
      file,
      `blocks of ${sizes[0]} rows are not supported with model_type ${show(modelType)}`,
    );
  }
  const scaleRows = sizes.find((rows) => rows % headDim !== 0);
  if ((isPartial || isInterleaved) && scaleRows !== undefined) {
    const what = isInterleaved ? `model_type ${show(modelType)}` : 'a partial_rotary_factor';
    throw new UnsupportedModelError(
      file,
      `blocks of ${scaleRows} rows are not supported with ${what}; ` +
        `their number must be a multiple of head_dim, ${headDim}`,
    );
  }
}

export interface FileTransformerConfig extends TransformerConfig {
  /** config.json has eos_token_id; otherwise eosTokenIds is the family's default. */
  namesEos: boolean;
}

/**
 * Reads `folder`/config.json. A missing key has transformers 5's default for the family. Throws
 * CheckpointError (missing, not JSON, an invalid value) and UnsupportedModelError (an unsupported
 * architecture, quantization, rope type or other key). `languageModelOnly`: of a multimodal model, its
 * language model.
 */
export async function readTransformerConfig(
  folder: string,
  languageModelOnly = false,
): Promise<FileTransformerConfig> {
  const file = path.join(folder, 'config.json');
  const json = await readJsonObject(file);
  const modelopt = path.join(folder, 'hf_quant_config.json');
  if ((json.quantization_config ?? null) === null && (await fileExists(modelopt))) {
    const { quantization } = await readJsonObject(modelopt);
    json.quantization_config = { ...(quantization as object), quant_method: 'modelopt' };
  }
  const config = parseTransformerConfig(file, json, languageModelOnly);
  const pooling = await readPooling(folder, config);
  if (pooling === null) return config;
  return { ...config, pooling, spec: { ...config.spec, poolsLastToken: true } };
}

/** Parses `whole`, the content of `file`. Throws as readTransformerConfig. */
export function parseTransformerConfig(
  file: string,
  whole: Record<string, unknown>,
  languageModelOnly = false,
): FileTransformerConfig {
  const { json: given, multimodal } = readTextConfig(file, whole, languageModelOnly);
  const quantization = readQuantization(file, given.quantization_config);
  const { name: architecture, family } = chooseFamily(file, given);
  const json = parseFields(
    configSchema,
    { ...family.defaults, ...given },
    (message) => new CheckpointError(file, message),
  );

  const eosTokenIds = [json.eos_token_id ?? []].flat();
  checkTokenIds(file, 'eos_token_id', eosTokenIds, json.vocab_size);
  checkTokenIds(file, 'bos_token_id', [json.bos_token_id ?? 0], json.vocab_size);
  const heads = readHeads(file, json);
  const {
    ropes: ropeSections,
    attentionScale,
    activation,
    maxPositions,
    ...familySpec
  } = family.readSpec(file, json);
  const ropes = ropeSections.map((section) =>
    readRope(file, section, section.head_dim ?? heads.headDim),
  );
  if (quantization) {
    const isPartial = ropes.some(
      ({ rotaryDim }, i) => rotaryDim !== (ropeSections[i].head_dim ?? heads.headDim),
    );
    const rotation = { isPartial, isInterleaved: familySpec.interleavedRope };
    refuseQuantizedRows(file, family, quantization, heads.headDim, rotation);
  }
  refuseForeignKeys(file, given, {
    modelType: family.modelType,
    headDim: heads.headDim,
    ownKeys: family.ownKeys ?? [],
    ...familySpec,
  });

  return {
    architecture,
    multimodal,
    gguf: null,
    spec: {
      vocabSize: json.vocab_size,
      hiddenSize: json.hidden_size,
      intermediateSize: json.intermediate_size,
      numLayers: json.num_hidden_layers,
      ...heads,
      rmsNormEps: json.rms_norm_eps,
      ropes: ropes.map(({ theta, scaling, rotaryDim }) => ({ theta, scaling, rotaryDim })),
      ...familySpec,
      activation: activation ?? readActivation(file, 'hidden_act', json.hidden_act),
      attentionScale: attentionScale ?? 1 / Math.sqrt(heads.headDim),
      tieWordEmbeddings: json.tie_word_embeddings,
      poolsLastToken: false,
    },
    pooling: null,
    quantization,
    dtype: json.dtype ?? json.torch_dtype ?? null,
    maxPositionEmbeddings: maxPositions ?? Math.max(...ropes.map((rope) => rope.maxPositions)),
    bosTokenId: json.bos_token_id ?? null,
    eosTokenIds,
    namesEos: Object.hasOwn(given, 'eos_token_id'),
  };
}
