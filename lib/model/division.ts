/** Checks that ranks can divide a model. */
import type { TransformerSpec } from '../config/uniprocConfig';
import type { ModelSpec } from './spec';

/** Why `worldSize` ranks cannot divide the model, or null. */
export function divisionFault(spec: TransformerSpec, worldSize: number): string | null {
  const { numHeads, intermediateSize, experts, otherHeads } = spec;
  const hasGatedMlps = !experts || experts.besideMlp || experts.layers.includes(false);
  const divided = {
    numHeads,
    ...(hasGatedMlps && { intermediateSize }),
    ...(experts && {
      numExperts: experts.numExperts,
      sharedIntermediateSize: experts.sharedIntermediateSize,
    }),
  };
  for (const [name, count] of Object.entries(divided)) {
    if (count % worldSize !== 0) {
      return `tensorParallelSize is ${worldSize}; it must divide the model's ${name}, ${count}`;
    }
  }
  for (const numKvHeads of [spec.numKvHeads, otherHeads?.numKvHeads ?? spec.numKvHeads]) {
    if (numKvHeads % worldSize !== 0 && worldSize % numKvHeads !== 0) {
      return (
        `tensorParallelSize is ${worldSize}; it must divide the model's numKvHeads, ${numKvHeads}, ` +
        'or be a multiple of it'
      );
    }
  }
  return null;
}

/** The sizes of one rank's share; with more ranks than key-value heads, several ranks hold the same head. */
export function shareOf(spec: ModelSpec, worldSize: number): ModelSpec {
  const { experts, otherHeads } = spec;
  const numKvHeads = (count: number) => Math.max(1, count / worldSize);
  return {
    ...spec,
    numHeads: spec.numHeads / worldSize,
    numKvHeads: numKvHeads(spec.numKvHeads),
    otherHeads: otherHeads && { ...otherHeads, numKvHeads: numKvHeads(otherHeads.numKvHeads) },
    // Not necessarily divisible in a model without gated MLPs.
    intermediateSize: Math.floor(spec.intermediateSize / worldSize),
    experts: experts && {
      ...experts,
      numExperts: experts.numExperts / worldSize,
      sharedIntermediateSize: experts.sharedIntermediateSize / worldSize,
    },
  };
}

/** Layers that have keys and values of their own. */
export function layersWithKeys({ kvLayers, numLayers }: ModelSpec): number[] {
  return [...Array(numLayers).keys()].filter((layer) => (kvLayers?.[layer] ?? layer) === layer);
}

/** Key-value heads of a layer, and their size. */
export function headsOf(
  { numKvHeads, headDim, otherHeads }: ModelSpec,
  layer: number,
): [numKvHeads: number, headDim: number] {
  return otherHeads?.layers[layer]
    ? [otherHeads.numKvHeads, otherHeads.headDim]
    : [numKvHeads, headDim];
}
