/** A model and its parameters, as the native layer takes them (native/model/spec.h, parameter.h). */
import type { DType } from '../config/dtype';

/** A tensor in a file, at byte `offset`. */
export interface StoredTensor {
  path: string;
  offset: number;
  dtype: DType;
}

export type RopeScaling =
  | { type: 'default' }
  | { type: 'linear'; factor: number }
  | {
      type: 'llama3';
      factor: number;
      lowFreqFactor: number;
      highFreqFactor: number;
      originalMaxPositionEmbeddings: number;
    }
  | {
      type: 'yarn';
      factor: number;
      betaFast: number;
      betaSlow: number;
      originalMaxPositionEmbeddings: number;
      /** Scale of cos and sin. */
      attentionFactor: number;
      truncate: boolean;
    };

/** Mixture of experts: the router selects some of a layer's MLPs for each token. */
export interface ExpertsSpec {
  numExperts: number;
  numExpertsPerToken: number;
  /** Per expert. */
  intermediateSize: number;
  /** The weights of a token's experts are scaled to a sum of 1. */
  normTopkProb: boolean;
  /** [numLayers]: the layer has experts instead of the gated MLP. */
  layers: boolean[];
}

/** The storage type of a tensor's elements. */
export type StorageType = DType | 'float8_e4m3';

/**
 * How a matrix is stored: element type, and one scale per block of [scaleRows, scaleCols]; 0, 0: no
 * scales.
 */
export interface WeightFormat {
  type: StorageType;
  scaleRows: number;
  scaleCols: number;
}

/** The whole model's forward pass, independent of the number of ranks. */
export interface ModelSpec {
  /** Type of the KV cache, and of weights without an entry in weightFormats. */
  dtype: DType;
  vocabSize: number;
  hiddenSize: number;
  intermediateSize: number;
  numLayers: number;
  numHeads: number;
  numKvHeads: number;
  headDim: number;
  rmsNormEps: number;
  ropeTheta: number;
  ropeScaling: RopeScaling;
  /** [numLayers]: tokens that each layer attends to; 0: all. */
  slidingWindows: number[];
  /** Bias of q, k and v; of o; of gate, up and down. */
  qkvBias: boolean;
  outputBias: boolean;
  mlpBias: boolean;
  /** RMSNorm of each head of q and k before rope (Qwen3). */
  qkNorm: boolean;
  /** The output head shares the embedding's weight. */
  tieWordEmbeddings: boolean;
  /** null: every layer has the gated MLP. */
  experts: ExpertsSpec | null;
  /** By module ('layers.3.attention.q'); modules without an entry are stored in `dtype`. */
  weightFormats: Record<string, WeightFormat>;
}

/** A dimension of a checkpoint's tensor, and this rank's range of it: [first, first + count). */
export interface ParameterDimension {
  size: number;
  /** The product of the spec's sizes that it equals: 'numHeads * headDim'. */
  of: string;
  first: number;
  count: number;
}

/**
 * A tensor, or one per expert, that the model's blocks declare (native/model/blocks). If a rank holds
 * nothing of it (such as a bias that only one rank adds), a dimension has count 0.
 */
export interface Parameter {
  /** null outside the layers. */
  layer: number | null;
  /** The experts with a tensor of this shape each, and this rank's range; null: a single tensor. */
  experts: { size: number; first: number; count: number } | null;
  /** embedding, norm, head, attention.norm, attention.q, mlp.gate, ... */
  module: string;
  part: 'weight' | 'bias' | 'scales';
  /** A linear layer's matrix, which may have any format. */
  isLinear: boolean;
  /** Format of the module's matrix. */
  format: WeightFormat;
  /** The weight in memory that holds the matrix; the parameters of one weight have one format. */
  weight: number;
  /** [rows] or [rows, cols]. */
  shape: ParameterDimension[];
}

/** Location of a parameter's tensor in a checkpoint: whole and contiguous. */
export interface ParameterSource {
  /** Index into the result of declareParameters for this rank. */
  parameter: number;
  /** Required if the parameter has experts. */
  expert?: number;
  /** Index into the list of files, and the byte where the tensor begins. */
  file: number;
  offset: number;
  dtype: StorageType;
}
