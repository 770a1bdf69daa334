/** Converts a Hugging Face checkpoint of one safetensors file to GGUF, as llama.cpp's script does. */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { BF16, F32, gguf, type Tensor, type Value } from './ggufFile';

type Config = Record<string, unknown>;

interface Matrix {
  shape: number[];
  values: Float32Array;
}

/** The name of each module's tensors in an architecture; later patterns are of some alone. */
const COMMON: [RegExp, string][] = [
  [/^model\.embed_tokens/, 'token_embd'],
  [/^model\.norm/, 'output_norm'],
  [/^lm_head/, 'output'],
  [/\.input_layernorm/, '.attn_norm'],
  [/\.self_attn\.(q|k|v)_proj/, '.attn_$1'],
  [/\.self_attn\.qkv_proj/, '.attn_qkv'],
  [/\.self_attn\.(q|k)_norm/, '.attn_$1_norm'],
  [/\.self_attn\.o_proj/, '.attn_output'],
  [/\.self_attn\.sinks$/, '.attn_sinks.weight'],
  [/\.mlp\.gate_up_proj/, '.ffn_up'],
  [/\.mlp\.(gate|up|down)_proj/, '.ffn_$1'],
  [/\.mlp\.shared_expert_gate/, '.ffn_gate_inp_shexp'],
  [/\.mlp\.shared_experts?\.(gate|up|down)_proj/, '.ffn_$1_shexp'],
  [/\.mlp\.gate\.e_score_correction_bias/, '.exp_probs_b.bias'],
  [/\.(mlp\.gate|mlp\.router|block_sparse_moe\.gate)\./, '.ffn_gate_inp.'],
  [/\.pre_feedforward_layernorm/, '.ffn_norm'],
  [/\.post_feedforward_layernorm/, '.post_ffw_norm'],
];
const FFN_NORM: [RegExp, string] = [/\.post_attention_layernorm/, '.ffn_norm'];
const POST_NORM: [RegExp, string] = [/\.post_attention_layernorm/, '.post_attention_norm'];

const WITH_POST_NORM = new Set(['gemma2', 'gemma3', 'olmo2', 'gpt-oss', 'glm4moe']);
const PERMUTED = new Set(['llama', 'granite', 'smollm3', 'mistral3']);

const EXPERT = /\.experts\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight$/;
const EXPERT_PARTS: Record<string, string> = {
  gate_proj: 'gate', up_proj: 'up', down_proj: 'down', w1: 'gate', w2: 'down', w3: 'up',
}; // prettier-ignore

function readSafetensors(file: string): Map<string, Matrix> {
  const bytes = readFileSync(file);
  const end = 8 + Number(bytes.readBigUInt64LE());
  const header = JSON.parse(bytes.toString('utf8', 8, end)) as Record<
    string,
    { dtype: string; shape: number[]; data_offsets: [number, number] }
  >;
  const tensors = new Map<string, Matrix>();
  for (const [name, { dtype, shape, data_offsets: offsets }] of Object.entries(header)) {
    // Of a multimodal model, the language model alone.
    if (name === '__metadata__' || /vision|projector/.test(name)) continue;
    const data = bytes.subarray(end + offsets[0], end + offsets[1]);
    const size = dtype === 'BF16' ? 2 : 4;
    if (size === 4 && dtype !== 'F32') throw new Error(`${name} is ${dtype}`);
    const values = Float32Array.from({ length: data.length / size }, (_, i) => {
      if (size === 4) return data.readFloatLE(4 * i);
      const word = Buffer.alloc(4);
      word.writeUInt16LE(data.readUInt16LE(2 * i), 2);
      return word.readFloatLE();
    });
    tensors.set(name.replace(/^model\.language_model\.|^language_model\.model\./, 'model.'), {
      shape,
      values,
    });
  }
  return tensors;
}

/** Rows 2 * i and 2 * i + 1 of each head are its rows i and i + half. */
function permuted({ shape, values }: Matrix, numHeads: number): Matrix {
  const cols = shape[1] ?? 1;
  const headDim = shape[0] / numHeads;
  const out = new Float32Array(values.length);
  for (let row = 0; row < shape[0]; row++) {
    const inHead = row % headDim;
    const from = row - inHead + (inHead % 2) * (headDim / 2) + Math.floor(inHead / 2);
    out.set(values.subarray(from * cols, (from + 1) * cols), row * cols);
  }
  return { shape, values: out };
}

/** Every `step`-th column from `first` of each expert, transposed: gpt-oss. */
function unstacked({ shape, values }: Matrix, first: number, step: number): Matrix {
  const [experts, ...inner] = shape;
  const [cols, width] = inner.length === 1 ? [1, inner[0]] : inner;
  const rows = width / step;
  const out = new Float32Array(experts * rows * cols);
  for (let e = 0; e < experts; e++) {
    for (let row = 0; row < rows; row++) {
      for (let col = 0; col < cols; col++) {
        out[(e * rows + row) * cols + col] = values[(e * cols + col) * width + first + row * step];
      }
    }
  }
  return { shape: inner.length === 1 ? [experts, rows] : [experts, rows, cols], values: out };
}

