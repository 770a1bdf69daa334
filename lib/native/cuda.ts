/** What the addon finds of CUDA on this machine, without opening a device. */

/** Why CUDA cannot be used, and a command or another action that changes it. */
export interface CudaProblem {
  reason: string;
  remedy: string;
}

export interface CudaLibrary {
  /** Path of the library that is used; null: none can be loaded. */
  file: string | null;
  /** For example '13.1.1'. */
  version: string | null;
  /** Why none can be loaded. */
  problem: CudaProblem | null;
}

export interface Cuda {
  driver: {
    /** The latest CUDA version that the driver supports, such as '13.0'; null: no driver. */
    cudaVersion: string | null;
    /** Whether there is a GPU for this process, or a driver that fails. */
    hasGpu: boolean;
    /** Why there are no devices. */
    problem: CudaProblem | null;
  };
  /** Those that CUDA_VISIBLE_DEVICES shows. */
  devices: {
    name: string;
    /** Bytes. */
    totalMemory: number;
    /** Compute capability, such as '9.0'. */
    capability: string;
    /** By device: whether this one can read that one's memory. */
    canAccess: boolean[];
    /** Why the driver and this build cannot use it. */
    problem: CudaProblem | null;
  }[];
  /** uniproc_cuda.so. */
  backend: {
    file: string;
    /** Of the CUDA runtime that is linked in; null: the backend is not loaded. */
    cudaVersion: string | null;
    /** For example '80, 90a-real'. */
    architectures: string | null;
    problem: CudaProblem | null;
  };
  cublasLt: CudaLibrary;
  nccl: CudaLibrary;
}

export interface BuildInfo {
  /** The addon's path. */
  file: string;
  /** For example 'GCC 12.2.0'. */
  compiler: string;
}
