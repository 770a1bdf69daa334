/** The float types that a model computes and caches in. */
export type DType = 'float32' | 'float16' | 'bfloat16';

/** Bytes of one element. */
export const BYTES_PER_ELEMENT: Readonly<Record<DType, number>> = {
  float32: 4,
  float16: 2,
  bfloat16: 2,
};