/** In bfloat16 where that is exact, as the checkpoint's own, else in float32. */
function tensorOf(name: string, { shape, values }: Matrix): Tensor {
  const bytes = Buffer.from(values.buffer, values.byteOffset, values.byteLength);
  const isVector = shape.length === 1 || name.endsWith('.bias') || name.includes('ffn_gate_inp');
  const isExact = values.every((_, i) => bytes.readUInt16LE(4 * i) === 0);
  if (isVector || !isExact) return { type: F32, shape, data: bytes };
  const data = Buffer.alloc(2 * values.length);
  values.forEach((_, i) => data.writeUInt16LE(bytes.readUInt16LE(4 * i + 2), 2 * i));
  return { type: BF16, shape, data };
}

/** Under the architecture's names, and in its orders. */
function rename(arch: string, config: Config, from: Map<string, Matrix>): Map<string, Matrix> {
  const names = [...COMMON, WITH_POST_NORM.has(arch) ? POST_NORM : FFN_NORM];
  const out = new Map<string, Matrix>();
  const stacks = new Map<string, Matrix[]>();
  for (const [name, given] of from) {
    const layer = /^model\.layers\.(\d+)\./.exec(name)?.[1];
    const ofExpert = EXPERT.exec(name);
    if (ofExpert) {
      const [, expert, part] = ofExpert;
      const stack = `blk.${layer}.ffn_${EXPERT_PARTS[part]}_exps.weight`;
      const list = stacks.get(stack) ?? [];
      list[Number(expert)] = given;
      stacks.set(stack, list);
      continue;
    }
    const ofStack = /\.experts\.(gate_up|down)_proj(_bias)?$/.exec(name);
    if (ofStack) {
      const [, stacked, bias] = ofStack;
      const suffix = `_exps.${bias ? 'bias' : 'weight'}`;
      if (stacked === 'down') out.set(`blk.${layer}.ffn_down${suffix}`, unstacked(given, 0, 1));
      else {
        out.set(`blk.${layer}.ffn_gate${suffix}`, unstacked(given, 0, 2));
        out.set(`blk.${layer}.ffn_up${suffix}`, unstacked(given, 1, 2));
      }
      continue;
    }
    const found = names.find(([pattern]) => pattern.test(name));
    if (found === undefined) throw new Error(`no GGUF name for ${name}`);
    const renamed = name.replace(...found).replace(/^model\.layers\./, 'blk.');
    let matrix = given;
    const isKey = /attn_k\./.test(renamed);
    if (PERMUTED.has(arch) && (isKey || /attn_q\./.test(renamed))) {
      const heads = isKey ? config.num_key_value_heads : config.num_attention_heads;
      matrix = permuted(given, heads as number);
    }
    if (arch.startsWith('gemma') && renamed.includes('norm')) {
      matrix = { shape: given.shape, values: given.values.map((value) => value + 1) };
    }
    if (/ffn_gate_inp_shexp/.test(renamed)) matrix = { ...matrix, shape: matrix.shape.slice(1) };
    out.set(renamed, matrix);
  }
  for (const [name, list] of stacks) {
    const values = new Float32Array(list.length * list[0].values.length);
    list.forEach((own, i) => values.set(own.values, i * own.values.length));
    out.set(name, { shape: [list.length, ...list[0].shape], values });
  }
  return out;
}

