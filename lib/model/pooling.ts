/**
 * Whether a checkpoint is an embedding model, by sentence-transformers' files, as vLLM tells:
 * `modules.json` lists a transformer, its pooling and the normalisation of the result.
 */
import path from 'node:path';
import { fileExists, parseJson, readJsonObject, readText } from '../config/jsonFile';
import { show } from '../config/schema';
import type { PoolingConfig, TransformerConfig } from '../config/uniprocConfig';
import { CheckpointError, UnsupportedModelError } from '../errors';
import type { TensorEntry, TensorTable } from './safetensors';

/** Architectures whose embeddings are proved against transformers. */
const ARCHITECTURES = ['Qwen3ForCausalLM'];

const POOLINGS = 'pooling_mode_';

/**
 * The pooling of the embedding model in `folder`; null: the model generates. Rejects with CheckpointError,
 * and with UnsupportedModelError for another pooling than that of the last token, or another module.
 */
export async function readPooling(
  folder: string,
  { architecture }: Pick<TransformerConfig, 'architecture'>,
): Promise<PoolingConfig | null> {
  const file = path.join(folder, 'modules.json');
  if (!(await fileExists(file))) return null;
  const modules = await readModules(file);
  const pooling = modules.find(({ kind }) => kind === 'Pooling');
  if (pooling === undefined) return null;
  if (!ARCHITECTURES.includes(architecture)) {
    throw new UnsupportedModelError(
      file,
      `embedding models of architecture ${architecture} are not supported; supported: ${ARCHITECTURES.join(', ')}`,
    );
  }
  const other = modules.find(({ kind }) => !['Transformer', 'Pooling', 'Normalize'].includes(kind));
  if (other !== undefined) {
    throw new UnsupportedModelError(
      file,
      `the module ${show(other.kind)} is not supported; supported: Transformer, Pooling, Normalize`,
    );
  }
  await requireLastToken(path.join(folder, pooling.path, 'config.json'));
  return { normalize: modules.some(({ kind }) => kind === 'Normalize') };
}

async function readModules(file: string): Promise<{ kind: string; path: string }[]> {
  const list = parseJson(file, await readText(file));
  if (!Array.isArray(list))
    throw new CheckpointError(file, `it is ${show(list)}; it must be a list`);
  return list.map((each: unknown, i) => {
    const { type, path: folder } = (each ?? {}) as Record<string, unknown>;
    if (typeof type !== 'string' || typeof folder !== 'string' || !/^[\w-]*$/.test(folder)) {
      throw new CheckpointError(
        file,
        `module ${i} is ${show(each)}; it must have a type and a path of one folder`,
      );
    }
    // 'sentence_transformers.models.Pooling'
    return { kind: type.slice(type.lastIndexOf('.') + 1), path: folder };
  });
}

async function requireLastToken(file: string): Promise<void> {
  const config = await readJsonObject(file);
  const modes = Object.keys(config).filter(
    (key) => key.startsWith(POOLINGS) && config[key] === true,
  );
  if (modes.length === 1 && modes[0] === `${POOLINGS}lasttoken`) return;
  const names = modes.map((mode) => mode.slice(POOLINGS.length)).join(', ');
  throw new UnsupportedModelError(
    file,
    `the pooling is ${names || '(none)'}; it must be lasttoken, the only one that is supported`,
  );
}

/**
 * An embedding model's tensors: without an output head, and under the names of a language model where the
 * transformer was stored alone.
 */
export function* embeddingTensors({
  tensors,
}: TensorTable): Generator<void, Map<string, TensorEntry>> {
  const isAlone = tensors.has('embed_tokens.weight');
  const named = new Map<string, TensorEntry>();
  for (const [name, entry] of tensors) {
    yield;
    if (!name.startsWith('lm_head.')) named.set(isAlone ? `model.${name}` : name, entry);
  }
  return named;
}
