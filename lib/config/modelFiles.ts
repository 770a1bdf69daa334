/** Reads the configuration of a model from its folder or its GGUF file. */
import { readGgufConfig } from '../model/gguf/config';
import { isGguf } from '../model/gguf/files';
import { readTransformerConfig } from '../model/transformerConfig';
import { readEosTokenIds } from './eosTokenIds';
import { type GenerationConfig, readGenerationConfig } from './generationConfig';
import type { TransformerConfig } from './uniprocConfig';

type Device = 'cpu' | 'cuda';

/** Options that change what is read. */
interface Args {
  languageModelOnly?: boolean;
  eosTokenIds?: readonly number[];
}

/** A model's configuration, of all files that have a part of it. */
export interface ModelFiles {
  transformer: TransformerConfig;
  generation: GenerationConfig;
  eosTokenIds: readonly number[];
}

async function readFolder(folder: string, args: Args): Promise<ModelFiles> {
  const { namesEos, ...transformer } = await readTransformerConfig(folder, args.languageModelOnly);
  const generation = await readGenerationConfig(folder, transformer.spec.vocabSize);
  const eosTokenIds =
    args.eosTokenIds ?? (await readEosTokenIds(folder, generation, transformer, namesEos));
  return { transformer, generation, eosTokenIds };
}

/** Of a quantized GGUF model, whose norms and other vectors are not rounded on the CPU. */
const QUANTIZED_DTYPE = { cpu: 'float32', cuda: 'bfloat16' } as const;

async function readGguf(file: string, args: Args, device: Device): Promise<ModelFiles> {
  const transformer = await readGgufConfig(file);
  const eosTokenIds = args.eosTokenIds ?? transformer.eosTokenIds;
  return {
    transformer: { ...transformer, dtype: transformer.dtype ?? QUANTIZED_DTYPE[device] },
    generation: { defaults: {}, eosTokenIds: null },
    eosTokenIds,
  };
}

/** `model`: what checkModel resolves to. Rejects with CheckpointError and UnsupportedModelError. */
export async function readModelFiles(
  model: string,
  args: Args,
  device: Device,
): Promise<ModelFiles> {
  return isGguf(model) ? readGguf(model, args, device) : readFolder(model, args);
}