function metadataOf(arch: string, config: Config): Record<string, Value> {
  const out: Record<string, Value> = { 'general.architecture': { text: arch } };
  const set = (key: string, value: unknown, type: 'u32' | 'f32' = 'u32') => {
    if (value !== undefined && value !== null) out[`${arch}.${key}`] = { [type]: value } as Value;
  };
  const heads = config.num_attention_heads as number;
  const headDim = (config.head_dim as number | undefined) ?? (config.hidden_size as number) / heads;
  const predicted = (config.num_nextn_predict_layers as number | undefined) ?? 0;
  set('block_count', (config.num_hidden_layers as number) + predicted);
  if (predicted > 0) set('nextn_predict_layers', predicted);
  set('context_length', config.max_position_embeddings);
  set('embedding_length', config.hidden_size);
  set('feed_forward_length', config.intermediate_size);
  set('attention.head_count', heads);
  set('attention.head_count_kv', config.num_key_value_heads);
  if (config.head_dim) {
    set('attention.key_length', headDim);
    set('attention.value_length', headDim);
  }
  set('attention.layer_norm_rms_epsilon', config.rms_norm_eps, 'f32');
  const rope = { ...(config.rope_parameters as Config), ...(config.rope_scaling as Config) };
  set('rope.freq_base', config.rope_theta ?? rope.rope_theta, 'f32');
  set(
    'rope.dimension_count',
    headDim * ((config.partial_rotary_factor as number | undefined) ?? 1),
  );
  const type = (rope.rope_type ?? rope.type ?? 'default') as string;
  if (type === 'linear' || type === 'yarn') {
    out[`${arch}.rope.scaling.type`] = { text: type };
    set('rope.scaling.factor', rope.factor, 'f32');
    set('rope.scaling.original_context_length', rope.original_max_position_embeddings);
    set('rope.scaling.yarn_beta_fast', rope.beta_fast, 'f32');
    set('rope.scaling.yarn_beta_slow', rope.beta_slow, 'f32');
    set('rope.scaling.yarn_log_multiplier', rope.mscale_all_dim, 'f32');
    set('rope.scaling.attn_factor', rope.attention_factor, 'f32');
  }
  set('attention.temperature_scale', rope.llama_4_scaling_beta, 'f32');
  if (arch === 'olmo2' && config.layer_types) {
    const bools = (config.layer_types as string[]).map((each) => each === 'sliding_attention');
    out['olmo2.attention.sliding_window_pattern'] = { bools };
  }
  if (type === 'longrope') {
    const original = config.original_max_position_embeddings as number;
    const scale = (config.max_position_embeddings as number) / original;
    set('rope.scaling.original_context_length', original);
    const factor = Math.sqrt(1 + Math.log(scale) / Math.log(original));
    set('rope.scaling.attn_factor', factor, 'f32');
  }
  if (config.use_sliding_window !== false) set('attention.sliding_window', config.sliding_window);
  set('attention.sliding_window_pattern', config.sliding_window_pattern);
  set('rope.freq_base_swa', config.rope_local_base_freq, 'f32');
  const scalar = config.query_pre_attn_scalar as number | undefined;
  if (scalar) set('attention.scale', 1 / Math.sqrt(scalar), 'f32');
  set('attn_logit_softcapping', config.attn_logit_softcapping, 'f32');
  set('final_logit_softcapping', config.final_logit_softcapping, 'f32');
  set('attention.scale', config.attention_multiplier, 'f32');
  set('embedding_scale', config.embedding_multiplier, 'f32');
  set('residual_scale', config.residual_multiplier, 'f32');
  set('logit_scale', config.logits_scaling, 'f32');
  const numExperts = config.num_experts ?? config.num_local_experts ?? config.n_routed_experts;
  set('expert_count', numExperts);
  set('expert_used_count', numExperts === undefined ? undefined : config.num_experts_per_tok);
  set('expert_feed_forward_length', config.moe_intermediate_size);
  if (arch === 'gpt-oss') set('expert_feed_forward_length', config.intermediate_size);
  set('expert_shared_feed_forward_length', config.shared_expert_intermediate_size);
  if (arch === 'glm4moe') {
    set('expert_gating_func', 2);
    set('expert_shared_count', config.n_shared_experts);
    set('leading_dense_block_count', config.first_k_dense_replace);
    set('expert_weights_scale', config.routed_scaling_factor, 'f32');
    set('expert_group_count', config.n_group);
    set('expert_group_used_count', config.topk_group);
  }
  return out;
}

/** The wavelengths' factors of Llama 3.1: what llama.cpp computes for `rope_freqs.weight`. */
function ropeFrequencies(config: Config): Matrix | null {
  const rope = config.rope_scaling as Record<string, number | string> | null | undefined;
  if (rope?.rope_type !== 'llama3') return null;
  const headDim = config.head_dim as number;
  const [factor, low, high, original] = [
    'factor',
    'low_freq_factor',
    'high_freq_factor',
    'original_max_position_embeddings',
  ].map((key) => Number(rope[key]));
  const values = Float32Array.from({ length: headDim / 2 }, (_, i) => {
    const wavelength = 2 * Math.PI * (config.rope_theta as number) ** ((2 * i) / headDim);
    if (wavelength < original / high) return 1;
    if (wavelength > original / low) return factor;
    const smooth = (original / wavelength - low) / (high - low);
    return 1 / ((1 - smooth) / factor + smooth);
  });
  return { shape: [headDim / 2], values };
}

/** The GGUF of the checkpoint in `folder`, with `metadata` beside its own. */
export function ggufOf(folder: string, arch: string, metadata: Record<string, Value> = {}): Buffer {
  const json = JSON.parse(readFileSync(path.join(folder, 'config.json'), 'utf8')) as Config;
  const config = (json.text_config as Config | undefined) ?? json;
  const matrices = rename(arch, config, readSafetensors(path.join(folder, 'model.safetensors')));
  const frequencies = ropeFrequencies(config);
  if (frequencies) matrices.set('rope_freqs.weight', frequencies);
  const rope = config.rope_scaling as Config | null;
  for (const kind of ['long', 'short']) {
    const factors = rope?.[`${kind}_factor`] as number[] | undefined;
    if (factors === undefined) continue;
    const values = Float32Array.from(factors);
    matrices.set(`rope_factors_${kind}.weight`, { shape: [values.length], values });
  }
  if ((config.tie_word_embeddings as boolean | undefined) ?? arch.startsWith('gemma'))
    matrices.delete('output.weight');
  const tensors = Object.fromEntries(
    [...matrices].map(([name, matrix]) => [name, tensorOf(name, matrix)]),
  );
  return gguf({ metadata: { ...metadataOf(arch, config), ...metadata }, tensors });
}
