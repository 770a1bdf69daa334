/** Tensors that hold the matrices of all experts of a layer. */
import { show } from '../../config/schema';
import type { TransformerSpec } from '../../config/uniprocConfig';
import { CheckpointError, UnsupportedModelError } from '../../errors';
import type { TensorEntry, TensorTable } from '../safetensors';

const FLOATS: ReadonlySet<string> = new Set(['F32', 'F16', 'BF16']);
const STACK = /^(.*\.experts)\.(gate_up_proj|down_proj)$/;

/**
 * The tensors of each expert of gate_up_proj [numExperts, 2 * intermediateSize, hiddenSize], gate's rows
 * before up's, and of down_proj [numExperts, hiddenSize, intermediateSize]; with `isTransposed`, the last
 * two dimensions are the other way around. Throws CheckpointError for another number of experts, which
 * config.json has under `key`, and UnsupportedModelError for a type that is not a float type.
 */
export function* separateStackedExperts(
  table: TensorTable,
  { experts }: TransformerSpec,
  { key, isTransposed }: { key: string; isTransposed: boolean },
) {
  const tensors = new Map<string, TensorEntry>();
  for (const [name, entry] of table.tensors) {
    yield;
    const stack = STACK.exec(name);
    if (!stack) {
      tensors.set(name, entry);
      continue;
    }
    const [numExperts] = entry.shape;
    if (numExperts !== experts?.numExperts || entry.shape.length !== 3) {
      throw new CheckpointError(
        table.files[entry.file],
        `tensor ${name} has shape ${show(entry.shape)}; config.json requires ` +
          `${key}, ${experts?.numExperts}, and two dimensions more`,
      );
    }
    if (!FLOATS.has(entry.dtype)) {
      throw new UnsupportedModelError(
        table.files[entry.file],
        `tensor ${name} has dtype ${entry.dtype}; tensors that stack experts must be F32, F16 or BF16`,
      );
    }
    const parts = stack[2] === 'down_proj' ? ['down_proj'] : ['gate_proj', 'up_proj'];
    for (let expert = 0; expert < numExperts; expert++) {
      yield;
      parts.forEach((part, i) => {
        const own = partOf(entry, { expert, part: i, numParts: parts.length, isTransposed });
        tensors.set(`${stack[1]}.${expert}.${part}.weight`, own);
      });
    }
  }
  return tensors;
}

/** One of the equal parts of an expert's rows. */
function partOf(
  stack: TensorEntry,
  at: { expert: number; part: number; numParts: number; isTransposed: boolean },
): TensorEntry {
  const [numExperts, first, second] = stack.shape;
  const [width, cols] = at.isTransposed ? [second, first] : [first, second];
  const rows = width / at.numParts;
  const bytes = stack.numBytes / numExperts;
  const elementBytes = bytes / (width * cols);
  const firstElement = at.part * rows * (at.isTransposed ? 1 : cols);
  return {
    ...stack,
    shape: [rows, cols],
    offset: stack.offset + at.expert * bytes + firstElement * elementBytes,
    numBytes: bytes / at.numParts,
    ...(at.isTransposed && { strides: { row: 1, col: width } }),
  };
}
