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

/** Bytes by the type that the elements are stored in; types without weights are left out. */
export type WeightBytes = Partial<Record<DType | 'float8_e4m3', number>>;
