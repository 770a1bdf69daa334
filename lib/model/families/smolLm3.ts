/** SmolLM3 (Bakouch et al. 2025): Llama with layers that have no rotary embedding. */
import { CheckpointError } from '../../errors';
import { COMMON_DEFAULTS, type ConfigJson, DENSE_MODULES, type Family } from './family';
import { llama } from './llama';
import { windowsByLayer } from './qwen2';

export const smolLm3: Family = {
  modelType: 'smollm3',
  defaults: {
    ...COMMON_DEFAULTS,
    vocab_size: 128256,
    hidden_size: 2048,
    intermediate_size: 11008,
    num_hidden_layers: 36,
    num_attention_heads: 16,
    num_key_value_heads: 4,
    max_position_embeddings: 32768,
    rope_theta: 2000000,
    tie_word_embeddings: true,
    no_rope_layer_interval: 4,
    bos_token_id: 128000,
    eos_token_id: 128001,
  },
  ownKeys: ['no_rope_layers', 'layer_types'],
  readSpec: (file, json) => {
    const hasRope = readHasRope(file, json);
    // Without layer_types, the layers without rotary embedding have the window.
    const layerTypes = hasRope.map((has) => (has ? 'full_attention' : 'sliding_attention'));
    const hasWindow = json.use_sliding_window && (json.sliding_window ?? 0) > 0;
    const types = json.layer_types ?? (hasWindow ? layerTypes : layerTypes.fill('full_attention'));
    return {
      ...llama.readSpec(file, json),
      layerRopes: hasRope.map((has) => (has ? 0 : -1)),
      slidingWindows: windowsByLayer(file, { ...json, layer_types: types }),
    };
  },
  modules: DENSE_MODULES,
};

/** [numLayers] of no_rope_layers, in which 1 means that the layer has rotary embedding. */
export function readHasRope(file: string, json: ConfigJson): boolean[] {
  const { no_rope_layers: given, num_hidden_layers: numLayers } = json;
  const interval = json.no_rope_layer_interval ?? 4;
  if (!given) return Array.from({ length: numLayers }, (_, i) => (i + 1) % interval !== 0);
  if (given.length < numLayers) {
    throw new CheckpointError(
      file,
      `no_rope_layers has ${given.length} entries, but num_hidden_layers is ${numLayers}`,
    );
  }
  return given.slice(0, numLayers).map((has) => has === 1);
}
