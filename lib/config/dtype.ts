/** The float types that a model computes in. */
export type DType = 'float32' | 'float16' | 'bfloat16';

/** The types of keys and values in the KV cache. */
export type CacheDType = DType | 'float8_e4m3';

/** Bytes of one element. */
export const BYTES_PER_ELEMENT: Readonly<Record<CacheDType, number>> = {
  float32: 4,
  float16: 2,
  bfloat16: 2,
  float8_e4m3: 1,
};
