/**
 * A simple float64 decoder, the reference for the native model. Weights are separate and named as in
 * a checkpoint.
 */
import { headsOf } from '../../lib/model/division';
import type { ModelSpec, RopeSpec } from '../../lib/native';
import { softcap } from './ops/reference';

/** A matrix [rows, cols], or a vector with cols 1. */
export interface Tensor {
  rows: number;
  cols: number;
  data: Float32Array;
}

export interface LayerTensors {
  inputNorm?: Tensor;
  q: Tensor;
  k: Tensor;
  v: Tensor;
  qBias?: Tensor;
  kBias?: Tensor;
  vBias?: Tensor;
  qNorm?: Tensor;
  kNorm?: Tensor;
  o: Tensor;
  oBias?: Tensor;
  attentionOutputNorm?: Tensor;
  postAttentionNorm?: Tensor;
  gate: Tensor;
  up: Tensor;
  gateBias?: Tensor;
  upBias?: Tensor;
  down: Tensor;
  downBias?: Tensor;
  mlpOutputNorm?: Tensor;
  scale?: Tensor;
}

export interface ModelTensors {
  embedTokens: Tensor;
  norm: Tensor;
  lmHead?: Tensor;
  layers: LayerTensors[];
}

/** The tensor of a parameter that the native blocks declare. */
export function tensorOf(
  { layers, ...tensors }: ModelTensors,
  layer: number | null,
  module: string,
  part: string,
): Tensor {
  const all: Record<string, Tensor | undefined> =
    layer === null
      ? {
          'embedding.weight': tensors.embedTokens,
          'norm.weight': tensors.norm,
          'head.weight': tensors.lmHead,
        }
      : {
          'attention.norm.weight': layers[layer].inputNorm,
          'attention.q.weight': layers[layer].q,
          'attention.k.weight': layers[layer].k,
          'attention.v.weight': layers[layer].v,
          'attention.q.bias': layers[layer].qBias,
          'attention.k.bias': layers[layer].kBias,
          'attention.v.bias': layers[layer].vBias,
          'attention.qNorm.weight': layers[layer].qNorm,
          'attention.kNorm.weight': layers[layer].kNorm,
          'attention.o.weight': layers[layer].o,
          'attention.o.bias': layers[layer].oBias,
          'attention.outputNorm.weight': layers[layer].attentionOutputNorm,
          'mlp.norm.weight': layers[layer].postAttentionNorm,
          'mlp.outputNorm.weight': layers[layer].mlpOutputNorm,
          'mlp.gate.weight': layers[layer].gate,
          'mlp.up.weight': layers[layer].up,
          'mlp.gate.bias': layers[layer].gateBias,
          'mlp.up.bias': layers[layer].upBias,
          'mlp.down.weight': layers[layer].down,
          'mlp.down.bias': layers[layer].downBias,
          'layer.scale.weight': layers[layer].scale,
        };
  const tensor = all[`${module}.${part}`];
  if (!tensor) throw new Error(`the reference has no ${module}.${part} of layer ${layer}`);
  return tensor;
}

