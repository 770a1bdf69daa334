/** Maps the model's parameters to the checkpoint's tensors, by the names of its family. */
import type { DType } from '../config/dtype';
import { show } from '../config/schema';
import type { QuantizationScheme, TransformerSpec } from '../config/uniprocConfig';
import { CheckpointError, UnsupportedModelError } from '../errors';
import { slicedWork } from '../slicedWork';
import { refuseCutBlocks, refuseShare } from './columnDivision';
import type { Family } from './families/family';
import { blockTypeOf } from './gguf/types';
import { expertsOf, isModuleTensor, ParameterNames } from './parameterNames';
import { moduleOf, type Schemes } from './quantization';
import type { TensorEntry, TensorTable } from './safetensors';
import {
  type Parameter,
  type ParameterSource,
  STORED_BYTES,
  type StorageType,
  type StoredTensor,
  type TensorLayout,
} from './spec';
import { isOptional, PACKED_SUFFIXES, storedTensors } from './storedTensors';

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

/** Types of parameters that are not quantized. */
const FLOAT_TYPES: Partial<Record<TensorEntry['dtype'], DType>> = {
  F32: 'float32',
  F16: 'float16',
  BF16: 'bfloat16',
};

/** The config.json keys of a spec's sizes. */
const CONFIG_KEYS: Record<string, string> = {
  vocabSize: 'vocab_size',
  hiddenSize: 'hidden_size',
  intermediateSize: 'intermediate_size',
  numHeads: 'num_attention_heads',
  numKvHeads: 'num_key_value_heads',
  headDim: 'head_dim',
  otherHeadDim: 'global_head_dim',
  otherNumKvHeads: 'num_global_key_value_heads',
  numExperts: 'num_experts',
  expertIntermediateSize: 'moe_intermediate_size',
  numLayers: 'num_hidden_layers',
  perLayerInputSize: 'hidden_size_per_layer_input',
  sharedIntermediateSize: 'shared_expert_intermediate_size',
};

const isSameShape = (a: readonly number[], b: readonly number[]) =>
  a.length === b.length && a.every((size, i) => size === b[i]);

/** A parameter's tensor in the files. */
interface Found {
  name: string;
  entry: TensorEntry;
  dtype: StorageType;
  layout: TensorLayout;
}

/** Finds the tensor of a parameter after checking its type, and its shape against config.json. */
function lookUp(
  names: ParameterNames,
  parameter: Parameter,
  expert: number | null,
  scheme: QuantizationScheme | undefined,
): Found {
  if (scheme && parameter.part !== 'bias') return lookUpQuantized(names, parameter, expert, scheme);
  const name = names.tensorOf(parameter, expert);
  const sizes = parameter.shape.map(({ size }) => size);
  const entry = names.table.tensors.get(name);
  if (!entry) throw new CheckpointError(names.table.source, missing(names, name, parameter));
  const file = names.table.files[entry.file];
  if (!isSameShape(entry.shape, sizes)) {
    throw new CheckpointError(file, wrongShape(names, name, entry, parameter, sizes));
  }
  const layout = layoutIn(names, parameter);
  const dtype = FLOAT_TYPES[entry.dtype];
  if (dtype) return { name, entry, dtype, layout };
  const blocks = blockTypeOf(entry.dtype);
  if (blocks && (parameter.isLinear || parameter.module === 'embedding')) {
    return { name, entry, dtype: blocks, layout };
  }
  const isQuantized = entry.dtype === 'F8_E4M3' || entry.dtype === 'I8';
  throw new CheckpointError(
    file,
    `tensor ${name} has dtype ${entry.dtype}; ` +
      (isQuantized && !parameter.isLinear
        ? 'it must be F32, F16 or BF16, as only matrices of linear layers may be quantized'
        : 'weights must be F32, F16 or BF16' +
          (isQuantized ? ' unless quantization_config describes their scales' : '')),
  );
}

/** Queries and keys of some GGUF files have another order of rows. */
function layoutIn({ table }: ParameterNames, { module }: Parameter): TensorLayout {
  const isInterleaved = module === 'attention.q' || module === 'attention.k';
  return table.isInterleaved && isInterleaved ? 'interleavedHeads' : 'rows';
}

