/** What a worker says of its device and weights once the model is loaded. */
import type { DType } from '../config/dtype';

export interface WorkerSummary {
  /** 'cpu' or, say, 'NVIDIA H200'. */
  deviceName: string;
  /** The instruction set of the kernels: 'avx512bf16', 'avx512', 'avx2', 'plain'; on CUDA 'sm_90'. */
  capability: string;
  /** Among the ranks that share the model, and their number. */
  rank: number;
  worldSize: number;
  /** Bytes of this rank's share of the weights. */
  weightBytes: WeightBytes;
}

/** The types of quantized weights; of uint4 and float4_e2m1 two elements take a byte. */
export type QuantizedType = 'float8_e4m3' | 'int8' | 'uint4' | 'float4_e2m1';

/** The types of GGUF's blocks, which hold their own scales. */
export type BlockType =
  | 'q4_0'
  | 'q4_1'
  | 'q5_0'
  | 'q5_1'
  | 'q8_0'
  | 'q2_k'
  | 'q3_k'
  | 'q4_k'
  | 'q5_k'
  | 'q6_k'
  | 'iq4_nl'
  | 'iq4_xs'
  | 'mxfp4';

/** Bytes by the type that the elements are stored in; types without weights are left out. */
export type WeightBytes = Partial<Record<DType | QuantizedType | BlockType, number>>;
