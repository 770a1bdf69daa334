/** A checkpoint's rotary embedding and its scaling. */
import { z } from 'zod';
import { CheckpointError, UnsupportedModelError } from '../errors';
import type { RopeScaling, RopeSpec } from './spec';
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

export interface Rope extends RopeSpec {
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
  /** Of the layers that have it, where heads differ. */
  head_dim?: number | null;
}

/**
 * `headDim`: size of a head, even. Throws CheckpointError and UnsupportedModelError naming the key and
 * its value, also if a constant computed from it is not finite in float32.
 */
export function readRope(file: string, json: RopeJson, headDim: number): Rope {
  const section =
    Object.keys(json.rope_scaling ?? {}).length > 0 ? 'rope_scaling' : 'rope_parameters';
  const rope = readSection(file, json, section, headDim);
  const fail = (message: string) => new CheckpointError(file, message);
  checkRopeConstants({ section, ...rope }, fail);
  return rope;
}

/** The rope's own section of config.json, and how to report what is wrong with it. */
interface Section {
  key: 'rope_scaling' | 'rope_parameters';
  rope: Record<string, unknown>;
  headDim: number;
  /** Of a head's elements, those that are rotated. */
  share: number;
  rotaryDim: number;
  maxPositions: number;
  originalMaxPositionEmbeddings: number;
  fail: (message: string) => CheckpointError;
}

function readSection(
  file: string,
  json: RopeJson,
  key: 'rope_scaling' | 'rope_parameters',
  headDim: number,
): Rope {
  const rope = json[key] ?? {};
  const fail = (message: string) => new CheckpointError(file, `${key}: ${message}`);
  const common = parseFields(
    z.looseObject({
      rope_type: z.string().nullish().describe('a string'),
      type: z.string().nullish().describe('a string'),
      rope_theta: positiveOrNull(),
      partial_rotary_factor: positiveOrNull(),
      original_max_position_embeddings: integerOrNull(1, MAX_POSITIONS),
    }),
    rope,
    fail,
  );
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
  const share = common.partial_rotary_factor ?? json.partial_rotary_factor ?? 1;
  const section: Section = {
    key,
    rope,
    headDim,
    share,
    rotaryDim: type === 'proportional' ? headDim : rotaryDimOf(file, share, headDim),
    maxPositions,
    originalMaxPositionEmbeddings:
      json.original_max_position_embeddings ??
      common.original_max_position_embeddings ??
      maxPositions,
    fail,
  };
  const read = READERS.get(type);
  if (!read) {
    throw new UnsupportedModelError(
      file,
      `rope type ${show(type)} is not supported; supported: ${[...READERS.keys()].join(', ')}`,
    );
  }
  return { theta, rotaryDim: section.rotaryDim, maxPositions, ...read(section) };
}

/** The rotated elements of a head; transformers rounds down. */
function rotaryDimOf(file: string, factor: number, headDim: number): number {
  const rotaryDim = Math.trunc(headDim * factor);
  if (rotaryDim >= 2 && rotaryDim % 2 === 0 && rotaryDim <= headDim) return rotaryDim;
  throw new CheckpointError(
    file,
    `partial_rotary_factor is ${factor}; of a head of ${headDim} it rotates ${rotaryDim} elements, ` +
      `and must rotate an even number from 2 to ${headDim}`,
  );
}

type Reader = (section: Section) => { scaling: RopeScaling; maxPositions?: number };

const readLinear: Reader = ({ rope, maxPositions, fail }) => {
  const { factor } = parseFields(z.looseObject({ factor: positive() }), rope, fail);
  return {
    scaling: { type: 'linear', factor },
    maxPositions: Math.min(Math.floor(maxPositions * Math.max(factor, 1)), MAX_POSITIONS),
  };
};

