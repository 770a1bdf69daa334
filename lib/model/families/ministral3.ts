/** Ministral 3 (Mistral AI 2025): Mistral with Llama 4's temperature of attention in long contexts. */
import { show } from '../../config/schema';
import { CheckpointError } from '../../errors';
import type { ConfigJson, Family } from './family';
import { mistral } from './mistral';

export const ministral3: Family = {
  modelType: 'ministral3',
  defaults: {
    ...mistral.defaults,
    vocab_size: 131072,
    num_hidden_layers: 34,
    head_dim: 128,
    max_position_embeddings: 262144,
    rms_norm_eps: 1e-5,
    sliding_window: null,
    rope_parameters: {
      rope_type: 'yarn',
      rope_theta: 1000000,
      factor: 16,
      original_max_position_embeddings: 16384,
      beta_fast: 32,
      beta_slow: 1,
      mscale: 1,
      mscale_all_dim: 1,
      llama_4_scaling_beta: 0.1,
    },
  },
  readSpec: (file, json) => {
    const { key, rope } = sectionOf(json);
    const { llama_4_scaling_beta: beta, ...others } = rope;
    if (typeof beta !== 'number' || !Number.isFinite(Math.fround(beta)) || beta < 0) {
      throw new CheckpointError(
        file,
        `${key}: llama_4_scaling_beta is ${show(beta)}; it must be a number of at least 0`,
      );
    }
    const period = rope.original_max_position_embeddings ?? json.max_position_embeddings;
    return {
      ...mistral.readSpec(file, json),
      ropes: [{ ...json, [key]: others }],
      queryScaleBeta: beta,
      queryScalePeriod: period as number, // readRope checks it
    };
  },
  modules: mistral.modules,
};

function sectionOf({ rope_scaling: scaling, rope_parameters: parameters }: ConfigJson) {
  return Object.keys(scaling ?? {}).length > 0
    ? ({ key: 'rope_scaling', rope: scaling ?? {} } as const)
    : ({ key: 'rope_parameters', rope: parameters ?? {} } as const);
}
