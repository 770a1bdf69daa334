/** A checkpoint's config.json, in the styles of transformers 4 and 5. */
import path from 'node:path';
import { readJsonObject } from '../config/jsonFile';
import { parseFields, show } from '../config/schema';
import type { TransformerConfig } from '../config/uniprocConfig';
import { CheckpointError, UnsupportedModelError } from '../errors';
import { type ConfigJson, configSchema, type Family } from './families/family';
import { refuseForeignKeys } from './foreignKeys';
import { readQuantization } from './quantization';
import { FAMILIES } from './registry';
import { readRope } from './rope';

/** Chooses the first supported architecture. */
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

export interface FileTransformerConfig extends TransformerConfig {
  /** config.json has eos_token_id; otherwise eosTokenIds is the family's default. */
  namesEos: boolean;
}

/**
 * Reads `folder`/config.json. A missing key has transformers 5's default for the family. Throws
 * CheckpointError (missing, not JSON, an invalid value) and UnsupportedModelError (an unsupported
 * architecture, quantization, rope type or other key).
 */
export async function readTransformerConfig(folder: string): Promise<FileTransformerConfig> {
  const file = path.join(folder, 'config.json');
  return parseTransformerConfig(file, await readJsonObject(file));
}

/** Parses `given`, the content of `file`. Throws as readTransformerConfig. */
export function parseTransformerConfig(
  file: string,
  given: Record<string, unknown>,
): FileTransformerConfig {
  const quantization = readQuantization(file, given.quantization_config);
  const { name: architecture, family } = chooseFamily(file, given.architectures);
  const json = parseFields(
    configSchema,
    { ...family.defaults, ...given },
    (message) => new CheckpointError(file, message),
  );

  // Both names mean SiLU.
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
  const familySpec = family.readSpec(file, json);
  refuseForeignKeys(file, given, {
    modelType: family.modelType,
    headDim: heads.headDim,
    ownKeys: family.ownKeys ?? [],
    ...familySpec,
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
      ...familySpec,
      tieWordEmbeddings: json.tie_word_embeddings,
    },
    quantization,
    dtype: json.dtype ?? json.torch_dtype ?? null,
    maxPositionEmbeddings: rope.maxPositions,
    bosTokenId: json.bos_token_id ?? null,
    eosTokenIds,
    namesEos: Object.hasOwn(given, 'eos_token_id'),
  };
}
