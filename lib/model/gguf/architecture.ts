/** What the architectures of GGUF files have in common: names of tensors, and keys of config.json. */
import { CheckpointError, UnsupportedModelError } from '../../errors';
import type { TensorEntry } from '../safetensors';
import type { MetadataReader } from './metadata';

/** A model's metadata under the names of its architecture. */
export interface ModelFacts {
  metadata: MetadataReader;
  /** The architecture's name, before a dot, in keys. */
  name: string;
  /** Ids of tokens that end a turn, by their text. */
  endTokens: ReadonlyMap<string, number>;
  tensors: ReadonlyMap<string, TensorEntry>;
  /** Float32 values of a small tensor; null without it. */
  factors: (tensor: string) => number[] | null;
}

type Config = Record<string, unknown>;

export interface GgufArchitecture {
  /** The architecture in config.json, by the file's metadata. */
  architecture: (facts: ModelFacts) => string;
  /** Keys of config.json beside those of `commonConfig`, which they replace. */
  config?: (facts: ModelFacts, common: Config) => Config;
  /** The tensor, less its suffix, of each module that is not in `MODULES`, or under another name. */
  modules?: Readonly<Record<string, string>>;
  /** Queries and keys have a head's rotated pairs in adjacent rows. */
  isInterleaved?: boolean;
  /** The norms' weights include the one that config.json's model adds. */
  addsOneToNorms?: boolean;
}

const BLOCK = 'blk.{layer}';

/** The tensor, less its suffix, of each module (native/model/blocks). */
export const MODULES: Readonly<Record<string, string>> = {
  embedding: 'token_embd',
  norm: 'output_norm',
  head: 'output',
  'attention.norm': `${BLOCK}.attn_norm`,
  'attention.q': `${BLOCK}.attn_q`,
  'attention.k': `${BLOCK}.attn_k`,
  'attention.v': `${BLOCK}.attn_v`,
  'attention.qNorm': `${BLOCK}.attn_q_norm`,
  'attention.kNorm': `${BLOCK}.attn_k_norm`,
  'attention.o': `${BLOCK}.attn_output`,
  'attention.outputNorm': `${BLOCK}.post_attention_norm`,
  'attention.sinks': `${BLOCK}.attn_sinks`,
  'mlp.norm': `${BLOCK}.ffn_norm`,
  'mlp.outputNorm': `${BLOCK}.post_ffw_norm`,
  'mlp.gate': `${BLOCK}.ffn_gate`,
  'mlp.up': `${BLOCK}.ffn_up`,
  'mlp.down': `${BLOCK}.ffn_down`,
  'experts.norm': `${BLOCK}.ffn_norm`,
  'experts.router': `${BLOCK}.ffn_gate_inp`,
  'experts.scoreBias': `${BLOCK}.exp_probs_b`,
  'experts.gate': `${BLOCK}.ffn_gate_exps.{expert}`,
  'experts.up': `${BLOCK}.ffn_up_exps.{expert}`,
  'experts.down': `${BLOCK}.ffn_down_exps.{expert}`,
  'shared.router': `${BLOCK}.ffn_gate_inp_shexp`,
  'shared.gate': `${BLOCK}.ffn_gate_shexp`,
  'shared.up': `${BLOCK}.ffn_up_shexp`,
  'shared.down': `${BLOCK}.ffn_down_shexp`,
};

/** Keys of metadata, after the architecture's name, of a spec's sizes, for errors. */
export const SIZE_KEYS: Readonly<Record<string, string>> = {
  vocabSize: 'the number of tokens',
  hiddenSize: 'embedding_length',
  intermediateSize: 'feed_forward_length',
  numHeads: 'attention.head_count',
  numKvHeads: 'attention.head_count_kv',
  headDim: 'attention.key_length',
  numExperts: 'expert_count',
  expertIntermediateSize: 'expert_feed_forward_length',
  sharedIntermediateSize: 'expert_shared_feed_forward_length',
};

