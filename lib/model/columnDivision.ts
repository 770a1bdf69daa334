/** Whether ranks can divide the columns of a matrix as its file stores them. */
import { UnsupportedModelError } from '../errors';
import { blockCols } from './gguf/types';
import type { ParameterNames } from './parameterNames';
import type { TensorEntry, TensorTable } from './safetensors';
import type { Parameter } from './spec';

/** Refuses two columns in a byte that ranks cannot divide, and experts in act-order. */
export function refuseShare(table: TensorTable, names: ParameterNames, parameter: Parameter): void {
  const { part, format, shape } = parameter;
  if (part !== 'weight' || !parameter.isLinear || shape.length < 2) return;
  const { size, first, count } = shape[1];
  const refuse = (reason: string): never => {
    throw new UnsupportedModelError(
      table.source,
      `${names.baseOf(parameter, parameter.experts && 0)} has ${size} columns ${reason}`,
    );
  };
  const isPacked = format.type === 'uint4' || format.type === 'float4_e2m1';
  if (isPacked && size % 8 !== 0) refuse('in 4 bits; their number must be a multiple of 8');
  if (isPacked && (first % 2 !== 0 || count % 2 !== 0)) {
    refuse(`in 4 bits, which ranks cannot divide into ${count}; set tensorParallelSize to less`);
  }
  if (format.isOrdered && parameter.experts) {
    refuse('in act-order, which is not supported for experts');
  }
}

/** Refuses blocks of columns that ranks would cut through. */
export function refuseCutBlocks(
  table: TensorTable,
  name: string,
  { dtype, file }: TensorEntry,
  { shape }: Parameter,
): void {
  const cols = blockCols(dtype);
  if (cols === 1 || shape.length < 2) return;
  const { size, first, count } = shape[1];
  if (first % cols === 0 && count % cols === 0) return;
  throw new UnsupportedModelError(
    table.files[file],
    `tensor ${name} has ${size} columns in blocks of ${cols}, which ranks cannot divide into ` +
      `${count}; set tensorParallelSize to less`,
  );
}
