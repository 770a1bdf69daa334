/** Maps the model's parameters to the checkpoint's tensors, by the names of its family. */
import type { DType } from '../config/dtype';
import { show } from '../config/schema';
import type { TransformerSpec } from '../config/uniprocConfig';
import { CheckpointError } from '../errors';
import { slicedWork } from '../slicedWork';
import type { Family } from './families/family';
import { expertsOf, isModuleTensor, ParameterNames, SCALES_SUFFIX } from './parameterNames';
import type { SafetensorsDType, TensorEntry, TensorTable } from './safetensors';
import type { Parameter, ParameterSource, StorageType, StoredTensor } from './spec';

/** Arguments of `NativeModelRunner.load`. */
export interface Sources {
  files: string[];
  sources: ParameterSource[];
  /** Bytes of this rank's share in the files. */
  totalBytes: number;
}

/** A device that compares tensors of files, converted to `dtype`. */
export interface TensorComparer {
  areEqual(a: StoredTensor, b: StoredTensor, count: number, dtype: DType): Promise<boolean>;
}

/** Supported storage types of parameters. */
const STORAGE_TYPES: Partial<Record<SafetensorsDType, StorageType>> = {
  F32: 'float32',
  F16: 'float16',
  BF16: 'bfloat16',
  F8_E4M3: 'float8_e4m3',
};

/** The config.json keys of a spec's sizes. */
const CONFIG_KEYS: Record<string, string> = {
  vocabSize: 'vocab_size',
  hiddenSize: 'hidden_size',
  intermediateSize: 'intermediate_size',
  numHeads: 'num_attention_heads',
  numKvHeads: 'num_key_value_heads',
  headDim: 'head_dim',
  numExperts: 'num_experts',
  expertIntermediateSize: 'moe_intermediate_size',
};

/** Returns the tensor and its type after checking its shape against config.json. */
function lookUp(
  names: ParameterNames,
  name: string,
  parameter: Parameter,
): { entry: TensorEntry; dtype: StorageType } {
  const { shape } = parameter;
  const { table } = names;
  const entry = table.tensors.get(name);
  if (!entry) throw new CheckpointError(table.source, missing(names, name, parameter));
  const file = table.files[entry.file];
  if (entry.shape.length !== shape.length || shape.some(({ size }, i) => size !== entry.shape[i])) {
    throw new CheckpointError(
      file,
      `tensor ${name} has shape ${show(entry.shape)}; ` +
        `config.json requires ${show(shape.map(({ size }) => size))}: ` +
        shape.map(({ size }, i) => `${configKeys(parameter, i)} ${size}`).join(', '),
    );
  }
  const dtype = STORAGE_TYPES[entry.dtype];
  const isQuantized = dtype === 'float8_e4m3';
  if (!dtype || (isQuantized && !(parameter.isLinear && parameter.format.scaleRows > 0))) {
    throw new CheckpointError(
      file,
      `tensor ${name} has dtype ${entry.dtype}; ` +
        (isQuantized && !parameter.isLinear
          ? 'it must be F32, F16 or BF16, as only matrices of linear layers may be quantized'
          : 'weights must be F32, F16 or BF16' +
            (isQuantized ? ' unless quantization_config describes their scales' : '')),
    );
  }
  return { entry, dtype };
}

/** The product of config.json's keys that a dimension equals: num_attention_heads * head_dim. */
function configKeys({ shape, part, format }: Parameter, dimension: number): string {
  const keys = shape[dimension].of.replace(/[a-zA-Z]+/g, (size) => CONFIG_KEYS[size]);
  if (part !== 'scales') return keys;
  return `ceil(${keys} / ${dimension === 0 ? format.scaleRows : format.scaleCols})`;
}

function missing(names: ParameterNames, name: string, parameter: Parameter): string {
  const { module, part, experts } = parameter;
  if (module === 'head' && part === 'weight') {
    return `tensor ${name} is missing; it is required unless config.json has tie_word_embeddings`;
  }
  const stacked = experts && names.stackedExperts(parameter);
  if (stacked) {
    return (
      `tensor ${name} is missing; ${stacked} holds all experts in one tensor, which is not supported: ` +
      'save the checkpoint with a tensor for each expert (save_original_format in transformers)'
    );
  }
  return `tensor ${name} is missing`;
}

