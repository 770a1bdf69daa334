/** Granite 3 (IBM 2024): Llama with scales of embeddings, attention, residuals and logits. */
import { isPositiveFloat32 } from '../../config/schema';
import { CheckpointError } from '../../errors';
import { type ConfigJson, DENSE_MODULES, type Family } from './family';
import { llama } from './llama';

export const granite: Family = {
  modelType: 'granite',
  defaults: {
    ...llama.defaults,
    embedding_multiplier: 1,
    attention_multiplier: 1,
    residual_multiplier: 1,
    logits_scaling: 1,
  },
  ownKeys: [
    'embedding_multiplier',
    'attention_multiplier',
    'residual_multiplier',
    'logits_scaling',
  ],
  readSpec: (file, json) => ({
    ...llama.readSpec(file, json),
    embeddingScale: json.embedding_multiplier ?? 1,
    attentionScale: json.attention_multiplier ?? 1,
    residualScale: json.residual_multiplier ?? 1,
    logitScale: readLogitScale(file, json),
  }),
  modules: DENSE_MODULES,
};

/** The inverse of logits_scaling, which divides. */
function readLogitScale(file: string, { logits_scaling: divisor }: ConfigJson): number {
  const scale = 1 / (divisor ?? 1);
  if (isPositiveFloat32(scale)) return scale;
  throw new CheckpointError(
    file,
    `logits_scaling is ${divisor}; its inverse must be a number above 0, within float32`,
  );
}
