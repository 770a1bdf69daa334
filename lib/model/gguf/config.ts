/** A model's configuration from its GGUF files. */
import { open } from 'node:fs/promises';
import { show } from '../../config/schema';
import type { TransformerConfig } from '../../config/uniprocConfig';
import { CheckpointError, UnsupportedModelError } from '../../errors';
import { familyOf } from '../registry';
import type { Family } from '../families/family';
import type { TensorEntry } from '../safetensors';
import { parseTransformerConfig } from '../transformerConfig';
import {
  commonConfig,
  type GgufArchitecture,
  type ModelFacts,
  MODULES,
  SIZE_KEYS,
} from './architecture';
import { ARCHITECTURES } from './architectures';
import { refuseIgnored } from './ignoredKeys';
import { type GgufModel, readGgufModel } from './files';

/** Tensors whose values are a part of the configuration, and their largest size. */
const FACTORS = ['rope_freqs.weight', 'rope_factors_long.weight', 'rope_factors_short.weight'];
const MAX_FACTORS = 4096;

/** Tensors that no module has. */
export const OTHER_TENSORS: ReadonlySet<string> = new Set(FACTORS);

/** Types of a model's matrices that it can compute in; null: another type. */
const DTYPES: Readonly<Record<string, 'float32' | 'float16' | 'bfloat16' | undefined>> = {
  F32: 'float32',
  F16: 'float16',
  BF16: 'bfloat16',
};

/**
 * Reads the configuration of the model whose first file is `file`. `dtype` is the type of its embedding
 * if that is a float type. Rejects with CheckpointError and UnsupportedModelError, which name the key
 * or the tensor.
 */
export async function readGgufConfig(file: string): Promise<TransformerConfig> {
  const model = await readGgufModel(file);
  const name = model.metadata.requiredText('general.architecture');
  const type = model.metadata.text('general.type') ?? 'model';
  if (type !== 'model') {
    throw new UnsupportedModelError(
      file,
      `metadata 'general.type' is ${show(type)}; only models are supported`,
    );
  }
  const architecture = architectureOf(file, name);
  const facts = await factsOf(model, name);
  const common = commonConfig(facts);
  const dtype = DTYPES[model.tensors.get('token_embd.weight')?.dtype ?? ''] ?? null;
  const json = {
    architectures: [architecture.architecture(facts)],
    dtype,
    ...common,
    ...architecture.config?.(facts, common),
  };
  refuseIgnored(facts);
  const config = parseTransformerConfig(file, json);
  const spec = architecture.addsOneToNorms ? { ...config.spec, normOffset: 0 } : config.spec;
  const partial = spec.ropes.find(({ rotaryDim }) => rotaryDim !== spec.headDim);
  if (architecture.isInterleaved && partial) {
    throw new UnsupportedModelError(
      file,
      `metadata '${name}.rope.dimension_count' is ${partial.rotaryDim}; with architecture ` +
        `'${name}' only the size of a head, ${spec.headDim}, is supported`,
    );
  }
  return { ...config, spec, gguf: name };
}

/** Throws UnsupportedModelError for an architecture that is not supported. */
function architectureOf(file: string, name: string): GgufArchitecture {
  const architecture = ARCHITECTURES.get(name);
  if (architecture) return architecture;
  throw new UnsupportedModelError(
    file,
    `metadata 'general.architecture' is ${show(name)}, which is not supported; supported: ` +
      [...ARCHITECTURES.keys()].join(', '),
  );
}

async function factsOf(model: GgufModel, name: string): Promise<ModelFacts> {
  const { files, metadata, endTokens, tensors } = model;
  const values = new Map<string, number[]>();
  for (const tensor of FACTORS) {
    const entry = tensors.get(tensor);
    if (entry) values.set(tensor, await readFactors(files[entry.file], tensor, entry));
  }
  return { metadata, name, endTokens, tensors, factors: (tensor) => values.get(tensor) ?? null };
}

async function readFactors(file: string, name: string, entry: TensorEntry): Promise<number[]> {
  const { dtype, shape, offset, numBytes } = entry;
  if (dtype !== 'F32' || shape.length !== 1 || shape[0] > MAX_FACTORS) {
    throw new CheckpointError(
      file,
      `tensor ${name} is ${dtype} of shape ${show(shape)}; it must be F32 of at most ${MAX_FACTORS} elements`,
    );
  }
  const handle = await open(file, 'r');
  try {
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(numBytes), 0, numBytes, offset);
    if (bytesRead < numBytes) throw new CheckpointError(file, `it ended within tensor ${name}`);
    return Array.from({ length: shape[0] }, (_, i) => buffer.readFloatLE(4 * i));
  } finally {
    await handle.close();
  }
}

/** The family of a supported architecture, with the file's names of its modules. */
export function ggufFamilyOf(architecture: string, gguf: string): Family {
  const { modules = {} } = ARCHITECTURES.get(gguf) as GgufArchitecture;
  const family = familyOf(architecture);
  const names = { ...MODULES, ...modules };
  return {
    ...family,
    modules: Object.fromEntries(
      Object.keys(family.modules).map((module) => [module, names[module]]),
    ),
    configKeys: SIZE_KEYS,
    renameTensors: undefined, // readGgufTable does
  };
}

export function isInterleaved(gguf: string): boolean {
  return ARCHITECTURES.get(gguf)?.isInterleaved ?? false;
}
