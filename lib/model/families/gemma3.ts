/** Gemma 3 (Gemma Team 2025): Gemma 2 with norms of queries and keys, and rope by kind of layer. */
import { show } from '../../config/schema';
import { CheckpointError, UnsupportedModelError } from '../../errors';
import type { RopeJson } from '../rope';
import type { ConfigJson, Family } from './family';
import { gemma2, GEMMA_DEFAULTS, GEMMA_OWN_KEYS, readGemmaSpec } from './gemma2';

const GLOBAL_THETA = 1000000;
const LOCAL_THETA = 10000;
/** Every sixth layer attends to all tokens. */
const PATTERN = 6;

export const gemma3: Family = {
  modelType: 'gemma3_text',
  defaults: { ...GEMMA_DEFAULTS, vocab_size: 262208, max_position_embeddings: 131072 },
  ownKeys: GEMMA_OWN_KEYS,
  readSpec: (file, json) => {
    const spec = readGemmaSpec(file, json, json.sliding_window_pattern ?? PATTERN);
    return {
      ...spec,
      qkNorm: 'head',
      ropes: readRopes(file, json),
      layerRopes: spec.slidingWindows.map((window) => (window > 0 ? 1 : 0)),
      // Not multiplied by the scaling's factor, which they include.
      maxPositions: json.max_position_embeddings,
    };
  },
  modules: gemma2.modules,
};

/** Of full attention, which may be scaled, and of sliding windows. */
export function readRopes(file: string, json: ConfigJson): RopeJson[] {
  const { rope_parameters: byType, rope_scaling: scaling } = json;
  if (byType && scaling) {
    throw new UnsupportedModelError(file, 'rope_scaling and rope_parameters exclude each other');
  }
  const ropeOf = (type: string, theta: number, own: Record<string, unknown> | null): RopeJson => {
    const section = byType ? (byType[type] ?? {}) : (own ?? {});
    if (typeof section !== 'object' || Array.isArray(section)) {
      throw new CheckpointError(
        file,
        `rope_parameters: ${type} is ${show(section)}; it must be an object`,
      );
    }
    return {
      ...json,
      rope_theta: theta,
      rope_scaling: null,
      rope_parameters: section as Record<string, unknown>,
    };
  };
  const flat = Object.keys(byType ?? {}).find((key) => !key.endsWith('_attention'));
  if (flat !== undefined) {
    throw new UnsupportedModelError(
      file,
      `rope_parameters has ${flat}; it must have full_attention and sliding_attention`,
    );
  }
  return [
    ropeOf('full_attention', json.rope_theta ?? GLOBAL_THETA, scaling ?? null),
    ropeOf('sliding_attention', json.rope_local_base_freq ?? LOCAL_THETA, null),
  ];
}