/** Throws CheckpointError for a key that is missing or of another type. */
export function commonConfig(facts: ModelFacts): Config {
  const { metadata, name, tensors } = facts;
  const key = (suffix: string) => `${name}.${suffix}`;
  const hiddenSize = metadata.requiredCount(key('embedding_length'));
  const numHeads = metadata.requiredCount(key('attention.head_count'));
  const headDim = metadata.count(key('attention.key_length')) ?? hiddenSize / numHeads;
  const valueDim = metadata.number(key('attention.value_length')) ?? headDim;
  if (valueDim !== headDim) {
    throw metadata.fail(key('attention.value_length'), `${headDim}, the size of a head's keys`);
  }
  const numBlocks = metadata.requiredCount(key('block_count'));
  const numPredicting = metadata.number(key('nextn_predict_layers')) ?? 0;
  if (!(numPredicting >= 0 && numPredicting < numBlocks)) {
    throw metadata.fail(key('nextn_predict_layers'), `less than block_count, ${numBlocks}`);
  }
  const embedding = tensors.get('token_embd.weight');
  const vocabSize = embedding?.shape[0] ?? metadata.requiredNumber(key('vocab_size'));
  return {
    vocab_size: vocabSize,
    hidden_size: hiddenSize,
    intermediate_size:
      metadata.numberOfLayers(key('feed_forward_length')) ||
      metadata.requiredCount(
        key(`${metadata.has(key('expert_count')) ? 'expert_' : ''}feed_forward_length`),
      ),
    num_hidden_layers: numBlocks - numPredicting,
    num_attention_heads: numHeads,
    num_key_value_heads: metadata.count(key('attention.head_count_kv')) ?? numHeads,
    head_dim: headDim,
    max_position_embeddings: metadata.requiredCount(key('context_length')),
    rms_norm_eps: requiredPositive(metadata, key('attention.layer_norm_rms_epsilon')),
    rope_theta: metadata.positive(key('rope.freq_base')) ?? 10000,
    partial_rotary_factor: (metadata.count(key('rope.dimension_count')) ?? headDim) / headDim,
    rope_scaling: ropeScaling(facts),
    tie_word_embeddings: !tensors.has('output.weight'),
    sliding_window: null,
    attention_bias: tensors.has('blk.0.attn_q.bias'),
    mlp_bias: tensors.has('blk.0.ffn_down.bias'),
    bos_token_id: metadata.number('tokenizer.ggml.bos_token_id') ?? null,
    eos_token_id: eosTokenIds(facts, vocabSize),
  };
}

export function requiredOfLayers({ metadata, name }: ModelFacts, suffix: string): number {
  const value = metadata.numberOfLayers(`${name}.${suffix}`);
  if (value === undefined) throw metadata.fail(`${name}.${suffix}`, 'a number');
  return value;
}

function requiredPositive(metadata: MetadataReader, key: string): number {
  const value = metadata.positive(key);
  if (value === undefined) throw metadata.fail(key, 'a number above 0');
  return value;
}

/** Ids that end a text: of a sequence, of a turn and of a message, and by their texts. */
function eosTokenIds({ metadata, endTokens }: ModelFacts, vocabSize: number): number[] {
  const named = ['eos', 'eot', 'eom'].map((name) =>
    metadata.number(`tokenizer.ggml.${name}_token_id`),
  );
  // gpt-oss has <|end|> between the messages of one turn, which ends with <|return|>.
  const ends = [...endTokens]
    .filter(([text]) => text !== '<|end|>' || !endTokens.has('<|return|>'))
    .map(([, id]) => id);
  const ids = [...named, ...ends];
  return [...new Set(ids.filter((id): id is number => id !== undefined && id < vocabSize))];
}

/** rope_scaling of config.json. Throws UnsupportedModelError for another type. */
function ropeScaling(facts: ModelFacts): Config | null {
  const { metadata, name } = facts;
  const key = (suffix: string) => `${name}.rope.scaling.${suffix}`;
  const contextLength = metadata.requiredNumber(`${name}.context_length`);
  const original = metadata.number(key('original_context_length'));
  // As llama.cpp reads them: a factor without a type is linear, and 0 is none.
  const type = metadata.text(key('type')) ?? 'linear';
  const linear = metadata.number(key('factor')) ?? metadata.number(`${name}.rope.scale_linear`);
  const factor = type === 'none' ? 1 : linear || 1;
  const ofContext = { original_max_position_embeddings: original ?? contextLength };
  const frequencies = facts.factors('rope_freqs.weight');
  const long = facts.factors('rope_factors_long.weight');
  const short = facts.factors('rope_factors_short.weight');
  if ((frequencies ?? long ?? short) && (factor !== 1 || type === 'yarn')) {
    throw new UnsupportedModelError(
      metadata.file,
      `rope scaling '${type}' by ${factor} beside tensors of factors is not supported`,
    );
  }
  if (Boolean(long) !== Boolean(short)) {
    throw new CheckpointError(
      metadata.file,
      `tensor rope_factors_${long ? 'short' : 'long'}.weight is missing`,
    );
  }
  // Factors of all wavelengths, at any length.
  if (frequencies) return longRope(frequencies, frequencies, 1, contextLength);
  if (long && short) {
    return longRope(
      short,
      long,
      metadata.number(key('attn_factor')) ?? 1,
      original ?? contextLength,
    );
  }
  if (type === 'none') return null;
  if (type === 'linear') return factor === 1 ? null : { rope_type: 'linear', factor };
  if (type === 'yarn') {
    const multiplier = metadata.number(key('yarn_log_multiplier')) ?? 0;
    return {
      rope_type: 'yarn',
      factor: metadata.requiredNumber(key('factor')),
      beta_fast: metadata.number(key('yarn_beta_fast')) ?? 32,
      beta_slow: metadata.number(key('yarn_beta_slow')) ?? 1,
      ...(multiplier !== 0 && { mscale: 1, mscale_all_dim: multiplier }),
      ...ofContext,
    };
  }
  throw new UnsupportedModelError(
    metadata.file,
    `metadata '${key('type')}' is '${type}', which is not supported without its tensors of factors; ` +
      'supported: none, linear, yarn',
  );
}

function longRope(short: number[], long: number[], attentionFactor: number, original: number) {
  return {
    rope_type: 'longrope',
    short_factor: short,
    long_factor: long,
    attention_factor: attentionFactor,
    original_max_position_embeddings: original,
  };
}
