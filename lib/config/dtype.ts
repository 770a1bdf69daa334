/** The float types that a model computes and caches in. */
export type DType = 'float32' | 'float16' | 'bfloat16';
