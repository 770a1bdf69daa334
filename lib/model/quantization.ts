/**
 * How a checkpoint's weights are quantised. `quantization_config` of config.json says the method; the
 * files say which modules have it: those whose tensor is of the method's type.
 */
import { z } from 'zod';
import { parseFields, show } from '../config/schema';
import type { Quantization } from '../config/uniprocConfig';
import { CheckpointError, UnsupportedModelError } from '../errors';
import type { Parameter, WeightFormat } from '../native';
import type { SafetensorsDType } from './safetensors';

/** Rows and columns that no block has. */
const MAX_BLOCK = 2 ** 16;

/** The name that a matrix's scales have beside its '.weight'. */
export const SCALES_SUFFIX = 'weight_scale_inv';

/** Throws UnsupportedModelError for a method that is not known, CheckpointError for a key at fault. */
export function readQuantization(file: string, given: unknown): Quantization | null {
  if (given === undefined || given === null) return null;
  const { quant_method: method } = given as Record<string, unknown>;
  if (method !== 'fp8') {
    throw new UnsupportedModelError(
      file,
      `quantization_config with quant_method ${show(method)} is not supported; ` +
        "use an 'fp8' checkpoint with weight_block_size, or one in float32, float16 or bfloat16",
    );
  }
  const fields = parseFields(
    z.looseObject({
      fmt: z.string().nullish().describe('a string'),
      activation_scheme: z.string().nullish().describe('a string'),
      weight_block_size: z
        .tuple([z.int().min(1).max(MAX_BLOCK), z.int().min(1).max(MAX_BLOCK)])
        .nullish()
        .describe('a list of two positive integers'),
    }),
    given as Record<string, unknown>,
    (message) => new CheckpointError(file, `quantization_config: ${message}`),
  );
  const refuse = (key: string, value: unknown, supported: string): never => {
    throw new UnsupportedModelError(
      file,
      `quantization_config with ${key} ${show(value)} is not supported; only ${supported} is`,
    );
  };
  const { fmt, activation_scheme: scheme, weight_block_size: blockSize } = fields;
  if (fmt && fmt !== 'e4m3') refuse('fmt', fmt, "'e4m3'");
  if (scheme && scheme !== 'dynamic') refuse('activation_scheme', scheme, "'dynamic'");
  return {
    method: 'fp8',
    blockSize: blockSize ?? refuse('weight_block_size', blockSize, 'a scale for each block'),
  };
}

/** The name of a parameter's module, as `ModelSpec.weightFormats` has it. */
export function moduleOf({ layer, expert, module }: Parameter): string {
  const inLayer = layer === null ? module : `layers.${layer}.${module}`;
  return expert === null ? inLayer : `${inLayer}.${expert}`;
}

/**
 * The formats of all modules that are quantised. `storedType` gives the type of a parameter's tensor
 * in the files; null where there are no files: then all are that usually are.
 */
export function weightFormats(
  quantization: Quantization | null,
  parameters: readonly Parameter[],
  storedType: ((parameter: Parameter) => SafetensorsDType | undefined) | null,
): Record<string, WeightFormat> {
  if (quantization === null) return {};
  const [scaleRows, scaleCols] = quantization.blockSize;
  const isQuantized = (parameter: Parameter) =>
    parameter.isLinear &&
    (storedType === null
      ? parameter.module !== 'head' && !parameter.module.endsWith('.router')
      : storedType(parameter) === 'F8_E4M3');
  return Object.fromEntries(
    parameters
      .filter(isQuantized)
      .map((parameter) => [moduleOf(parameter), { type: 'float8_e4m3', scaleRows, scaleCols }]),
  );
}