const readDynamic: Reader = ({ rope, rotaryDim, maxPositions, fail }) => {
  const { factor } = parseFields(z.looseObject({ factor: positive() }), rope, fail);
  if ((rope.alpha ?? null) !== null) {
    throw fail(`alpha is ${show(rope.alpha)}; only dynamic scaling by a factor is supported`);
  }
  if (rotaryDim < 4) throw fail(`dynamic scaling needs more than ${rotaryDim} rotated elements`);
  return {
    scaling: { type: 'dynamic', factor, originalMaxPositionEmbeddings: maxPositions },
    maxPositions: Math.min(Math.floor(maxPositions * Math.max(factor, 1)), MAX_POSITIONS),
  };
};

const readProportional: Reader = ({ rope, headDim, share, fail }) => {
  const { factor } = parseFields(z.looseObject({ factor: positiveOrNull() }), rope, fail);
  const rotatedDim = 2 * Math.floor((share * headDim) / 2);
  if (rotatedDim < 2 || rotatedDim > headDim) {
    throw fail(
      `partial_rotary_factor is ${share}; of a head of ${headDim} it rotates ${rotatedDim} elements, ` +
        `and must rotate from 2 to ${headDim}`,
    );
  }
  return { scaling: { type: 'proportional', factor: factor ?? 1, rotatedDim } };
};

const readLlama3: Reader = ({ rope, originalMaxPositionEmbeddings, fail }) => {
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
  // Equal factors, as of Llama 4 Scout, leave no wavelengths between those kept and those stretched.
  if (highFreqFactor < lowFreqFactor) {
    throw fail(
      `high_freq_factor is ${highFreqFactor}; it must be at least low_freq_factor, ${lowFreqFactor}`,
    );
  }
  return {
    scaling: {
      type: 'llama3',
      factor,
      lowFreqFactor,
      highFreqFactor,
      originalMaxPositionEmbeddings,
    },
  };
};

const readYarn: Reader = ({ rope, maxPositions, originalMaxPositionEmbeddings, fail }) => {
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
    scaling: {
      type: 'yarn',
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
};

const readLongRope: Reader = (section) => {
  const { rope, rotaryDim, maxPositions, originalMaxPositionEmbeddings: original, fail } = section;
  const factors = () =>
    z
      .array(z.number().refine(isPositiveFloat32))
      .length(rotaryDim / 2)
      .describe(`a list of ${rotaryDim / 2} numbers above 0, one for each rotated pair`);
  const fields = parseFields(
    z.looseObject({
      factor: positiveOrNull(),
      attention_factor: positiveOrNull(),
      short_factor: factors(),
      long_factor: factors(),
    }),
    rope,
    fail,
  );
  // Magnitudes of their own, as in Phi-3.5-MoE.
  for (const key of ['short_mscale', 'long_mscale']) {
    if ((rope[key] ?? null) !== null) {
      throw fail(`${key} is ${show(rope[key])}; only attention_factor is supported`);
    }
  }
  const factor = fields.factor ?? maxPositions / original;
  const attentionFactor =
    fields.attention_factor ??
    (factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(original)));
  if (!isPositiveFloat32(attentionFactor)) {
    throw fail(
      `original_max_position_embeddings is ${original}; with a factor of ${factor} the attention ` +
        `factor is ${attentionFactor}, and must be a number above 0, within float32`,
    );
  }
  return {
    scaling: {
      type: 'longrope',
      shortFactors: fields.short_factor,
      longFactors: fields.long_factor,
      originalMaxPositionEmbeddings: original,
      attentionFactor,
    },
  };
};

const READERS: ReadonlyMap<string, Reader> = new Map<string, Reader>([
  ['default', () => ({ scaling: { type: 'default' } })],
  ['linear', readLinear],
  ['proportional', readProportional],
  ['dynamic', readDynamic],
  ['llama3', readLlama3],
  ['yarn', readYarn],
  ['longrope', readLongRope],
  ['su', readLongRope], // longrope's first name
]);
