/**
 * A simple float64 decoder, the reference for the native model. Weights are separate and named as in
 * a checkpoint.
 */
import type { ModelSpec, RopeScaling } from '../../lib/native';

/** A matrix [rows, cols], or a vector with cols 1. */
export interface Tensor {
  rows: number;
  cols: number;
  data: Float32Array;
}

export interface LayerTensors {
  inputNorm: Tensor;
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
  postAttentionNorm: Tensor;
  gate: Tensor;
  up: Tensor;
  gateBias?: Tensor;
  upBias?: Tensor;
  down: Tensor;
  downBias?: Tensor;
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
          'mlp.norm.weight': layers[layer].postAttentionNorm,
          'mlp.gate.weight': layers[layer].gate,
          'mlp.up.weight': layers[layer].up,
          'mlp.gate.bias': layers[layer].gateBias,
          'mlp.up.bias': layers[layer].upBias,
          'mlp.down.weight': layers[layer].down,
          'mlp.down.bias': layers[layer].downBias,
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
  const bias = (wanted: boolean, size: number) => (wanted ? tensor(size, 1, 0.5) : undefined);
  const { hiddenSize, intermediateSize, headDim, vocabSize } = spec;
  const qSize = spec.numHeads * headDim;
  const kvSize = spec.numKvHeads * headDim;
  return {
    embedTokens: tensor(vocabSize, hiddenSize, 1),
    norm: norm(hiddenSize),
    lmHead: spec.tieWordEmbeddings ? undefined : tensor(vocabSize, hiddenSize),
    layers: Array.from({ length: spec.numLayers }, () => ({
      inputNorm: norm(hiddenSize),
      q: tensor(qSize, hiddenSize),
      k: tensor(kvSize, hiddenSize),
      v: tensor(kvSize, hiddenSize),
      qBias: bias(spec.qkvBias, qSize),
      kBias: bias(spec.qkvBias, kvSize),
      vBias: bias(spec.qkvBias, kvSize),
      qNorm: spec.qkNorm ? norm(headDim) : undefined,
      kNorm: spec.qkNorm ? norm(headDim) : undefined,
      o: tensor(hiddenSize, qSize),
      oBias: bias(spec.outputBias, hiddenSize),
      postAttentionNorm: norm(hiddenSize),
      gate: tensor(intermediateSize, hiddenSize),
      up: tensor(intermediateSize, hiddenSize),
      gateBias: bias(spec.mlpBias, intermediateSize),
      upBias: bias(spec.mlpBias, intermediateSize),
      down: tensor(hiddenSize, intermediateSize),
      downBias: bias(spec.mlpBias, hiddenSize),
    })),
  };
}

const linear = ({ rows, cols, data }: Tensor, x: number[], bias?: Tensor): number[] =>
  Array.from({ length: rows }, (_, row) => {
    let sum = bias ? bias.data[row] : 0;
    for (let col = 0; col < cols; col++) sum += data[row * cols + col] * x[col];
    return sum;
  });

function rmsNorm(x: number[], weight: Tensor, eps: number): number[] {
  const meanSquare = x.reduce((sum, value) => sum + value * value, 0) / x.length;
  return x.map((value, i) => (value / Math.sqrt(meanSquare + eps)) * weight.data[i]);
}

/** Radians per position of pair `i`. */
function frequency(i: number, headDim: number, theta: number, scaling: RopeScaling): number {
  const plain = theta ** ((-2 * i) / headDim);
  if (scaling.type === 'default') return plain;
  const { factor } = scaling;
  if (scaling.type === 'linear') return plain / factor;
  const original = scaling.originalMaxPositionEmbeddings;
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

/** Rotates a head's halves, as GPT-NeoX does. */
function rotate(head: number[], position: number, spec: ModelSpec): number[] {
  const half = spec.headDim / 2;
  const scale = spec.ropeScaling.type === 'yarn' ? spec.ropeScaling.attentionFactor : 1;
  return head.map((value, i) => {
    const angle = position * frequency(i % half, spec.headDim, spec.ropeTheta, spec.ropeScaling);
    const other = i < half ? -head[i + half] : head[i - half];
    return scale * (value * Math.cos(angle) + other * Math.sin(angle));
  });
}

const dot = (a: number[], b: number[]) => a.reduce((sum, value, i) => sum + value * b[i], 0);

/** Causal attention of every position, within the window; heads in groups share keys and values. */
function attend(
  q: number[][][],
  k: number[][][],
  v: number[][][],
  spec: ModelSpec,
  window: number,
) {
  const group = spec.numHeads / spec.numKvHeads;
  return q.map((heads, position) =>
    heads.flatMap((query, head) => {
      const kvHead = Math.floor(head / group);
      const first = window === 0 ? 0 : Math.max(0, position - window + 1);
      const scores: number[] = [];
      for (let key = first; key <= position; key++) {
        scores.push(dot(query, k[key][kvHead]) / Math.sqrt(spec.headDim));
      }
      const most = Math.max(...scores);
      const exps = scores.map((score) => Math.exp(score - most));
      const sum = exps.reduce((a, b) => a + b);
      const out = new Array<number>(spec.headDim).fill(0);
      exps.forEach((weight, i) => {
        v[first + i][kvHead].forEach((value, d) => (out[d] += (weight / sum) * value));
      });
      return out;
    }),
  );
}

/** Log softmax of the logits at every position: [numTokens][vocabSize]. */
export function decode(spec: ModelSpec, tensors: ModelTensors, tokenIds: number[]): number[][] {
  const eps = spec.rmsNormEps;
  const { embedTokens } = tensors;
  const add = (a: number[], b: number[]) => a.map((value, i) => value + b[i]);
  const split = (x: number[]) =>
    Array.from({ length: x.length / spec.headDim }, (_, head) =>
      x.slice(head * spec.headDim, (head + 1) * spec.headDim),
    );
  let hidden = tokenIds.map((id) =>
    Array.from(embedTokens.data.subarray(id * embedTokens.cols, (id + 1) * embedTokens.cols)),
  );
  tensors.layers.forEach((layer, index) => {
    const normed = hidden.map((x) => rmsNorm(x, layer.inputNorm, eps));
    const turn = (weight: Tensor, bias?: Tensor, norm?: Tensor) =>
      normed.map((x, position) =>
        split(linear(weight, x, bias)).map((head) =>
          rotate(norm ? rmsNorm(head, norm, eps) : head, position, spec),
        ),
      );
    const q = turn(layer.q, layer.qBias, layer.qNorm);
    const k = turn(layer.k, layer.kBias, layer.kNorm);
    const v = normed.map((x) => split(linear(layer.v, x, layer.vBias)));
    const attended = attend(q, k, v, spec, spec.slidingWindows[index]);
    hidden = hidden.map((x, i) => add(x, linear(layer.o, attended[i], layer.oBias)));
    hidden = hidden.map((x) => {
      const y = rmsNorm(x, layer.postAttentionNorm, eps);
      const gate = linear(layer.gate, y, layer.gateBias);
      const up = linear(layer.up, y, layer.upBias);
      const mlp = gate.map((value, i) => (value / (1 + Math.exp(-value))) * up[i]);
      return add(x, linear(layer.down, mlp, layer.downBias));
    });
  });
  return hidden.map((x) => {
    const logits = linear(tensors.lmHead ?? embedTokens, rmsNorm(x, tensors.norm, eps));
    const most = Math.max(...logits);
    const logSum = most + Math.log(logits.reduce((sum, l) => sum + Math.exp(l - most), 0));
    return logits.map((logit) => logit - logSum);
  });
}
