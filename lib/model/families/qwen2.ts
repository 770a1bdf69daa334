/** Qwen2 (Yang et al. 2024): biases on q, k and v; optional sliding window per layer. */
import { show } from '../../config/schema';
import { CheckpointError, UnsupportedModelError } from '../../errors';
import { COMMON_DEFAULTS, type ConfigJson, DENSE_MODULES, type Family, plainSpec } from './family';

export const qwen2: Family = {
  modelType: 'qwen2',
  defaults: {
    ...COMMON_DEFAULTS,
    vocab_size: 151936,
    intermediate_size: 22016,
    num_key_value_heads: 32,
    max_position_embeddings: 32768,
    sliding_window: 4096,
  },
  ownKeys: ['layer_types'],
  readSpec: (file, json) => ({
    ...plainSpec(json),
    qkvBias: true,
    slidingWindows: windowsByLayer(file, json),
  }),
  modules: DENSE_MODULES,
};

/** Layers in `layer_types`, or from `max_window_layers` on, have the sliding window. */
export function windowsByLayer(file: string, json: ConfigJson): number[] {
  const window = (json.use_sliding_window && json.sliding_window) || 0;
  const numLayers = json.num_hidden_layers;
  if (!json.layer_types) {
    return Array.from({ length: numLayers }, (_, i) => (i >= json.max_window_layers ? window : 0));
  }
  if (json.layer_types.length !== numLayers) {
    throw new CheckpointError(
      file,
      `layer_types has ${json.layer_types.length} entries, but num_hidden_layers is ${numLayers}`,
    );
  }
  return json.layer_types.map((type, i) => {
    if (type === 'full_attention') return 0;
    if (type !== 'sliding_attention') {
      throw new UnsupportedModelError(
        file,
        `layer_types[${i}] is ${show(type)}; only 'full_attention' and 'sliding_attention' are supported`,
      );
    }
    if (window > 0) return window;
    throw new CheckpointError(
      file,
      `layer_types[${i}] is 'sliding_attention', but use_sliding_window is ` +
        `${json.use_sliding_window} and sliding_window is ${show(json.sliding_window)}`,
    );
  });
}
