/**
 * quantization_config of each quant_method, except compressed-tensors (compressedTensors.ts). Keys that
 * concern the making of a checkpoint alone are ignored; activations are quantized, if at all, with
 * scales found at run time, so what is said of their scales is checked and ignored.
 */
import { z } from 'zod';
import { parseFields, show } from '../config/schema';
import type { Quantization, QuantizationScheme } from '../config/uniprocConfig';
import { CheckpointError, UnsupportedModelError } from '../errors';
import { globOf, partOf } from './modulePatterns';

/** Maximum rows and columns of a block. */
const MAX_BLOCK = 2 ** 16;

/** Throws UnsupportedModelError. */
export function refuse(file: string, key: string, value: unknown, supported: string): never {
  throw new UnsupportedModelError(
    file,
    `quantization_config with ${key} ${show(value)} is not supported; only ${supported} is`,
  );
}

/** Parses the keys of a schema; others are ignored. Throws CheckpointError. */
export function parseConfig<Shape extends z.ZodRawShape>(
  file: string,
  shape: Shape,
  given: unknown,
  place = 'quantization_config',
): z.output<z.ZodObject<Shape>> {
  return parseFields(
    z.looseObject(shape) as unknown as z.ZodObject<Shape>,
    given,
    (message) => new CheckpointError(file, `${place}: ${message}`),
  );
}

export const text = () => z.string().nullish().describe('a string, or null');
export const flag = () => z.boolean().nullish().describe('true, false or null');
export const number = () => z.int().nullish().describe('an integer, or null');
export const names = () => z.array(z.string()).nullish().describe('a list of strings, or null');
export const anything = () => z.unknown().optional();
export const blockSize = () =>
  z
    .tuple([z.int().min(1).max(MAX_BLOCK), z.int().min(1).max(MAX_BLOCK)])
    .nullish()
    .describe('a list of two positive integers');

/** A scheme for all modules, of one scale a row unless `changes` say otherwise. */
export function schemeOf(changes: Partial<QuantizationScheme>): QuantizationScheme {
  return {
    targets: null,
    type: 'float8_e4m3',
    block: null,
    tensors: 'plain',
    hasZeros: false,
    isOrdered: false,
    roundsInput: false,
    ...changes,
  };
}

/** Of kv_cache_scheme: fp8 with one scale for a layer's keys and one for its values, or none. */
export function readCacheScheme(
  file: string,
  scheme: Record<string, unknown> | null | undefined,
): Pick<Quantization, 'cacheDtype'> {
  if (!scheme || Object.keys(scheme).length === 0) return {};
  const { num_bits: bits, type, strategy = 'tensor', symmetric = true, dynamic = false } = scheme;
  const isTensor = strategy === 'tensor' || strategy === null;
  if (bits !== 8 || type !== 'float' || !isTensor || symmetric === false || dynamic === true) {
    refuse(file, 'kv_cache_scheme', scheme, 'symmetric, static float of 8 bits by tensor');
  }
  return { cacheDtype: 'float8_e4m3' };
}

type Reader = (file: string, given: Record<string, unknown>) => Quantization;

const fp8: Reader = (file, given) => {
  const config = parseConfig(
    file,
    {
      fmt: text(),
      activation_scheme: text(),
      weight_block_size: blockSize(),
      modules_to_not_convert: names(),
      ignored_layers: names(),
    },
    given,
  );
  const { fmt, activation_scheme: activations } = config;
  if (fmt && fmt !== 'e4m3') refuse(file, 'fmt', fmt, "'e4m3'");
  if (activations && activations !== 'dynamic' && activations !== 'static') {
    refuse(file, 'activation_scheme', activations, "'dynamic' or 'static'");
  }
  const kept = [...(config.modules_to_not_convert ?? []), ...(config.ignored_layers ?? [])];
  return {
    method: 'fp8',
    schemes: [schemeOf({ block: config.weight_block_size ?? null, roundsInput: true })],
    ignore: kept.map(partOf),
  };
};

const fbgemmFp8: Reader = (file, given) => {
  const config = parseConfig(file, { modules_to_not_convert: names() }, given);
  return {
    method: 'fbgemm_fp8',
    schemes: [schemeOf({ roundsInput: true })],
    ignore: (config.modules_to_not_convert ?? []).map(partOf),
  };
};

