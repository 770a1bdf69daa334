/** The language model of a multimodal checkpoint, which `languageModelOnly` loads alone, as in vLLM. */
import { show } from '../config/schema';
import { CheckpointError, UnsupportedModelError } from '../errors';
import { slicedWork } from '../slicedWork';
import type { TensorEntry, TensorTable } from './safetensors';

/** By architecture: its model_type, and that of its text_config if it names none. */
const MULTIMODAL = new Map([
  ['Mistral3ForConditionalGeneration', { modelType: 'mistral3', textType: 'mistral' }],
  ['Llama4ForConditionalGeneration', { modelType: 'llama4', textType: 'llama4_text' }],
  ['Gemma3ForConditionalGeneration', { modelType: 'gemma3', textType: 'gemma3_text' }],
  ['Gemma4ForConditionalGeneration', { modelType: 'gemma4', textType: 'gemma4_text' }],
]);

/** Keys of the whole model that apply to its language model. */
const SHARED_KEYS = [
  'dtype',
  'torch_dtype',
  'tie_word_embeddings',
  'quantization_config',
  'bos_token_id',
  'eos_token_id',
];

/** Prefixes of the language model's tensors, as published and as transformers 5 writes them. */
const PREFIXES = [
  ['language_model.', ''],
  ['model.language_model.', 'model.'],
] as const;

export interface TextConfig {
  /** The language model's config.json. */
  json: Record<string, unknown>;
  /** The architecture that the language model is a part of; null: it is the whole model. */
  multimodal: string | null;
}

/**
 * The language model's part of `given`, the content of `file`. Throws UnsupportedModelError for a
 * multimodal model unless `languageModelOnly`, and CheckpointError without a text_config.
 */
export function readTextConfig(
  file: string,
  given: Record<string, unknown>,
  languageModelOnly: boolean,
): TextConfig {
  const names = Array.isArray(given.architectures) ? (given.architectures as unknown[]) : null;
  const found = [...MULTIMODAL].find(([name, { modelType }]) =>
    names ? names.includes(name) : given.model_type === modelType,
  );
  if (!found) return { json: given, multimodal: null };
  const [multimodal, { modelType, textType }] = found;
  if ((given.model_type ?? modelType) !== modelType) {
    throw new UnsupportedModelError(
      file,
      `model_type ${show(given.model_type)} is not supported with architecture ${multimodal}; ` +
        `it must be ${show(modelType)}`,
    );
  }
  if (!languageModelOnly) {
    throw new UnsupportedModelError(
      file,
      `architecture ${multimodal} takes images, which are not supported; ` +
        'set the option languageModelOnly to load its language model alone',
    );
  }
  const text = given.text_config;
  if (typeof text !== 'object' || text === null || Array.isArray(text)) {
    throw new CheckpointError(file, `text_config is ${show(text)}; it must be an object`);
  }
  const shared = SHARED_KEYS.filter((key) => (given[key] ?? null) !== null);
  return {
    json: {
      ...text,
      model_type: (text as Record<string, unknown>).model_type ?? textType,
      architectures: null,
      ...Object.fromEntries(shared.map((key) => [key, given[key]])),
    },
    multimodal,
  };
}

/**
 * The language model's tensors under the names of a text model, and the number of other tensors by
 * their module. Works in slices, as a header may name a million tensors.
 */
export async function languageModelOf(table: TensorTable): Promise<{
  table: TensorTable;
  leftOut: Map<string, number>;
}> {
  const tensors = new Map<string, TensorEntry>();
  const leftOut = new Map<string, number>();
  function* divide() {
    for (const [name, entry] of table.tensors) {
      yield;
      const prefix = PREFIXES.find(([theirs]) => name.startsWith(theirs));
      if (prefix) {
        tensors.set(prefix[1] + name.slice(prefix[0].length), entry);
      } else if (name.startsWith('lm_head.')) {
        tensors.set(name, entry);
      } else {
        const [module] = /^(model\.)?[^.]+/.exec(name) ?? [name];
        leftOut.set(module, (leftOut.get(module) ?? 0) + 1);
      }
    }
  }
  await slicedWork.finish(divide());
  return { table: { ...table, tensors }, leftOut };
}
