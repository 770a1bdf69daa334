/** Phi-3 (Abdin et al. 2024) and Phi-4: Llama with one tensor for q, k and v, and one for gate and up. */
import { show } from '../../config/schema';
import { UnsupportedModelError } from '../../errors';
import type { RopeJson } from '../rope';
import { COMMON_DEFAULTS, type ConfigJson, DENSE_MODULES, type Family, plainSpec } from './family';

const LAYER = 'model.layers.{layer}';
const QKV = `${LAYER}.self_attn.qkv_proj`;
const GATE_UP = `${LAYER}.mlp.gate_up_proj`;

export const phi3: Family = {
  modelType: 'phi3',
  defaults: {
    ...COMMON_DEFAULTS,
    vocab_size: 32064,
    hidden_size: 3072,
    intermediate_size: 8192,
    rms_norm_eps: 1e-5,
    max_position_embeddings: 4096,
    original_max_position_embeddings: 4096,
    bos_token_id: 1,
    eos_token_id: 32000,
  },
  readSpec: (file, json) => {
    const spec = plainSpec(json);
    spec.slidingWindows.fill(json.sliding_window ?? 0);
    return { ...spec, ropes: [readLongRope(file, json)] };
  },
  modules: {
    ...DENSE_MODULES,
    'attention.q': QKV,
    'attention.k': QKV,
    'attention.v': QKV,
    'mlp.gate': GATE_UP,
    'mlp.up': GATE_UP,
  },
};

/** Only longrope; early checkpoints call it 'su' or 'yarn'. */
function readLongRope(file: string, json: ConfigJson): RopeJson {
  const key = Object.keys(json.rope_scaling ?? {}).length > 0 ? 'rope_scaling' : 'rope_parameters';
  const rope = json[key] ?? {};
  const type = rope.rope_type ?? rope.type ?? 'default';
  if (type === 'default') return json;
  if (type === 'longrope' || type === 'su' || type === 'yarn') {
    return { ...json, [key]: { ...rope, rope_type: 'longrope' } };
  }
  throw new UnsupportedModelError(
    file,
    `rope type ${show(type)} is not supported with model_type 'phi3'; only longrope is`,
  );
}
