/** Qwen3 (Yang et al. 2025): query and key norms in place of Qwen2's biases. */
import { type ConfigJson, DENSE_MODULES, type Family, type FamilySpec, plainSpec } from './family';
import { qwen2, windowsByLayer } from './qwen2';

export const qwen3: Family = {
  modelType: 'qwen3',
  defaults: { ...qwen2.defaults, head_dim: 128 },
  ownKeys: ['layer_types'],
  readSpec: readQwen3Spec,
  modules: DENSE_MODULES,
};

export function readQwen3Spec(file: string, json: ConfigJson): FamilySpec {
  return {
    ...plainSpec(json),
    qkvBias: json.attention_bias,
    outputBias: json.attention_bias,
    qkNorm: 'head',
    slidingWindows: windowsByLayer(file, json),
  };
}
