/** OLMo 3 (Olmo Team 2025): OLMo 2 with sliding windows, and scaled positions in the other layers. */
import { show } from '../../config/schema';
import { CheckpointError, UnsupportedModelError } from '../../errors';
import type { RopeJson } from '../rope';
import type { ConfigJson, Family } from './family';
import { olmo2, olmoSpec } from './olmo2';
import { windowsByLayer } from './qwen2';

const THETA = 500000;

export const olmo3: Family = {
  modelType: 'olmo3',
  defaults: { ...olmo2.defaults, sliding_window: 4096 },
  ownKeys: ['layer_types'],
  readSpec: (file, json) => {
    const types =
      json.layer_types ??
      Array.from({ length: json.num_hidden_layers }, (_, i) =>
        (i + 1) % 4 === 0 ? 'full_attention' : 'sliding_attention',
      );
    const slidingWindows = windowsByLayer(file, {
      ...json,
      use_sliding_window: true,
      layer_types: types,
    });
    return {
      ...olmoSpec(json),
      ropes: readRopes(file, json),
      layerRopes: slidingWindows.map((window) => (window > 0 ? 1 : 0)),
      slidingWindows,
    };
  },
  modules: olmo2.modules,
};

/** Of full attention, which is scaled, and of sliding windows. */
function readRopes(file: string, json: ConfigJson): RopeJson[] {
  const { rope_parameters: byType, rope_scaling: scaling, rope_theta: theta } = json;
  if (byType && scaling) {
    throw new UnsupportedModelError(file, 'rope_scaling and rope_parameters exclude each other');
  }
  if (byType) {
    return ['full_attention', 'sliding_attention'].map((type) => {
      const own = byType[type];
      if (typeof own !== 'object' || own === null || Array.isArray(own)) {
        throw new CheckpointError(
          file,
          `rope_parameters: ${type} is ${show(own)}; it must be an object`,
        );
      }
      return {
        ...json,
        rope_theta: theta ?? THETA,
        rope_parameters: own as Record<string, unknown>,
      };
    });
  }
  // transformers then has this base in one kind of layer, vLLM in both.
  if ((theta ?? THETA) !== THETA) {
    throw new UnsupportedModelError(
      file,
      `rope_theta ${theta} is not supported outside rope_parameters; only ${THETA} is`,
    );
  }
  const plain = { ...json, rope_theta: THETA, rope_scaling: null };
  return [{ ...plain, rope_scaling: scaling }, plain];
}
