/** The formats that a GGUF model's matrices have in memory. */
import type { DType } from '../../config/dtype';
import { CheckpointError, UnsupportedModelError } from '../../errors';
import { slicedWork } from '../../slicedWork';
import { expertsOf, type ParameterNames } from '../parameterNames';
import { moduleOf } from '../quantization';
import type { Parameter, StorageType, WeightFormat } from '../spec';
import { blockTypeOf } from './types';

const FLOATS: Readonly<Record<string, DType | undefined>> = {
  F32: 'float32',
  F16: 'float16',
  BF16: 'bfloat16',
};

const formatOf = (type: StorageType, scaleCols = 0): WeightFormat => ({
  type,
  scaleRows: scaleCols > 0 ? 1 : 0,
  scaleCols,
  hasZeros: false,
  isOrdered: false,
  roundsInput: false,
});

/** Types whose numbers a format with scales beside it has too; CUDA has kernels for those alone. */
const REPACKED: Readonly<Record<string, WeightFormat | undefined>> = {
  Q8_0: formatOf('int8', 32),
  Q4_0: formatOf('uint4', 32),
};

/**
 * On the CPU every matrix keeps the type and the bits of the file. On CUDA, Q8_0 and Q4_0 are
 * repacked, embedding and head are converted to the model's type, and other types are refused. A
 * module without an entry has the model's type. `declared`: the whole model's parameters. Rejects with
 * UnsupportedModelError, which names the tensor.
 */
export async function ggufFormats(
  declared: readonly Parameter[],
  names: ParameterNames,
  device: 'cpu' | 'cuda',
): Promise<Record<string, WeightFormat>> {
  const formats: Record<string, WeightFormat> = {};
  /** The first tensor of each weight, and its type. */
  const firsts = new Map<number, { name: string; dtype: string }>();
  function* examine() {
    for (const parameter of declared) {
      const { module, part, isLinear, weight } = parameter;
      if (part !== 'weight' || !(isLinear || module === 'embedding')) continue;
      for (const expert of expertsOf(parameter)) {
        yield;
        const name = names.tensorOf(parameter, expert);
        const entry = names.table.tensors.get(name);
        if (!entry) continue; // parameterSources refuses it as missing.
        const { dtype, file } = entry;
        const first = firsts.get(weight) ?? { name, dtype };
        firsts.set(weight, first);
        const format = formatIn(names.table.files[file], name, dtype, parameter, device);
        if (format) formats[moduleOf(parameter)] = format;
        // The CPU multiplies parts of different types one by one, except of experts.
        if (dtype !== first.dtype && (device === 'cuda' || parameter.experts)) {
          throw new UnsupportedModelError(
            names.table.files[file],
            `tensor ${first.name} has the type ${first.dtype} and tensor ${name} ${dtype}; ` +
              (parameter.experts
                ? 'gate and up of all experts of a layer must have one type'
                : 'on CUDA matrices with the same input must have one type; set device to cpu'),
          );
        }
      }
    }
  }
  await slicedWork.finish(examine());
  return formats;
}

function formatIn(
  file: string,
  name: string,
  dtype: string,
  { module }: Parameter,
  device: 'cpu' | 'cuda',
): WeightFormat | null {
  const type = FLOATS[dtype] ?? blockTypeOf(dtype);
  if (type === undefined) throw new CheckpointError(file, `tensor ${name} has dtype ${dtype}`);
  if (device === 'cpu') return formatOf(type);
  if (FLOATS[dtype] || module === 'embedding' || module === 'head') return null;
  const repacked = REPACKED[dtype];
  if (repacked) return repacked;
  throw new UnsupportedModelError(
    file,
    `tensor ${name} has the type ${dtype}, which is not supported on CUDA; supported there: F32, ` +
      `F16, BF16, ${Object.keys(REPACKED).join(', ')}; set device to cpu`,
  );
}
