/** A checkpoint's rotary embedding and its scaling. */
import { z } from 'zod';
import { CheckpointError, UnsupportedModelError } from '../errors';
import type { RopeScaling } from './spec';
import { checkRopeConstants } from './ropeConstants';
import {
  integerOrNull,
  isPositiveFloat32,
  MAX_POSITIONS,
  parseFields,
  positive,
  positiveOrNull,
  show,
} from '../config/schema';

/** Rotary embedding (Su et al. 2021) and its scaling to longer contexts. */
export interface Rope {
  theta: number;
  scaling: RopeScaling;
  /** Maximum positions after scaling. */
  maxPositions: number;
}

/** The scale of cos and sin that YaRN recommends (Peng et al. 2023, equation 22). */
function yarnMagnitude(factor: number, weight = 1): number {
  return factor > 1 ? 0.1 * weight * Math.log(factor) + 1 : 1;
}

/** YaRN's betas; 0 counts as missing. */
const turns = () =>
  z
    .number()
    .refine((value) => value === 0 || isPositiveFloat32(value))
    .nullish()
    .describe('0, a number above 0, within float32, or null');

/** The rotary embedding's keys in config.json, in the styles of transformers 4 and 5. */
export interface RopeJson {
  rope_theta?: number | null;
  rope_scaling?: Record<string, unknown> | null;
  rope_parameters?: Record<string, unknown> | null;
  partial_rotary_factor?: number | null;
  original_max_position_embeddings?: number | null;
  max_position_embeddings: number;
}

/**
 * `headDim`: size of a head, even. Throws CheckpointError and UnsupportedModelError naming the key and
 * its value, also if a constant computed from it is not finite in float32.
 */
export function readRope(file: string, json: RopeJson, headDim: number): Rope {
  const section =
    Object.keys(json.rope_scaling ?? {}).length > 0 ? 'rope_scaling' : 'rope_parameters';
  const rope = readSection(file, json, section);
  const fail = (message: string) => new CheckpointError(file, message);
  checkRopeConstants({ section, ...rope, headDim }, fail);
  return rope;
}

function readSection(file: string, json: RopeJson, key: 'rope_scaling' | 'rope_parameters'): Rope {
  const rope = json[key] ?? {};
  const fail = (message: string) => new CheckpointError(file, `${key}: ${message}`);

  const common = parseFields(
    z.looseObject({
      rope_type: z.string().nullish().describe('a string'),
      type: z.string().nullish().describe('a string'),
      rope_theta: positiveOrNull(),
      partial_rotary_factor: positiveOrNull(),
    }),
    rope,
    fail,
  );
  const rotaryFactor = common.partial_rotary_factor ?? json.partial_rotary_factor ?? 1;
  if (rotaryFactor !== 1) {
    throw new UnsupportedModelError(
      file,
      `partial_rotary_factor ${rotaryFactor} is not supported; only 1 is`,
    );
  }
  const byLayerType = Object.keys(rope).find((name) => name.endsWith('_attention'));
  if (byLayerType !== undefined) {
    throw new UnsupportedModelError(
      file,
      `${key} has ${byLayerType}; different rotary embeddings by layer are not supported`,
    );
  }
  if (typeof rope.llama_4_scaling_beta === 'number' && rope.llama_4_scaling_beta !== 0) {
    throw new UnsupportedModelError(
      file,
      `${key} has llama_4_scaling_beta ${rope.llama_4_scaling_beta}; attention has one temperature`,
    );
  }
  const theta = common.rope_theta ?? json.rope_theta ?? 10000;
  const type = common.rope_type ?? common.type ?? 'default';

  const maxPositions = json.max_position_embeddings;
  const { original_max_position_embeddings: original } = parseFields(
    z.looseObject({ original_max_position_embeddings: integerOrNull(1, MAX_POSITIONS) }),
    rope,
    fail,
  );
  const originalMaxPositionEmbeddings =
    json.original_max_position_embeddings ?? original ?? maxPositions;

  switch (type) {
    case 'default':
      return { theta, scaling: { type }, maxPositions };

    case 'linear': {
      const { factor } = parseFields(z.looseObject({ factor: positive() }), rope, fail);
      return {
        theta,
        scaling: { type, factor },
        maxPositions: Math.min(Math.floor(maxPositions * Math.max(factor, 1)), MAX_POSITIONS),
      };
    }

    case 'llama3': {
      const fields = parseFields(
        z.looseObject({
          factor: positive(),
          low_freq_factor: positive(),
          high_freq_factor: positive(),
        }),
        rope,
        fail,
      );
      const { factor, low_freq_factor: lowFreqFactor, high_freq_factor: highFreqFactor } = fields;
      // Compare in float32: their difference is a divisor.
      if (Math.fround(highFreqFactor) <= Math.fround(lowFreqFactor)) {
        throw fail(
          `high_freq_factor is ${highFreqFactor}; it must be above low_freq_factor, ${lowFreqFactor}`,
        );
      }
      return {
        theta,
        scaling: { type, factor, lowFreqFactor, highFreqFactor, originalMaxPositionEmbeddings },
        maxPositions,
      };
    }

    case 'yarn': {
      const fields = parseFields(
        z.looseObject({
          factor: positiveOrNull(),
          attention_factor: positiveOrNull(),
          mscale: z.number().nullish().describe('a number, or null'),
          mscale_all_dim: z.number().nullish().describe('a number, or null'),
          beta_fast: turns(),
          beta_slow: turns(),
          truncate: z.boolean().optional().describe('true or false'),
        }),
        rope,
        fail,
      );
      if (!('factor' in rope)) throw fail('factor is missing');
      const factor = fields.factor ?? maxPositions / originalMaxPositionEmbeddings;
      const { mscale, mscale_all_dim: mscaleAllDim } = fields;
      const attentionFactor =
        fields.attention_factor ??
        (mscale && mscaleAllDim
          ? yarnMagnitude(factor, mscale) / yarnMagnitude(factor, mscaleAllDim)
          : yarnMagnitude(factor));
      if (!isPositiveFloat32(attentionFactor)) {
        throw fail(
          `mscale is ${show(mscale)} and mscale_all_dim is ${show(mscaleAllDim)}; with a factor of ` +
            `${factor} the attention factor is ${attentionFactor}, and must be a number above 0, ` +
            'within float32',
        );
      }
      return {
        theta,
        scaling: {
          type,
          factor,
          betaFast: fields.beta_fast || 32,
          betaSlow: fields.beta_slow || 1,
          originalMaxPositionEmbeddings,
          attentionFactor,
          truncate: fields.truncate ?? true,
        },
        maxPositions: Math.min(
          Math.max(maxPositions, Math.floor(originalMaxPositionEmbeddings * factor)),
          MAX_POSITIONS,
        ),
      };
    }

    default:
      throw new UnsupportedModelError(
        file,
        `rope type ${show(type)} is not supported; supported: default, linear, llama3, yarn`,
      );
  }
}
