/**
 * A checkpoint's quantization. config.json's `quantization_config` names the method; a module is
 * quantized if the files hold its tensor in the method's type.
 */
import { show } from '../config/schema';
import type { Quantization, QuantizationScheme } from '../config/uniprocConfig';
import { CheckpointError, UnsupportedModelError } from '../errors';
import { slicedWork } from '../slicedWork';
import { readCompressedTensors } from './compressedTensors';
import { matchesAny } from './modulePatterns';
import { expertsOf, type ParameterNames } from './parameterNames';
import { METHODS, schemeOf } from './quantizationMethods';
import type { Parameter, WeightFormat } from './spec';
import { PACKED_SUFFIXES, weightSuffix } from './storedTensors';

/** Throws UnsupportedModelError for an unsupported method, CheckpointError for an invalid key. */
export function readQuantization(file: string, given: unknown): Quantization | null {
  if (given === undefined || given === null) return null;
  const config = given as Record<string, unknown>;
  if (config.quant_method === 'compressed-tensors') return readCompressedTensors(file, config);
  const read = METHODS.get(config.quant_method);
  if (read) return read(file, config);
  throw new UnsupportedModelError(
    file,
    `quantization_config with quant_method ${show(config.quant_method)} is not supported; ` +
      `supported: compressed-tensors, ${[...METHODS.keys()].join(', ')}; ` +
      'or use a checkpoint in float32, float16 or bfloat16',
  );
}

/** Columns of a group of int4, as most published checkpoints have. */
const GROUP_COLS = 128;

/** Of a model in a float type that is quantized when it is loaded: all linear layers but the head and routers. */
export function quantizedAtLoad(method: 'fp8' | 'int4'): Quantization {
  const format =
    method === 'fp8'
      ? { type: 'float8_e4m3' as const, block: null, roundsInput: true }
      : { type: 'uint4' as const, block: [1, GROUP_COLS] as [number, number] };
  const scheme = schemeOf({ ...format, tensors: 'float' });
  return { method, schemes: [scheme], ignore: [] };
}

/** A parameter's module name, as in `ModelSpec.weightFormats`. */
export function moduleOf({ layer, module }: Parameter): string {
  return layer === null ? module : `layers.${layer}.${module}`;
}

/** The quantized modules of a model, by name. */
export type Schemes = ReadonlyMap<string, QuantizationScheme>;

/**
 * The schemes of all quantized modules, by the tensors that `names` finds in the files; without files
 * (`isInFiles` false): every linear module except the head and routers. Works in slices, since a large
 * model has tens of thousands of tensors. Rejects with CheckpointError if matrices that share one
 * weight are stored in different formats.
 */
export async function schemesOf(
  quantization: Quantization | null,
  parameters: readonly Parameter[],
  names: ParameterNames,
  isInFiles = true,
): Promise<Schemes> {
  const schemes = new Map<string, QuantizationScheme>();
  if (quantization === null) return schemes;
  /** The first tensor of each weight. */
  const firsts = new Map<number, { name: string; scheme: QuantizationScheme | null }>();
  function* examine(quantization: Quantization) {
    for (const parameter of parameters) {
      if (!parameter.isLinear) continue;
      for (const expert of expertsOf(parameter)) {
        yield;
        const base = names.baseOf(parameter, expert);
        const { module } = parameter;
        const isHeadOrRouter = module === 'head' || /router$/i.test(module);
        const any = schemeFor(quantization, base);
        const matching = any?.tensors === 'float' && isHeadOrRouter ? null : any;
        if (!isInFiles) {
          const isKept = isHeadOrRouter || matchesAny(quantization.ignore, base);
          if (matching && !isKept) schemes.set(moduleOf(parameter), matching);
          continue;
        }
        const found = inFiles(names, base, matching);
        if (found === undefined) continue; // parameterSources refuses it as missing.
        const { name, scheme } = found;
        const first = firsts.get(parameter.weight) ?? found;
        firsts.set(parameter.weight, first);
        if (scheme !== first.scheme) {
          throw new CheckpointError(
            names.table.source,
            `tensor ${first.name} has dtype ${dtypeOf(names, first.name)} and tensor ${name} ` +
              `${dtypeOf(names, name)}; they share one weight, so all must have one format`,
          );
        }
        if (scheme) schemes.set(moduleOf(parameter), scheme);
      }
    }
  }
  await slicedWork.finish(examine(quantization));
  return schemes;
}

function schemeFor({ schemes }: Quantization, base: string): QuantizationScheme | null {
  return schemes.find(({ targets }) => !targets || matchesAny(targets, base)) ?? null;
}

const dtypeOf = (names: ParameterNames, name: string) => names.table.tensors.get(name)?.dtype;

/**
 * A module's tensor and its scheme, null for a float type; undefined if there is none. The type in the
 * files decides, whatever list of modules config.json has.
 */
function inFiles(
  names: ParameterNames,
  base: string,
  matching: QuantizationScheme | null,
): { name: string; scheme: QuantizationScheme | null } | undefined {
  const plain = `${base}.weight`;
  const dtype = dtypeOf(names, plain);
  if (dtype !== undefined && dtype !== 'F8_E4M3' && dtype !== 'I8') {
    return { name: plain, scheme: matching?.tensors === 'float' ? matching : null };
  }
  const name = ['weight', ...PACKED_SUFFIXES]
    .map((suffix) => `${base}.${suffix}`)
    .find((each) => dtypeOf(names, each));
  if (name === undefined) return undefined;
  if (matching === null && name === plain) return { name, scheme: null }; // lookUp refuses it.
  if (matching === null || name !== `${base}.${weightSuffix(matching)}`) {
    throw new CheckpointError(
      names.table.source,
      `tensor ${name} has dtype ${dtypeOf(names, name)}, but quantization_config ` +
        (matching ? `describes ${base}.${weightSuffix(matching)}` : 'does not describe its format'),
    );
  }
  return { name, scheme: matching };
}

/** The formats of a model's modules of those schemes. Matrices must have their whole shape. */
export function weightFormats(
  schemes: Schemes,
  parameters: readonly Parameter[],
): Record<string, WeightFormat> {
  const formats: Record<string, WeightFormat> = {};
  for (const parameter of parameters) {
    const scheme = parameter.isLinear && schemes.get(moduleOf(parameter));
    if (!scheme) continue;
    const { type, block, hasZeros, isOrdered, roundsInput } = scheme;
    const [scaleRows, scaleCols] = block ?? [1, parameter.shape[1].size];
    formats[moduleOf(parameter)] = {
      type,
      scaleRows,
      scaleCols,
      hasZeros,
      isOrdered,
      roundsInput,
    };
  }
  return formats;
}
