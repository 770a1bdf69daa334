/**
 * A checkpoint's quantization. config.json's `quantization_config` names the method; modules are
 * quantized if their tensor in the files has the method's type.
 */
import { z } from 'zod';
import { parseFields, show } from '../config/schema';
import type { Quantization } from '../config/uniprocConfig';
import { CheckpointError, UnsupportedModelError } from '../errors';
import { slicedWork } from '../slicedWork';
import { expertsOf, type ParameterNames } from './parameterNames';
import type { Parameter, WeightFormat } from './spec';

/** Maximum rows and columns of a block. */
const MAX_BLOCK = 2 ** 16;

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
function moduleOf({ layer, module }: Parameter): string {
  return layer === null ? module : `layers.${layer}.${module}`;
}

/**
 * The formats of all quantized modules, by the tensors that `names` finds in the files; null without
 * files: every linear module except the head and routers is quantized. Works in slices, since a large
 * model has tens of thousands of tensors. Rejects with CheckpointError if matrices that share one
 * weight are stored in different formats.
 */
export async function weightFormats(
  quantization: Quantization | null,
  parameters: readonly Parameter[],
  names: ParameterNames | null,
): Promise<Record<string, WeightFormat>> {
  if (quantization === null) return {};
  const [scaleRows, scaleCols] = quantization.blockSize;
  const linear = parameters.filter(({ isLinear }) => isLinear);
  const quantized = names
    ? await quantizedInFiles(linear, names)
    : linear.filter(({ module }) => module !== 'head' && !module.endsWith('.router'));
  return Object.fromEntries(
    quantized.map((parameter) => [
      moduleOf(parameter),
      { type: 'float8_e4m3', scaleRows, scaleCols },
    ]),
  );
}

async function quantizedInFiles(
  linear: readonly Parameter[],
  names: ParameterNames,
): Promise<Parameter[]> {
  const quantized = new Set<Parameter>();
  /** The first tensor of each weight. */
  const firsts = new Map<number, { name: string; dtype: string }>();
  function* examine() {
    for (const parameter of linear) {
      for (const expert of expertsOf(parameter)) {
        const name = names.tensorOf(parameter, expert);
        const dtype = names.table.tensors.get(name)?.dtype;
        yield;
        if (dtype === undefined) continue; // parameterSources refuses it as missing.
        const isQuantized = dtype === 'F8_E4M3';
        const first = firsts.get(parameter.weight) ?? { name, dtype };
        firsts.set(parameter.weight, first);
        if (isQuantized !== (first.dtype === 'F8_E4M3')) {
          throw new CheckpointError(
            names.table.source,
            `tensor ${first.name} has dtype ${first.dtype} and tensor ${name} ${dtype}; ` +
              'they share one weight, so either all or none may be F8_E4M3',
          );
        }
        if (isQuantized) quantized.add(parameter);
      }
    }
  }
  await slicedWork.finish(examine());
  return [...quantized];
}
