/** Which of a checkpoint's tensors are the model's parameters, under the names its family gives them. */
import { show } from '../config/schema';
import type { TransformerSpec } from '../config/uniprocConfig';
import { CheckpointError } from '../errors';
import type {
  DType,
  NativeDevice,
  Parameter,
  ParameterSource,
  StorageType,
  StoredTensor,
} from '../native';
import { slicedWork } from '../slicedWork';
import type { Family } from './families/family';
import { expertsOf, isModuleTensor, ParameterNames, SCALES_SUFFIX } from './parameterNames';
import type { SafetensorsDType, TensorEntry, TensorTable } from './safetensors';

/** All that `NativeModel.load` needs to be told. */
export interface Sources {
  files: string[];
  sources: ParameterSource[];
  /** Bytes of this rank's share, as the files hold them. */
  totalBytes: number;
}

/** Types that parameters may be stored in. */
const STORAGE_TYPES: Partial<Record<SafetensorsDType, StorageType>> = {
  F32: 'float32',
  F16: 'float16',
  BF16: 'bfloat16',
  F8_E4M3: 'float8_e4m3',
};

/** What config.json calls the sizes of a spec. */
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

/** The tensor and its type, once its shape is what config.json says. */
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
      `tensor ${name} has the shape ${show(entry.shape)}, ` +
        `but by config.json it is ${show(shape.map(({ size }) => size))}: ` +
        shape.map(({ size }, i) => `${configKeys(parameter, i)} ${size}`).join(', '),
    );
  }
  const dtype = STORAGE_TYPES[entry.dtype];
  const isQuantized = dtype === 'float8_e4m3';
  if (!dtype || (isQuantized && !(parameter.isLinear && parameter.format.scaleRows > 0))) {
    throw new CheckpointError(
      file,
      `tensor ${name} has the dtype ${entry.dtype}; ` +
        (isQuantized && !parameter.isLinear
          ? 'it must be F32, F16 or BF16, as only the matrices of linear layers may be quantised'
          : 'weights must be F32, F16 or BF16' +
            (isQuantized ? ' where quantization_config does not say how they are scaled' : '')),
    );
  }
  return { entry, dtype };
}

/** The sizes that a dimension is made of: num_attention_heads * head_dim. */
function configKeys({ shape, part, format }: Parameter, dimension: number): string {
  const keys = shape[dimension].of.replace(/[a-zA-Z]+/g, (size) => CONFIG_KEYS[size]);
  if (part !== 'scales') return keys;
  return `ceil(${keys} / ${dimension === 0 ? format.scaleRows : format.scaleCols})`;
}

function missing(names: ParameterNames, name: string, parameter: Parameter): string {
  const { module, part, experts } = parameter;
  if (module === 'head' && part === 'weight') {
    return `tensor ${name} is missing; only with tie_word_embeddings in config.json need it not be there`;
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
 * Whether the output head is the embedding, where config.json ties them: true if the files hold only
 * one of the two, or if both are equal once converted to the model's type, as in transformers 5. They
 * are compared on the device's thread. `untied`: the model's parameters, the head among them. Throws
 * CheckpointError.
 */
export async function areEmbeddingsTied(
  untied: readonly Parameter[],
  family: Family,
  table: TensorTable,
  device: Pick<NativeDevice, 'areEqual'>,
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
    // In fp8 it is quantised, which the embedding never is.
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
 * The tensors of the checkpoint's files for the parameters that one rank declares. With tied
 * embeddings the files need only the embedding or the head, and a head beside the embedding is ignored
 * (areEmbeddingsTied compares them); so are tensors that no module of any family has
 * (rotary_emb.inv_freq). Looks them up in slices, as a large model has tens of thousands. Rejects with
 * CheckpointError for a tensor that is missing, that has another shape or type than config.json says,
 * or that config.json has no place for.
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
        // Of nothing, as of biases that one rank alone adds, there is nothing to load.
        if (count === 0 || !isHere(parameter, expert)) continue;
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
      throw new CheckpointError(table.files[file], noPlace(name, spec));
    }
  }
  await slicedWork.finish(findSources());
  await slicedWork.finish(refuseOthers());
  return { files: table.files, sources, totalBytes };
}

function isHere({ experts }: Parameter, expert: number | null): boolean {
  if (experts === null || expert === null) return true;
  return expert >= experts.first && expert < experts.first + experts.count;
}

function noPlace(
  name: string,
  { numLayers, experts }: Pick<TransformerSpec, 'numLayers' | 'experts'>,
): string {
  const message = `tensor ${name} has no place in the model that config.json describes; `;
  if (name.endsWith(`.${SCALES_SUFFIX}`)) {
    return `${message}only matrices stored in F8_E4M3 have scales, by quantization_config there`;
  }
  const ofExperts = experts
    ? `, num_experts (${experts.numExperts}), mlp_only_layers, decoder_sparse_step`
    : '';
  return `${message}check num_hidden_layers (${numLayers})${ofExperts}, attention_bias and mlp_bias there`;
}

function isEmbedding({ modules }: Family, name: string): boolean {
  return name === `${modules.embedding}.weight` || name === `${modules.head}.weight`;
}
