/** A model and its parameters, as the native layer takes them (native/model/spec.h, parameter.h). */
import { BYTES_PER_ELEMENT, type DType } from '../config/dtype';
import type { BlockType, QuantizedType } from '../contract/workerSummary';

/** A tensor in a file, at byte `offset`. */
export interface StoredTensor {
  path: string;
  offset: number;
  dtype: DType;
}

export type RopeScaling =
  | { type: 'default' }
  | { type: 'linear'; factor: number }
  | { type: 'dynamic'; factor: number; originalMaxPositionEmbeddings: number }
  | {
      type: 'llama3';
      factor: number;
      lowFreqFactor: number;
      highFreqFactor: number;
      originalMaxPositionEmbeddings: number;
    }
  | {
      type: 'proportional';
      factor: number;
      /** Of `rotaryDim`, whose first pairs are rotated: the other angles are 0. */
      rotatedDim: number;
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
    }
  | {
      type: 'longrope';
      /** Factors of the wavelengths, [rotaryDim / 2]: up to the original context, and beyond. */
      shortFactors: number[];
      longFactors: number[];
      originalMaxPositionEmbeddings: number;
      /** Scale of cos and sin. */
      attentionFactor: number;
    };

/** Rotary embedding (Su et al. 2021) of the first `rotaryDim` elements of each head. */
export interface RopeSpec {
  /** Base of the wavelengths. */
  theta: number;
  scaling: RopeScaling;
  rotaryDim: number;
}

/** Mixture of experts: the router selects some of a layer's MLPs for each token. */
export interface ExpertsSpec {
  numExperts: number;
  numExpertsPerToken: number;
  /** Per expert. */
  intermediateSize: number;
  /** The weights of a token's experts are scaled to a sum of 1. */
  normTopkProb: boolean;
  /**
   * The router scores experts by sigmoids of its logits, not by their softmax. A token's experts have
   * the largest sums of score and bias, among those of the `numChosenGroups` groups (of `numGroups`, of
   * adjacent experts) with the largest sums of two (DeepSeek-V3).
   */
  sigmoidScores: boolean;
  /** Of the sigmoids, `experts.scoreBias`. */
  scoreBias: boolean;
  /** The weight of a token's only expert is of its input, not of its output (Llama 4). */
  scalesInput: boolean;
  numGroups: number;
  numChosenGroups: number;
  /** Of the sigmoids, after scaling to a sum of 1. */
  weightScale: number;
  routerBias: boolean;
  /** The router's input has a norm of its own, whose output is divided by sqrt(hiddenSize) (Gemma 4). */
  routerNorm: boolean;
  /** The softmax's weights are multiplied by their expert's scale, `experts.scales` (Gemma 4). */
  expertScales: boolean;
  /** Of gate, up and down of each expert. */
  bias: boolean;
  /** Size of an MLP that all tokens pass besides; 0: none. */
  sharedIntermediateSize: number;
  /** It is scaled by the sigmoid of a gate. */
  sharedGate: boolean;
  /**
   * The layer has both, each with norms of its input and output, which are summed and normed again
   * (Gemma 4).
   */
  besideMlp: boolean;
  /** [numLayers]: the layer has experts instead of the gated MLP. */
  layers: boolean[];
}

/** The heads of some layers, where they differ from the others'. */
export interface OtherHeads {
  numKvHeads: number;
  headDim: number;
  /** The files have one matrix for k and v. */
  keysAreValues: boolean;
  /** [numLayers] */
  layers: boolean[];
}

/** The storage type of a tensor's elements. */
export type StorageType = DType | QuantizedType | BlockType;

/** Bytes of one stored element. */
export const STORED_BYTES: Readonly<Record<StorageType, number>> = {
  ...BYTES_PER_ELEMENT,
  float8_e4m3: 1,
  int8: 1,
  uint4: 0.5,
  float4_e2m1: 0.5,
  // Bytes of a block by its elements.
  q4_0: 18 / 32,
  q4_1: 20 / 32,
  q5_0: 22 / 32,
  q5_1: 24 / 32,
  q8_0: 34 / 32,
  q2_k: 84 / 256,
  q3_k: 110 / 256,
  q4_k: 144 / 256,
  q5_k: 176 / 256,
  q6_k: 210 / 256,
  iq4_nl: 18 / 32,
  iq4_xs: 136 / 256,
  mxfp4: 17 / 32,
};

/**
 * How a matrix is stored: element type, and one scale per block of [scaleRows, scaleCols]; 0, 0: no
 * scales.
 */
export interface WeightFormat {
  type: StorageType;
  scaleRows: number;
  scaleCols: number;
  /** uint4: each block has a zero point; without, it is 8. */
  hasZeros: boolean;
  /** Columns are sorted by their block in memory, and x is gathered in their order. */
  isOrdered: boolean;
  /** float8_e4m3: products may round their input to float8 too. */
  roundsInput: boolean;
}