function lookUpQuantized(
  names: ParameterNames,
  parameter: Parameter,
  expert: number | null,
  scheme: QuantizationScheme,
): Found {
  const base = names.baseOf(parameter, expert);
  const [rows, cols] = [parameter.shape[0].size, parameter.shape[1]?.size ?? 1];
  const candidates = storedTensors(scheme, parameter.part, [rows, cols]);
  const { table } = names;
  const nameOf = ({ suffix }: { suffix: string }) => `${base}.${suffix}`;
  const present = candidates.filter((candidate) => table.tensors.has(nameOf(candidate)));
  const [first] = present;
  if (present.length === 0) {
    throw new CheckpointError(table.source, missing(names, nameOf(candidates[0]), parameter));
  }
  const name = nameOf(first);
  const entry = table.tensors.get(name) as TensorEntry;
  const fitting = present.find(
    (each) => nameOf(each) === name && isSameShape(each.shape, entry.shape),
  );
  const file = table.files[entry.file];
  if (!fitting) {
    throw new CheckpointError(file, wrongShape(names, name, entry, parameter, first.shape));
  }
  if (!(fitting.dtypes as readonly string[]).includes(entry.dtype)) {
    throw new CheckpointError(
      file,
      `tensor ${name} has dtype ${entry.dtype}; it must be ${fitting.dtypes.join(' or ')}`,
    );
  }
  const dtype = fitting.type ?? (FLOAT_TYPES[entry.dtype] as StorageType);
  return { name, entry, dtype, layout: fitting.layout };
}

function wrongShape(
  { family, table }: ParameterNames,
  name: string,
  entry: TensorEntry,
  parameter: Parameter,
  required: readonly number[],
): string {
  const sizes = parameter.shape.map(({ size }) => size);
  const isPlain = isSameShape(required, sizes);
  const explained = sizes.map((size, i) => `${configKeys(family, parameter, i)} ${size}`);
  return (
    `tensor ${name} has shape ${show(entry.shape)}; ${requires(table)} ${show(required)}: ` +
    (isPlain ? explained.join(', ') : `its quantization_config, and ${explained.join(', ')}`)
  );
}

const requires = ({ config }: TensorTable) =>
  config ? `${config} require` : 'config.json requires';

/** The product of config.json's keys that a dimension equals: num_attention_heads * head_dim. */
function configKeys(
  { configKeys: ofFamily = {} }: Family,
  { shape, part, format }: Parameter,
  dimension: number,
): string {
  const keys = shape[dimension].of.replace(
    /[a-zA-Z]+/g,
    (size) => ofFamily[size] ?? CONFIG_KEYS[size],
  );
  if (part !== 'scales' && part !== 'zeros') return keys;
  return `ceil(${keys} / ${dimension === 0 ? format.scaleRows : format.scaleCols})`;
}

function missing(names: ParameterNames, name: string, parameter: Parameter): string {
  const { module, part, experts } = parameter;
  if (module === 'head' && part === 'weight') {
    return `tensor ${name} is missing; it is required unless config.json has tie_word_embeddings`;
  }
  const packed = PACKED_SUFFIXES.map((suffix) => name.replace(/[^.]+$/, suffix)).find((each) =>
    names.table.tensors.has(each),
  );
  if (packed && part === 'weight') {
    return (
      `tensor ${name} is missing; ${packed} is quantized, but config.json has no ` +
      'quantization_config that describes it'
    );
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
    // The embedding is never quantized.
    if (module === 'head' && isQuantized(names, parameter)) return false;
    if (!table.tensors.has(names.tensorOf(parameter))) return true;
    const { entry } = lookUp(names, parameter, null, undefined);
    count = entry.shape.reduce((product, size) => product * size, 1);
    stored.push({
      path: table.files[entry.file],
      offset: entry.offset,
      dtype: FLOAT_TYPES[entry.dtype] as DType,
    });
  }
  return device.areEqual(stored[0], stored[1], count, dtype);
}

