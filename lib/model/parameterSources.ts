/** Maps the model's parameters to the checkpoint's tensors, by the names of its family. */
import type { DType } from '../config/dtype';
import { show } from '../config/schema';
import type { TransformerSpec } from '../config/uniprocConfig';
import { CheckpointError } from '../errors';
import type { Family } from './families/family';
import { SCALES_SUFFIX } from './quantization';
import { FAMILIES } from './registry';
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

const SUFFIXES = { weight: 'weight', bias: 'bias', scales: SCALES_SUFFIX } as const;

/** Tensor names of a checkpoint by parameter. */
export class ParameterNames {
  constructor(
    private readonly family: Family,
    private readonly table: TensorTable,
    private readonly isTied: boolean,
  ) {}

  tensorOf({ layer, expert, module, part }: Parameter): string {
    // A tied embedding may be in the files under the head's name only.
    const isUnderHead = module === 'embedding' && this.isTied && !this.has('embedding');
    const name = this.family.modules[isUnderHead && this.has('head') ? 'head' : module];
    return `${name.replace('{layer}', `${layer}`).replace('{expert}', `${expert}`)}.${SUFFIXES[part]}`;
  }

  private has(module: string): boolean {
    return this.table.tensors.has(`${this.family.modules[module]}.weight`);
  }
}

/** Returns the tensor and its type after checking its shape against config.json. */
function lookUp(
  table: TensorTable,
  name: string,
  parameter: Parameter,
): { entry: TensorEntry; dtype: StorageType } {
  const { shape } = parameter;
  const entry = table.tensors.get(name);
  if (!entry) throw new CheckpointError(table.source, missing(name, parameter));
  const file = table.files[entry.file];
  if (entry.shape.length !== shape.length || shape.some(({ size }, i) => size !== entry.shape[i])) {
    throw new CheckpointError(
      file,
      `tensor ${name} has shape ${show(entry.shape)}; ` +
        `config.json requires ${show(shape.map(({ size }) => size))}: ` +
        shape.map(({ size, of }) => `${configKeys(of)} ${size}`).join(', '),
    );
  }
  const dtype = STORAGE_TYPES[entry.dtype];
  const isQuantized = dtype === 'float8_e4m3';
  if (!dtype || (isQuantized && !(parameter.isLinear && parameter.format.scaleRows > 0))) {
    throw new CheckpointError(
      file,
      `tensor ${name} has dtype ${entry.dtype}; weights must be F32, F16 or BF16` +
        (isQuantized ? ' unless quantization_config describes their scales' : ''),
    );
  }
  return { entry, dtype };
}

function configKeys(sizes: string): string {
  return sizes.replace(/[a-zA-Z]+/g, (size) => CONFIG_KEYS[size]);
}

function missing(name: string, { module, part }: Parameter): string {
  if (module === 'head' && part === 'weight') {
    return `tensor ${name} is missing; it is required unless config.json has tie_word_embeddings`;
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
    if (parameter.module !== 'embedding' && parameter.module !== 'head') continue;
    const name = names.tensorOf(parameter);
    if (!table.tensors.has(name)) return true;
    const { entry, dtype: storedType } = lookUp(table, name, parameter);
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
 * of no known module (rotary_emb.inv_freq) are ignored. Throws CheckpointError for a tensor that is
 * missing, contradicts config.json's shape or type, or belongs to no declared parameter.
 */
export function parameterSources(
  declared: readonly Parameter[],
  spec: Pick<TransformerSpec, 'tieWordEmbeddings' | 'numLayers'>,
  family: Family,
  table: TensorTable,
): Sources {
  const names = new ParameterNames(family, table, spec.tieWordEmbeddings);
  const sources: ParameterSource[] = [];
  const used = new Set<string>();
  let totalBytes = 0;
  declared.forEach((parameter, index) => {
    const name = names.tensorOf(parameter);
    const { entry, dtype } = lookUp(table, name, parameter);
    used.add(name);
    // An empty share, such as a bias that only one rank adds, needs no load.
    const count = parameter.shape.reduce((product, dimension) => product * dimension.count, 1);
    if (count === 0) return;
    const size = entry.shape.reduce((product, dimension) => product * dimension, 1);
    sources.push({ parameter: index, file: entry.file, offset: entry.offset, dtype });
    totalBytes += count * (entry.numBytes / size);
  });

  for (const [name, entry] of table.tensors) {
    if (used.has(name) || !isModuleTensor(name)) continue;
    if (spec.tieWordEmbeddings && isEmbedding(family, name)) continue;
    throw new CheckpointError(
      table.files[entry.file],
      `tensor ${name} is not part of the model that config.json describes; ` +
        `check its num_hidden_layers (${spec.numLayers}), attention_bias and mlp_bias`,
    );
  }
  return { files: table.files, sources, totalBytes };
}

function isEmbedding({ modules }: Family, name: string): boolean {
  return name === `${modules.embedding}.weight` || name === `${modules.head}.weight`;
}

/** Tensor names of all families' modules. */
const MODULE_TENSORS = new RegExp(
  `^(${[...new Set([...FAMILIES.values()].flatMap(({ modules }) => Object.values(modules)))]
    .map((module) => module.replaceAll('.', '\\.').replace(/\{(layer|expert)\}/g, '\\d+'))
    .join('|')})\\.(${Object.values(SUFFIXES).join('|')})$`,
);

function isModuleTensor(name: string): boolean {
  return MODULE_TENSORS.test(name);
}