/** Numbers in [0, 1) from a seed (mulberry32). */
export function random(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let x = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x;
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Random weights for every tensor of the spec, large enough for attention to matter. */
export function randomTensors(spec: ModelSpec, seed: number): ModelTensors {
  const next = random(seed);
  const tensor = (rows: number, cols: number, scale = 2 / Math.sqrt(cols), mean = 0): Tensor => ({
    rows,
    cols,
    data: Float32Array.from({ length: rows * cols }, () => mean + scale * (2 * next() - 1)),
  });
  const norm = (size: number) => tensor(size, 1, 0.5, 1);
  const blockNorm = (wanted: boolean) => (wanted ? norm(spec.hiddenSize) : undefined);
  const qkNorm = (width: number, headDim: number) =>
    spec.qkNorm ? norm(spec.qkNorm === 'head' ? headDim : width) : undefined;
  const bias = (wanted: boolean, size: number) => (wanted ? tensor(size, 1, 0.5) : undefined);
  const { hiddenSize, intermediateSize, vocabSize } = spec;
  return {
    embedTokens: tensor(vocabSize, hiddenSize, 1),
    norm: norm(hiddenSize),
    lmHead: spec.tieWordEmbeddings ? undefined : tensor(vocabSize, hiddenSize),
    layers: Array.from({ length: spec.numLayers }, (_, layer) => {
      const [numKvHeads, headDim] = headsOf(spec, layer);
      const [qSize, kvSize] = [spec.numHeads * headDim, numKvHeads * headDim];
      return {
        inputNorm: blockNorm(spec.inputNorms),
        q: tensor(qSize, hiddenSize),
        k: tensor(kvSize, hiddenSize),
        v: tensor(kvSize, hiddenSize),
        qBias: bias(spec.qkvBias, qSize),
        kBias: bias(spec.qkvBias, kvSize),
        vBias: bias(spec.qkvBias, kvSize),
        qNorm: qkNorm(qSize, headDim),
        kNorm: qkNorm(kvSize, headDim),
        o: tensor(hiddenSize, qSize),
        oBias: bias(spec.outputBias, hiddenSize),
        attentionOutputNorm: blockNorm(spec.outputNorms),
        postAttentionNorm: blockNorm(spec.inputNorms),
        gate: tensor(intermediateSize, hiddenSize),
        up: tensor(intermediateSize, hiddenSize),
        gateBias: bias(spec.mlpBias, intermediateSize),
        upBias: bias(spec.mlpBias, intermediateSize),
        down: tensor(hiddenSize, intermediateSize),
        downBias: bias(spec.mlpBias, hiddenSize),
        mlpOutputNorm: blockNorm(spec.outputNorms),
        scale: spec.layerScales ? norm(1) : undefined,
      };
    }),
  };
}

/** The error function, by a series of positive terms. */
function erf(x: number): number {
  if (Math.abs(x) > 6) return Math.sign(x);
  let [term, sum] = [x, x];
  for (let n = 1; n < 200; n++) {
    term *= (2 * x * x) / (2 * n + 1);
    sum += term;
  }
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
}

/** The gate `x` times `up`, as the activation does it. */
export function activate(x: number, activation: ModelSpec['activation'], up = 1): number {
  if (activation === 'silu') return (up * x) / (1 + Math.exp(-x));
  if (activation === 'clampedSwiglu') {
    const gate = Math.min(x, 7);
    return (gate / (1 + Math.exp(-1.702 * gate))) * (Math.max(-7, Math.min(up, 7)) + 1);
  }
  const share =
    activation === 'gelu'
      ? erf(x / Math.SQRT2)
      : Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3));
  return up * 0.5 * x * (1 + share);
}

const linear = ({ rows, cols, data }: Tensor, x: number[], bias?: Tensor): number[] =>
  Array.from({ length: rows }, (_, row) => {
    let sum = bias ? bias.data[row] : 0;
    for (let col = 0; col < cols; col++) sum += data[row * cols + col] * x[col];
    return sum;
  });

function rmsNorm(x: number[], weight: Tensor, eps: number, offset: number): number[] {
  const meanSquare = x.reduce((sum, value) => sum + value * value, 0) / x.length;
  return x.map((value, i) => (value / Math.sqrt(meanSquare + eps)) * (weight.data[i] + offset));
}