/** Whether the files hold a module's matrix in a quantized type. */
function isQuantized(names: ParameterNames, parameter: Parameter): boolean {
  const base = names.baseOf(parameter);
  const dtypes = ['weight', ...PACKED_SUFFIXES].map(
    (suffix) => names.table.tensors.get(`${base}.${suffix}`)?.dtype,
  );
  return dtypes.some((dtype) => dtype !== undefined && !(dtype in FLOAT_TYPES));
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
  schemes: Schemes = new Map(),
): Promise<Sources> {
  const names = new ParameterNames(family, table, spec.tieWordEmbeddings);
  const sources: ParameterSource[] = [];
  const used = new Set<string>();
  /** The scheme of each quantized module, by its name in the checkpoint. */
  const byBase = new Map<string, QuantizationScheme>();
  let totalBytes = 0;
  function* findSources() {
    for (const [index, parameter] of declared.entries()) {
      const scheme = schemes.get(moduleOf(parameter));
      // Scales of what is quantized when it is loaded, or of blocks that are repacked.
      const isMade = scheme?.tensors === 'float' || table.config !== undefined;
      if (isMade && parameter.part === 'scales') continue;
      refuseShare(table, names, parameter);
      const count = parameter.shape.reduce((product, dimension) => product * dimension.count, 1);
      for (const expert of expertsOf(parameter)) {
        const { whole, firstRow } = inTensor(names, declared, parameter);
        const { name, entry, dtype, layout } = lookUp(names, whole, expert, scheme);
        used.add(name);
        if (scheme) byBase.set(names.baseOf(parameter, expert), scheme);
        yield;
        // An empty share, such as a bias that only one rank adds, needs no load.
        if (count === 0 || !isLocal(parameter, expert)) continue;
        const { file, strides } = entry;
        refuseCutBlocks(table, name, entry, parameter);
        if (scheme?.tensors === 'float' && strides)
          throw new UnsupportedModelError(table.files[file], stackedAndQuantized(name));
        const wholeRows = whole.shape[0].size;
        const isInRows = layout === 'rows' && parameter.part !== 'order' && !strides;
        const rowBytes = isInRows ? entry.numBytes / wholeRows : 0;
        sources.push({
          parameter: index,
          ...(expert !== null && { expert }),
          file,
          offset: entry.offset + firstRow * rowBytes,
          dtype,
          ...(strides && { strides }),
          ...(layout !== 'rows' && { layout, wholeRows, firstRow }),
        });
        totalBytes += count * STORED_BYTES[dtype];
      }
    }
  }
  function* refuseOthers() {
    for (const [name, { file }] of table.tensors) {
      yield;
      if (used.has(name) || !(table.isComplete || isModuleTensor(name))) continue;
      if (spec.tieWordEmbeddings && isEmbedding(family, name)) continue;
      const dot = name.lastIndexOf('.');
      const scheme = byBase.get(name.slice(0, dot));
      if (scheme && isOptional(scheme, name.slice(dot + 1))) continue;
      throw new CheckpointError(table.files[file], notInModel(name, table, spec));
    }
  }
  await slicedWork.finish(findSources());
  await slicedWork.finish(refuseOthers());
  return { files: table.files, sources, totalBytes };
}

const stackedAndQuantized = (name: string) =>
  `tensor ${name} is a part of one that stacks the experts, which cannot be quantized; ` +
  'leave out the option quantization';

/** The parameter as the whole tensor that holds its rows, and the first of them. */
function inTensor(
  names: ParameterNames,
  declared: readonly Parameter[],
  parameter: Parameter,
): { whole: Parameter; firstRow: number } {
  const modules = names.modulesInTensorOf(parameter);
  // All rows of a tensor have one order of columns.
  if (modules.length === 1 || parameter.part === 'order') return { whole: parameter, firstRow: 0 };
  const parts = declared.filter(
    ({ layer, part, module }) =>
      layer === parameter.layer && part === parameter.part && modules.includes(module),
  );
  const rowsOf = (some: readonly Parameter[]) =>
    some.reduce((sum, { shape: [{ size }] }) => sum + size, 0);
  const [{ first, count }, ...others] = parameter.shape;
  const of = parts.map(({ shape: [rows] }) => rows.of).join(' + ');
  return {
    whole: { ...parameter, shape: [{ size: rowsOf(parts), of, first, count }, ...others] },
    firstRow: rowsOf(parts.slice(0, parts.indexOf(parameter))),
  };
}

function isLocal({ experts }: Parameter, expert: number | null): boolean {
  if (experts === null || expert === null) return true;
  return expert >= experts.first && expert < experts.first + experts.count;
}

function notInModel(
  name: string,
  { config }: TensorTable,
  { numLayers, experts }: Pick<TransformerSpec, 'numLayers' | 'experts'>,
): string {
  if (config) return `tensor ${name} is not part of the model that ${config} describe`;
  const message = `tensor ${name} is not part of the model that config.json describes; `;
  if (!/\.(weight|bias)$/.test(name)) {
    return `${message}only quantized matrices have it, as its quantization_config describes`;
  }
  const ofExperts = experts
    ? `num_experts (${experts.numExperts}), mlp_only_layers, decoder_sparse_step, `
    : '';
  return `${message}check its num_hidden_layers (${numLayers}), ${ofExperts}attention_bias and mlp_bias`;
}

function isEmbedding({ modules }: Family, name: string): boolean {
  return name === `${modules.embedding}.weight` || name === `${modules.head}.weight`;
}
