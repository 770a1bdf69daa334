/** GGUF's types of tensors (ggml's ggml.h): names, blocks, and those that can be loaded. */
import type { BlockType } from '../../contract/workerSummary';

export interface TensorType {
  name: string;
  /** Consecutive elements of a row and their bytes; null: its tensors cannot be loaded. */
  block: { cols: number; bytes: number } | null;
}

const known = (name: string, cols: number, bytes: number): TensorType => ({
  name,
  block: { cols, bytes },
});
const unknown = (name: string): TensorType => ({ name, block: null });

/** By the number in the file. */
export const TENSOR_TYPES: ReadonlyMap<number, TensorType> = new Map([
  [0, known('F32', 1, 4)],
  [1, known('F16', 1, 2)],
  [2, known('Q4_0', 32, 18)],
  [3, known('Q4_1', 32, 20)],
  [6, known('Q5_0', 32, 22)],
  [7, known('Q5_1', 32, 24)],
  [8, known('Q8_0', 32, 34)],
  [9, unknown('Q8_1')],
  [10, known('Q2_K', 256, 84)],
  [11, known('Q3_K', 256, 110)],
  [12, known('Q4_K', 256, 144)],
  [13, known('Q5_K', 256, 176)],
  [14, known('Q6_K', 256, 210)],
  [15, unknown('Q8_K')],
  [16, unknown('IQ2_XXS')],
  [17, unknown('IQ2_XS')],
  [18, unknown('IQ3_XXS')],
  [19, unknown('IQ1_S')],
  [20, known('IQ4_NL', 32, 18)],
  [21, unknown('IQ3_S')],
  [22, unknown('IQ2_S')],
  [23, known('IQ4_XS', 256, 136)],
  [24, unknown('I8')],
  [25, unknown('I16')],
  [26, unknown('I32')],
  [27, unknown('I64')],
  [28, unknown('F64')],
  [29, unknown('IQ1_M')],
  [30, known('BF16', 1, 2)],
  [31, unknown('Q4_0_4_4')],
  [32, unknown('Q4_0_4_8')],
  [33, unknown('Q4_0_8_8')],
  [34, unknown('TQ1_0')],
  [35, unknown('TQ2_0')],
  [39, known('MXFP4', 32, 17)],
  [40, unknown('NVFP4')],
]);

/** Names of the types that can be loaded. */
export const LOADABLE_TYPES: readonly string[] = [...TENSOR_TYPES.values()]
  .filter(({ block }) => block !== null)
  .map(({ name }) => name);

export type GgufType = Uppercase<BlockType>;

/** The storage type of each type with blocks (native/base/types.h). */
export const BLOCK_TYPES: Readonly<Record<GgufType, BlockType>> = {
  Q4_0: 'q4_0',
  Q4_1: 'q4_1',
  Q5_0: 'q5_0',
  Q5_1: 'q5_1',
  Q8_0: 'q8_0',
  Q2_K: 'q2_k',
  Q3_K: 'q3_k',
  Q4_K: 'q4_k',
  Q5_K: 'q5_k',
  Q6_K: 'q6_k',
  IQ4_NL: 'iq4_nl',
  IQ4_XS: 'iq4_xs',
  MXFP4: 'mxfp4',
};

/** The storage type of a tensor's dtype that has blocks, or undefined. */
export function blockTypeOf(dtype: string): BlockType | undefined {
  return Object.hasOwn(BLOCK_TYPES, dtype) ? BLOCK_TYPES[dtype as GgufType] : undefined;
}

/** Columns of a block; 1 for other types. */
export function blockCols(dtype: string): number {
  for (const { name, block } of TENSOR_TYPES.values()) if (name === dtype) return block?.cols ?? 1;
  return 1;
}
