/** Keys of metadata that change what a model computes, which not every architecture reads. */
import { show } from '../../config/schema';
import { UnsupportedModelError } from '../../errors';
import type { ModelFacts } from './architecture';
import type { MetadataValue } from './header';

/** Whether a value is that of a model without what the key says. */
type IsNeutral = (value: MetadataValue, facts: ModelFacts) => boolean;

const among =
  (...values: MetadataValue[]): IsNeutral =>
  (value) =>
    values.includes(value);

/** Keys after the architecture's name. */
const KEYS: Readonly<Record<string, IsNeutral>> = {
  'attention.causal': among(true),
  'attention.clamp_kqv': among(0),
  'attention.max_alibi_bias': among(0),
  'attention.scale': (value, { metadata, name }) => {
    const heads = metadata.numberOfLayers(`${name}.attention.head_count`) ?? 1;
    const headDim =
      metadata.number(`${name}.attention.key_length`) ??
      metadata.requiredNumber(`${name}.embedding_length`) / heads;
    return value === 0 || Math.abs(Number(value) * Math.sqrt(headDim) - 1) < 1e-5;
  },
  // Positions that a window holds anyhow are all of them.
  'attention.sliding_window': (value, { metadata, name }) =>
    value === 0 || Number(value) >= metadata.requiredNumber(`${name}.context_length`),
  'attention.temperature_scale': among(0),
  attn_logit_softcapping: among(0),
  embedding_scale: among(0, 1),
  expert_gating_func: (value, { name }) => value === 0 || value === (name === 'gpt-oss' ? 3 : 1),
  expert_group_count: among(0, 1),
  expert_weights_scale: among(0, 1),
  final_logit_softcapping: among(0),
  logit_scale: among(0, 1),
  residual_scale: among(0, 1),
  'rope.scaling.attn_factor': among(1),
  'rope.scaling.yarn_attn_factor': among(1),
  'rope.scaling.yarn_ext_factor': among(-1, 1),
  use_parallel_residual: among(false),
};

/** Throws UnsupportedModelError, with the key, for one that was not read though it changes the model. */
export function refuseIgnored(facts: ModelFacts): void {
  const { metadata, name } = facts;
  for (const [suffix, isNeutral] of Object.entries(KEYS)) {
    const key = `${name}.${suffix}`;
    const value = metadata.metadata.get(key);
    if (value === undefined || metadata.wasAsked(key) || isNeutral(value, facts)) continue;
    throw new UnsupportedModelError(
      metadata.file,
      `metadata '${key}' is ${show(value)}, which is not supported with architecture '${name}'`,
    );
  }
}
