/** quantization_config of compressed-tensors (quant_method 'compressed-tensors'). */
import { z } from 'zod';
import { show } from '../config/schema';
import type { Quantization, QuantizationScheme } from '../config/uniprocConfig';
import { CheckpointError } from '../errors';
import { nameOf, regexOf } from './modulePatterns';
import {
  anything,
  flag,
  MX_BLOCK,
  names,
  number,
  parseConfig,
  readCacheScheme,
  refuse,
  schemeOf,
  text,
} from './quantizationMethods';

/** The class of linear layers; all of them are of it. */
const LINEAR = 'Linear';

/** The types of weights that each format may have. */
const KINDS: Readonly<Record<string, readonly string[]>> = {
  'float-quantized': ['float8'],
  'int-quantized': ['int8'],
  'naive-quantized': ['float8', 'int8'],
  'pack-quantized': ['int4'],
  'mxfp4-pack-quantized': ['float4'],
};
const TYPES: Readonly<Record<string, QuantizationScheme['type']>> = {
  float8: 'float8_e4m3',
  int8: 'int8',
  int4: 'uint4',
  float4: 'float4_e2m1',
};
const FORMATS = Object.keys(KINDS);
const object = () => z.record(z.string(), z.unknown()).nullish().describe('an object, or null');

/** Of the names and classes in a list, the pattern of each. */
const patternOf = (file: string) => (target: string) =>
  target.startsWith('re:') ? regexOf(file, target) : nameOf(target);

const isEmpty = (value: unknown) => Object.keys(value ?? {}).length === 0;

/** Throws UnsupportedModelError for what is not supported, CheckpointError for an invalid key. */
export function readCompressedTensors(file: string, given: Record<string, unknown>): Quantization {
  const config = parseConfig(
    file,
    {
      format: text(),
      quantization_status: text(),
      config_groups: object(),
      ignore: names(),
      kv_cache_scheme: object(),
      sparsity_config: object(),
      transform_config: object(),
    },
    given,
  );
  const { format, quantization_status: status, config_groups: groups } = config;
  if (status && status !== 'compressed') {
    refuse(file, 'quantization_status', status, "'compressed'");
  }
  const sparsity = config.sparsity_config;
  if (!isEmpty(sparsity) && sparsity?.format !== 'dense') {
    refuse(file, 'sparsity_config', sparsity, 'a dense checkpoint');
  }
  if (!isEmpty(config.transform_config)) {
    refuse(file, 'transform_config', config.transform_config, 'none');
  }
  if (isEmpty(groups)) {
    throw new CheckpointError(
      file,
      `quantization_config: config_groups is ${show(groups)}; it must be an object with a group`,
    );
  }
  const schemes = Object.entries(groups ?? {}).map(([name, group]) =>
    readGroup(file, `quantization_config.config_groups.${name}`, format, group),
  );
  return {
    method: 'compressed-tensors',
    // Names take precedence over classes.
    schemes: [
      ...schemes.filter(({ targets }) => targets !== null),
      ...schemes.filter(({ targets }) => targets === null),
    ],
    ignore: (config.ignore ?? []).map(patternOf(file)),
    ...readCacheScheme(file, config.kv_cache_scheme),
  };
}

function readGroup(
  file: string,
  place: string,
  common: string | null | undefined,
  given: unknown,
): QuantizationScheme {
  const group = parseConfig(
    file,
    {
      targets: z.array(z.string()).min(1).describe('a list of strings'),
      weights: object(),
      input_activations: object(),
      output_activations: object(),
      format: text(),
    },
    given,
    place,
  );
  const format = group.format ?? common;
  if (typeof format !== 'string' || !FORMATS.includes(format)) {
    refuse(file, 'format', format, FORMATS.join(', '));
  }
  if (!isEmpty(group.output_activations)) {
    refuse(file, 'output_activations', group.output_activations, 'null');
  }
  const areFloat8 = readActivations(file, group.input_activations);
  if (!group.weights) refuse(file, 'weights', group.weights, 'quantized weights');
  const isAll = group.targets.includes(LINEAR);
  const scheme = readWeights(file, `${place}.weights`, format, group.weights);
  return {
    ...scheme,
    targets: isAll ? null : group.targets.map(patternOf(file)),
    roundsInput: areFloat8 && scheme.type === 'float8_e4m3',
  };
}