/** The whole model's forward pass, independent of the number of ranks. */
export interface ModelSpec {
  /** Type of the KV cache without `fp8Cache`, and of weights without an entry in weightFormats. */
  dtype: DType;
  vocabSize: number;
  hiddenSize: number;
  intermediateSize: number;
  numLayers: number;
  numHeads: number;
  numKvHeads: number;
  headDim: number;
  /** null: all layers have the same. */
  otherHeads: OtherHeads | null;
  rmsNormEps: number;
  ropes: RopeSpec[];
  /** [numLayers]: index into `ropes`; -1: the layer has no rotary embedding. */
  layerRopes: number[];
  /** Pairs of neighbours are rotated, not of halves; of whole heads. */
  interleavedRope: boolean;
  /** [numLayers]: tokens that each layer attends to; 0: all. */
  slidingWindows: number[];
  /** Windows are chunks: of size w, a token attends to those from position n * w on (Llama 4). */
  chunkedWindows: boolean;
  /**
   * [numLayers]: the layer whose keys and values each attends to, itself or an earlier one with the same
   * heads and window; null: every layer has its own.
   */
  kvLayers: number[] | null;
  /** The MLPs of layers without own keys and values are 2 * intermediateSize wide. */
  doubleWideMlps: boolean;
  /** Each head's softmax has one more score, `attention.sinks`, without a value. */
  attentionSinks: boolean;
  /** Bias of q, k and v; of o; of gate, up and down. */
  qkvBias: boolean;
  outputBias: boolean;
  mlpBias: boolean;
  /**
   * RMSNorm of q and k: of each head (Qwen3) or of the whole projections (OLMo 2), before rope; of each
   * head without weights, in layers with rope (Llama 4).
   */
  qkNorm: 'head' | 'projection' | 'unweighted' | null;
  /** RMSNorm of each head of v, without weights (Gemma 4). */
  valueNorm: boolean;
  /**
   * Of MLPs and experts; 'geluTanh' is GELU by its approximation with tanh, 'clampedSwiglu' that of
   * gpt-oss.
   */
  activation: 'silu' | 'gelu' | 'geluTanh' | 'clampedSwiglu';
  /** Attention and MLP compute x += outputNorm(block(inputNorm(x))), with either norm or both. */
  inputNorms: boolean;
  outputNorms: boolean;
  /** The residual is scaled behind each layer, `layer.scale` (Gemma 4). */
  layerScales: boolean;
  /**
   * Size of what each layer gets of a token besides the residual: of its embedding and of a table of its
   * own, `perLayer.embedding` (Gemma 4 E2B); 0: nothing.
   */
  perLayerInputSize: number;
  /** Added to the weights of all norms: 1 if the files have their difference to 1. */
  normOffset: number;
  embeddingScale: number;
  /** The embedding's scale is rounded to `dtype`. */
  roundsEmbeddingScale: boolean;
  /** Of query times key, usually 1 / sqrt(headDim). */
  attentionScale: number;
  /** Queries are scaled by 1 + beta * log(1 + floor((position + shift) / period)) (Llama 4). */
  queryScaleBeta: number;
  queryScalePeriod: number;
  queryScaleShift: number;
  /** Only in layers without rotary embedding. */
  queryScaleUnrotatedOnly: boolean;
  /** Of the outputs of attention and MLP. */
  residualScale: number;
  logitScale: number;
  /** Scores of attention, and logits, are cap * tanh(x / cap) of x (Gemma 2); 0: x. */
  attentionSoftcap: number;
  logitSoftcap: number;
  /** The output head shares the embedding's weight. */
  tieWordEmbeddings: boolean;
  /** No output head: the last norm of each prompt's last token is the output (embedding models). */
  poolsLastToken: boolean;
  /** null: every layer has the gated MLP. */
  experts: ExpertsSpec | null;
  /** By module ('layers.3.attention.q'); modules without an entry are stored in `dtype`. */
  weightFormats: Record<string, WeightFormat>;
  /** Missing: keys and values are cached in `dtype`. */
  fp8Cache?: Fp8CacheSpec;
}

/** Keys and values are cached in fp8 e4m3, divided by their layer's scale. [numLayers] */
export interface Fp8CacheSpec {
  keyScales: number[];
  valueScales: number[];
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
  part: 'weight' | 'bias' | 'scales' | 'zeros' | 'order';
  /** A linear layer's matrix, which may have any format. */
  isLinear: boolean;
  /** Format of the module's matrix. */
  format: WeightFormat;
  /** The weight in memory that holds the matrix; the parameters of one weight have one format. */
  weight: number;
  /** [rows] or [rows, cols]. */
  shape: ParameterDimension[];
}

/** How a file holds a tensor (native/model/tensor_layout.h). */
export type TensorLayout =
  | 'rows'
  | 'oneForAll'
  | 'transposed'
  | 'gptq'
  | 'gptqV2'
  | 'awq'
  | 'packedRows'
  | 'interleavedHeads';

/** Location of a parameter's tensor in a checkpoint: whole, and contiguous or in strides. */
export interface ParameterSource {
  /** Index into the result of declareParameters for this rank. */
  parameter: number;
  /** Required if the parameter has experts. */
  expert?: number;
  /** Index into the list of files, and the byte where the tensor begins. */
  file: number;
  offset: number;
  /** 'float32' for the 32-bit integers of an order, 'int8' for bytes of E8M0. */
  dtype: StorageType;
  /** Missing: the tensor is contiguous. */
  strides?: Strides;
  /** Default: 'rows'. */
  layout?: TensorLayout;
  /** In other layouts: the rows of the tensor, and the parameter's first. */
  wholeRows?: number;
  firstRow?: number;
}

/** Elements between the rows and between the columns of a matrix. */
export interface Strides {
  row: number;
  col: number;
}
