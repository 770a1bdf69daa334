/** The fields of a spec in which the models of most tests do not differ. */
import type { ModelSpec, RopeScaling } from '../../lib/native';

/** Softmax over all experts, without biases or a shared one. */
export const PLAIN_EXPERTS = {
  sigmoidScores: false,
  scoreBias: false,
  scalesInput: false,
  numGroups: 1,
  numChosenGroups: 1,
  weightScale: 1,
  routerBias: false,
  routerNorm: false,
  expertScales: false,
  bias: false,
  sharedIntermediateSize: 0,
  sharedGate: false,
  besideMlp: false,
};

/** Full rotation and attention, norms before the blocks, no biases, experts or scales. */
export function plainSpec(numLayers: number, headDim: number, scaling?: RopeScaling) {
  return {
    ropes: [{ theta: 10000, scaling: scaling ?? { type: 'default' }, rotaryDim: headDim }],
    layerRopes: new Array<number>(numLayers).fill(0),
    interleavedRope: false,
    slidingWindows: new Array<number>(numLayers).fill(0),
    chunkedWindows: false,
    kvLayers: null,
    doubleWideMlps: false,
    perLayerInputSize: 0,
    attentionSinks: false,
    qkvBias: false,
    outputBias: false,
    mlpBias: false,
    otherHeads: null,
    qkNorm: null,
    valueNorm: false,
    activation: 'silu',
    inputNorms: true,
    outputNorms: false,
    layerScales: false,
    normOffset: 0,
    embeddingScale: 1,
    roundsEmbeddingScale: false,
    attentionScale: 1 / Math.sqrt(headDim),
    queryScaleBeta: 0,
    queryScalePeriod: 1,
    queryScaleShift: 0,
    queryScaleUnrotatedOnly: false,
    residualScale: 1,
    logitScale: 1,
    attentionSoftcap: 0,
    logitSoftcap: 0,
    poolsLastToken: false,
    experts: null,
  } satisfies Partial<ModelSpec>;
}