/** Whether activations are float8. Those of other kinds would be computed too differently. */
function readActivations(file: string, given: Record<string, unknown> | null | undefined): boolean {
  if (!given || isEmpty(given)) return false;
  const { num_bits: bits, symmetric, type } = given;
  if (bits !== 8) refuse(file, 'input_activations of num_bits', bits, '8 or none');
  if (symmetric === false) refuse(file, 'input_activations of symmetric', symmetric, 'true');
  if (type !== 'int' && type !== 'float') {
    refuse(file, 'input_activations of type', type, "'int' or 'float'");
  }
  return type === 'float';
}

function readWeights(
  file: string,
  place: string,
  format: string,
  given: unknown,
): QuantizationScheme {
  const weights = parseConfig(
    file,
    {
      num_bits: number(),
      type: text(),
      symmetric: flag(),
      strategy: text(),
      group_size: number(),
      block_structure: anything(),
      actorder: anything(),
      dynamic: anything(),
    },
    given,
    place,
  );
  const { num_bits: bits, type, symmetric = true, actorder } = weights;
  if (weights.dynamic) refuse(file, 'weights of dynamic', weights.dynamic, 'false');
  const isPacked = format === 'pack-quantized';
  const kind = `${type}${bits}`;
  if (!KINDS[format].includes(kind)) {
    refuse(file, `weights of type ${show(type)} and num_bits`, bits, KINDS[format].join(' or '));
  }
  if (!isPacked && symmetric === false) refuse(file, 'weights of symmetric', symmetric, 'true');
  if (!isPacked && actorder) refuse(file, 'weights of actorder', actorder, 'null');
  const orders = [null, undefined, false, true, 'group', 'weight', 'static', 'dynamic'];
  if (!orders.includes(actorder as string)) {
    refuse(file, 'weights of actorder', actorder, "'group', 'weight' or null");
  }
  const block = readBlock(file, isPacked, kind, weights);
  return schemeOf({
    type: TYPES[kind],
    block,
    tensors: isPacked || kind === 'float4' ? 'packed' : 'plain',
    hasZeros: isPacked && symmetric === false,
    isOrdered: (actorder === true || actorder === 'group' || actorder === 'dynamic') && !!block,
  });
}

/** Rows and columns of a scale; null: one for each row or one for the matrix. */
function readBlock(
  file: string,
  isPacked: boolean,
  kind: string,
  weights: {
    strategy?: string | null;
    group_size?: number | null;
    block_structure?: unknown;
  },
): [number, number] | null {
  const { strategy, group_size: size, block_structure: structure } = weights;
  if (kind === 'float4') {
    if (strategy !== 'group') refuse(file, 'weights of strategy', strategy, "'group'");
    if (size !== MX_BLOCK) refuse(file, 'weights of group_size', size, `${MX_BLOCK}`);
    return [1, MX_BLOCK];
  }
  switch (strategy ?? (size && size > 0 ? 'group' : 'channel')) {
    case 'tensor':
      if (isPacked) refuse(file, 'weights of strategy', strategy, "'group' or 'channel'");
      return null;
    case 'channel':
      return null;
    case 'group':
      if (kind === 'float8')
        refuse(file, 'weights of strategy', strategy, 'tensor, channel, block');
      if (!size || size < 2 || size % 2 !== 0 || size > 2 ** 16) {
        refuse(file, 'weights of group_size', size, 'an even number from 2 to 65536');
      }
      return [1, size];
    case 'block': {
      const sides =
        typeof structure === 'string' ? structure.split('x').map(Number) : (structure as number[]);
      const isPair = Array.isArray(sides) && sides.length === 2;
      if (
        kind !== 'float8' ||
        !isPair ||
        !sides.every((n) => Number.isInteger(n) && n > 0 && n <= 2 ** 16)
      ) {
        refuse(file, 'weights of block_structure', structure, 'two sizes, of float8');
      }
      return [sides[0], sides[1]];
    }
    default:
      return refuse(file, 'weights of strategy', strategy, 'tensor, channel, group or block');
  }
}