/** Radians per position of pair `i`, in a context of `maxModelLen`. */
function frequency(i: number, rope: RopeSpec, maxModelLen: number): number {
  const { theta, scaling, rotaryDim: headDim } = rope;
  const plain = theta ** ((-2 * i) / headDim);
  if (scaling.type === 'default') return plain;
  if (scaling.type === 'linear') return plain / scaling.factor;
  if (scaling.type === 'proportional') {
    return 2 * i < scaling.rotatedDim ? plain / scaling.factor : 0;
  }
  const original = scaling.originalMaxPositionEmbeddings;
  if (scaling.type === 'longrope') {
    const { shortFactors, longFactors } = scaling;
    return plain / (maxModelLen > original ? longFactors : shortFactors)[i];
  }
  const { factor } = scaling;
  if (scaling.type === 'dynamic') {
    const stretch = (factor * Math.max(maxModelLen, original)) / original - (factor - 1);
    return (theta * stretch ** (headDim / (headDim - 2))) ** ((-2 * i) / headDim);
  }
  const turns = (original * plain) / (2 * Math.PI);
  if (scaling.type === 'llama3') {
    const { lowFreqFactor, highFreqFactor } = scaling;
    const kept = Math.min(
      1,
      Math.max(0, (turns - lowFreqFactor) / (highFreqFactor - lowFreqFactor)),
    );
    return kept * plain + ((1 - kept) * plain) / factor;
  }
  const pairThatTurns = (times: number) =>
    (headDim * Math.log(original / (times * 2 * Math.PI))) / (2 * Math.log(theta));
  let low = pairThatTurns(scaling.betaFast);
  let high = pairThatTurns(scaling.betaSlow);
  if (scaling.truncate) [low, high] = [Math.floor(low), Math.ceil(high)];
  [low, high] = [Math.max(low, 0), Math.min(high, headDim - 1)];
  const stretched = Math.min(1, Math.max(0, (i - low) / (high - low || 0.001)));
  return stretched * (plain / factor) + (1 - stretched) * plain;
}

/** Rotates pairs of neighbours, as GPT-J does. */
function rotateNeighbours(head: number[], position: number, rope: RopeSpec, maxModelLen: number) {
  return head.map((value, i) => {
    const angle = position * frequency(Math.floor(i / 2), rope, maxModelLen);
    const other = i % 2 === 0 ? -head[i + 1] : head[i - 1];
    return value * Math.cos(angle) + other * Math.sin(angle);
  });
}

/** Rotates the halves of a head's first elements, as GPT-NeoX does. */
function rotate(head: number[], position: number, rope: RopeSpec, maxModelLen: number): number[] {
  const half = rope.rotaryDim / 2;
  const { scaling } = rope;
  const scale = 'attentionFactor' in scaling ? scaling.attentionFactor : 1;
  return head.map((value, i) => {
    if (i >= rope.rotaryDim) return value;
    const angle = position * frequency(i % half, rope, maxModelLen);
    const other = i < half ? -head[i + half] : head[i - half];
    return scale * (value * Math.cos(angle) + other * Math.sin(angle));
  });
}

const dot = (a: number[], b: number[]) => a.reduce((sum, value, i) => sum + value * b[i], 0);

/** Causal attention of every position, within the window; heads in groups share keys and values. */
function attend(q: number[][][], k: number[][][], v: number[][][], spec: ModelSpec, layer: number) {
  const window = spec.slidingWindows[layer];
  const isScaled = !spec.queryScaleUnrotatedOnly || spec.layerRopes[layer] < 0;
  const [numKvHeads, headDim] = headsOf(spec, layer);
  const group = spec.numHeads / numKvHeads;
  return q.map((heads, position) => {
    const periods = Math.floor((position + spec.queryScaleShift) / spec.queryScalePeriod);
    const temperature = isScaled ? 1 + spec.queryScaleBeta * Math.log(1 + periods) : 1;
    return heads.flatMap((query, head) => {
      const kvHead = Math.floor(head / group);
      const slid = Math.max(0, position - window + 1);
      const chunk = Math.floor(position / window) * window;
      const first = window === 0 ? 0 : spec.chunkedWindows ? chunk : slid;
      const scores: number[] = [];
      for (let key = first; key <= position; key++) {
        const score = dot(query, k[key][kvHead]) * spec.attentionScale * temperature;
        scores.push(softcap(score, spec.attentionSoftcap));
      }
      const most = Math.max(...scores);
      const exps = scores.map((score) => Math.exp(score - most));
      const sum = exps.reduce((a, b) => a + b);
      const out = new Array<number>(headDim).fill(0);
      exps.forEach((weight, i) => {
        v[first + i][kvHead].forEach((value, d) => (out[d] += (weight / sum) * value));
      });
      return out;
    });
  });
}