const modelopt: Reader = (file, given) => {
  const config = parseConfig(
    file,
    {
      quant_algo: text(),
      kv_cache_quant_algo: text(),
      kv_cache_scheme: z.record(z.string(), z.unknown()).nullish().describe('an object, or null'),
      exclude_modules: names(),
      ignore: names(),
    },
    given,
  );
  const { quant_algo: algorithm, kv_cache_quant_algo: ofCache } = config;
  if (algorithm !== 'FP8' && algorithm !== 'FP8_PER_CHANNEL_PER_TOKEN') {
    refuse(file, 'quant_algo', algorithm, "'FP8' or 'FP8_PER_CHANNEL_PER_TOKEN'");
  }
  if (ofCache && ofCache !== 'FP8') refuse(file, 'kv_cache_quant_algo', ofCache, "'FP8'");
  return {
    method: 'modelopt',
    schemes: [schemeOf({ roundsInput: true })],
    ignore: [...(config.exclude_modules ?? []), ...(config.ignore ?? [])].map(globOf(file)),
    ...(ofCache
      ? { cacheDtype: 'float8_e4m3' as const }
      : readCacheScheme(file, config.kv_cache_scheme)),
  };
};

/** Columns of a group; all for -1. */
function readGroup(file: string, size: number | null | undefined): [number, number] | null {
  if (size === -1 || size === null || size === undefined) return null;
  if (size < 2 || size % 2 !== 0 || size > MAX_BLOCK) {
    refuse(file, 'group_size', size, `-1 or an even number from 2 to ${MAX_BLOCK}`);
  }
  return [1, size];
}

const awq: Reader = (file, given) => {
  const config = parseConfig(
    file,
    {
      bits: number(),
      w_bit: number(),
      group_size: number(),
      q_group_size: number(),
      zero_point: flag(),
      version: text(),
      modules_to_not_convert: names(),
    },
    given,
  );
  const bits = config.bits ?? config.w_bit;
  const { zero_point: zeroPoint, version } = config;
  if (bits !== 4) refuse(file, 'bits', bits, '4');
  if (zeroPoint === false) refuse(file, 'zero_point', zeroPoint, 'true');
  if (version && version.toLowerCase() !== 'gemm') refuse(file, 'version', version, "'gemm'");
  return {
    method: 'awq',
    schemes: [
      schemeOf({
        type: 'uint4',
        block: readGroup(file, config.group_size ?? config.q_group_size),
        tensors: 'awq',
        hasZeros: true,
      }),
    ],
    ignore: (config.modules_to_not_convert ?? []).map(partOf),
  };
};

const gptq: Reader = (file, given) => {
  const config = parseConfig(
    file,
    {
      bits: number(),
      group_size: number(),
      desc_act: flag(),
      sym: flag(),
      checkpoint_format: text(),
      is_marlin_format: flag(),
      pack_dtype: text(),
      dynamic: anything(),
      modules_to_not_convert: names(),
    },
    given,
  );
  const { bits, sym, checkpoint_format: format, pack_dtype: packs, dynamic } = config;
  if (bits !== 4) refuse(file, 'bits', bits, '4');
  if (format && format !== 'gptq' && format !== 'gptq_v2') {
    refuse(file, 'checkpoint_format', format, "'gptq' or 'gptq_v2'");
  }
  if (config.is_marlin_format) refuse(file, 'is_marlin_format', true, 'false');
  if (packs && packs !== 'int32') refuse(file, 'pack_dtype', packs, "'int32'");
  if (Object.keys(dynamic ?? {}).length > 0) refuse(file, 'dynamic', dynamic, 'none');
  const block = readGroup(file, config.group_size);
  return {
    method: 'gptq',
    schemes: [
      schemeOf({
        type: 'uint4',
        block,
        tensors: format === 'gptq_v2' ? 'gptqV2' : 'gptq',
        hasZeros: sym !== true,
        // A single group has no order.
        isOrdered: config.desc_act === true && block !== null,
      }),
    ],
    ignore: (config.modules_to_not_convert ?? []).map(partOf),
  };
};

/** Columns of a block of the OCP Microscaling Formats 1.0. */
export const MX_BLOCK = 32;

/** gpt-oss: the experts' matrices. */
const mxfp4: Reader = (file, given) => {
  const config = parseConfig(file, { modules_to_not_convert: names() }, given);
  return {
    method: 'mxfp4',
    schemes: [
      schemeOf({
        targets: [partOf('experts')],
        type: 'float4_e2m1',
        block: [1, MX_BLOCK],
        tensors: 'mxfp4',
      }),
    ],
    ignore: (config.modules_to_not_convert ?? []).map((name) => globOf(file)(`${name}*`)),
  };
};

export const METHODS: ReadonlyMap<unknown, Reader> = new Map([
  ['fp8', fp8],
  ['fbgemm_fp8', fbgemmFp8],
  ['modelopt', modelopt],
  ['awq', awq],
  ['gptq', gptq],
  ['mxfp4', mxfp4],
]);
