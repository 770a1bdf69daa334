/** Ministral (Mistral AI 2024): Mistral with the sliding window in some layers. */
import { DENSE_MODULES, type Family, plainSpec } from './family';
import { mistral } from './mistral';
import { windowsByLayer } from './qwen2';

export const ministral: Family = {
  modelType: 'ministral',
  defaults: mistral.defaults,
  ownKeys: ['layer_types'],
  readSpec: (file, json) => {
    const spec = plainSpec(json);
    if (!json.layer_types) {
      spec.slidingWindows.fill(json.sliding_window ?? 0);
      return spec;
    }
    return { ...spec, slidingWindows: windowsByLayer(file, { ...json, use_sliding_window: true }) };
  },
  modules: DENSE_MODULES,
};