/** Log softmax of the logits at every position, in a context of `maxModelLen`: [numTokens][vocabSize]. */
export function decode(
  spec: ModelSpec,
  tensors: ModelTensors,
  tokenIds: number[],
  maxModelLen = 96,
): number[][] {
  const eps = spec.rmsNormEps;
  const { embedTokens } = tensors;
  const add = (a: number[], b: number[]) => a.map((value, i) => value + spec.residualScale * b[i]);
  const normed = (x: number[], norm?: Tensor) =>
    norm ? rmsNorm(x, norm, eps, spec.normOffset) : x;
  let hidden = tokenIds.map((id) =>
    Array.from(embedTokens.data.subarray(id * embedTokens.cols, (id + 1) * embedTokens.cols)).map(
      (value) => spec.embeddingScale * value,
    ),
  );
  tensors.layers.forEach((layer, index) => {
    const [, headDim] = headsOf(spec, index);
    const split = (x: number[]) =>
      Array.from({ length: x.length / headDim }, (_, head) =>
        x.slice(head * headDim, (head + 1) * headDim),
      );
    const unweighted = (x: number[]) =>
      rmsNorm(x, { rows: x.length, cols: 1, data: new Float32Array(x.length).fill(1) }, eps, 0);
    const input = hidden.map((x) => normed(x, layer.inputNorm));
    const rope = spec.layerRopes[index] < 0 ? null : spec.ropes[spec.layerRopes[index]];
    const turn = (weight: Tensor, bias?: Tensor, norm?: Tensor) =>
      input.map((x, position) => {
        const projected = linear(weight, x, bias);
        const whole = spec.qkNorm === 'projection' ? normed(projected, norm) : projected;
        return split(whole).map((each) => {
          const head = spec.qkNorm === 'head' ? normed(each, norm) : each;
          if (!rope) return head;
          const turned = (spec.interleavedRope ? rotateNeighbours : rotate)(
            head,
            position,
            rope,
            maxModelLen,
          );
          return spec.qkNorm === 'unweighted' ? unweighted(turned) : turned;
        });
      });
    const q = turn(layer.q, layer.qBias, layer.qNorm);
    const k = turn(layer.k, layer.kBias, layer.kNorm);
    const v = input.map((x) =>
      split(linear(layer.v, x, layer.vBias)).map((head) =>
        spec.valueNorm ? unweighted(head) : head,
      ),
    );
    const attended = attend(q, k, v, spec, index);
    hidden = hidden.map((x, i) =>
      add(x, normed(linear(layer.o, attended[i], layer.oBias), layer.attentionOutputNorm)),
    );
    hidden = hidden.map((x) => {
      const y = normed(x, layer.postAttentionNorm);
      const gate = linear(layer.gate, y, layer.gateBias);
      const up = linear(layer.up, y, layer.upBias);
      const mlp = gate.map((value, i) => activate(value, spec.activation, up[i]));
      const out = add(x, normed(linear(layer.down, mlp, layer.downBias), layer.mlpOutputNorm));
      const [scale] = layer.scale?.data ?? [1];
      return out.map((value) => scale * value);
    });
  });
  return hidden.map((x) => {
    const logits = linear(tensors.lmHead ?? embedTokens, normed(x, tensors.norm)).map((logit) =>
      softcap(spec.logitScale * logit, spec.logitSoftcap),
    );
    const most = Math.max(...logits);
    const logSum = most + Math.log(logits.reduce((sum, l) => sum + Math.exp(l - most), 0));
    return logits.map((logit) => logit - logSum);
  });
}
