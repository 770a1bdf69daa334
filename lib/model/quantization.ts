/**
 * A checkpoint's quantization. config.json's `quantization_config` names the method; modules are
 * quantized if their tensor in the files has the method's type.
 */
import { z } from 'zod';
import { parseFields, show } from '../config/schema';
import type { Quantization } from '../config/uniprocConfig';
import { CheckpointError, UnsupportedModelError } from '../errors';
import type { Parameter, WeightFormat } from '../native';
import type { SafetensorsDType } from './safetensors';

/** Maximum rows and columns of a block. */
const MAX_BLOCK = 2 ** 16;

/** Suffix of a matrix's scales, in place of 'weight'. */
export const SCALES_SUFFIX = 'weight_scale_inv';

/** Throws UnsupportedModelError for an unsupported method, CheckpointError for an invalid key. */
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
    blockSize: blockSize ?? refuse('weight_block_size', blockSize, 'block-wise scaling'),
  };
}

/** A parameter's module name, as in `ModelSpec.weightFormats`. */
export function moduleOf({ layer, expert, module }: Parameter): string {
  const inLayer = layer === null ? module : `layers.${layer}.${module}`;
  return expert === null ? inLayer : `${inLayer}.${expert}`;
}

/**
 * The formats of all quantized modules. `storedType` returns the type of a parameter's tensor in the
 * files; null without files: every linear module except the head and routers is quantized.
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