/**
 * Whether the output head is the embedding, if config.json ties them: true if the files have only one
 * of the two, or if both are equal in the model's dtype, as in transformers 5. Compares on the device's
 * thread. `untied`: the parameters of the model with a separate head. Throws CheckpointError.
 */
export async function areEmbeddingsTied(
  untied: readonly Parameter[],
  family: Family,
  table: TensorTable,
  device: TensorComparer,
  dtype: DType,
): Promise<boolean> {
  const names = new ParameterNames(family, table, false);
  const stored: StoredTensor[] = [];
  let count = 0;
  for (const parameter of untied) {
    const { module } = parameter;
    if (module !== 'embedding' && module !== 'head') continue;
    const name = names.tensorOf(parameter);
    if (!table.tensors.has(name)) return true;
    // The embedding is never quantized.
    if (module === 'head' && table.tensors.get(name)?.dtype === 'F8_E4M3') return false;
    const { entry, dtype: storedType } = lookUp(names, name, parameter);
    count = entry.shape.reduce((product, size) => product * size, 1);
    stored.push({
      path: table.files[entry.file],
      offset: entry.offset,
      dtype: storedType as DType,
    });
  }
  return device.areEqual(stored[0], stored[1], count, dtype);
}

/**
 * Maps one rank's parameters to tensors of the checkpoint's files. With tied embeddings only one of
 * embedding and head is required, and the other is ignored (areEmbeddingsTied compares them). Tensors
 * of no known module (rotary_emb.inv_freq) are ignored. Works in slices, since a large model has tens
 * of thousands of tensors. Rejects with CheckpointError for a tensor that is missing, contradicts
 * config.json's shape or type, or belongs to no declared parameter.
 */
export async function parameterSources(
  declared: readonly Parameter[],
  spec: Pick<TransformerSpec, 'tieWordEmbeddings' | 'numLayers' | 'experts'>,
  family: Family,
  table: TensorTable,
): Promise<Sources> {
  const names = new ParameterNames(family, table, spec.tieWordEmbeddings);
  const sources: ParameterSource[] = [];
  const used = new Set<string>();
  let totalBytes = 0;
  function* findSources() {
    for (const [index, parameter] of declared.entries()) {
      const count = parameter.shape.reduce((product, dimension) => product * dimension.count, 1);
      for (const expert of expertsOf(parameter)) {
        const name = names.tensorOf(parameter, expert);
        const { entry, dtype } = lookUp(names, name, parameter);
        used.add(name);
        yield;
        // An empty share, such as a bias that only one rank adds, needs no load.
        if (count === 0 || !isLocal(parameter, expert)) continue;
        const size = entry.shape.reduce((product, dimension) => product * dimension, 1);
        const place = { file: entry.file, offset: entry.offset, dtype };
        sources.push({ parameter: index, ...(expert !== null && { expert }), ...place });
        totalBytes += count * (entry.numBytes / size);
      }
    }
  }
  function* refuseOthers() {
    for (const [name, { file }] of table.tensors) {
      yield;
      if (used.has(name) || !isModuleTensor(name)) continue;
      if (spec.tieWordEmbeddings && isEmbedding(family, name)) continue;
      throw new CheckpointError(table.files[file], notInModel(name, spec));
    }
  }
  await slicedWork.finish(findSources());
  await slicedWork.finish(refuseOthers());
  return { files: table.files, sources, totalBytes };
}

function isLocal({ experts }: Parameter, expert: number | null): boolean {
  if (experts === null || expert === null) return true;
  return expert >= experts.first && expert < experts.first + experts.count;
}

function notInModel(
  name: string,
  { numLayers, experts }: Pick<TransformerSpec, 'numLayers' | 'experts'>,
): string {
  const message = `tensor ${name} is not part of the model that config.json describes; `;
  if (name.endsWith(`.${SCALES_SUFFIX}`)) {
    return `${message}only matrices in F8_E4M3 have scales, as its quantization_config describes`;
  }
  const ofExperts = experts
    ? `num_experts (${experts.numExperts}), mlp_only_layers, decoder_sparse_step, `
    : '';
  return `${message}check its num_hidden_layers (${numLayers}), ${ofExperts}attention_bias and mlp_bias`;
}

function isEmbedding({ modules }: Family, name: string): boolean {
  return name === `${modules.embedding}.weight` || name === `${modules.head}.weight`;
}
