/** Checks that ranks can divide a model. */
import type { TransformerSpec } from '../config/uniprocConfig';
import type { ModelSpec } from './spec';

/** Why `worldSize` ranks cannot divide the model, or null. */
export function divisionFault(spec: TransformerSpec, worldSize: number): string | null {
  const { numHeads, numKvHeads, intermediateSize, experts } = spec;
  const hasGatedMlps = !experts || experts.layers.includes(false);
  const divided = {
    numHeads,
    ...(hasGatedMlps && { intermediateSize }),
    ...(experts && { numExperts: experts.numExperts }),
  };
  for (const [name, count] of Object.entries(divided)) {
    if (count % worldSize !== 0) {
      return `tensorParallelSize is ${worldSize}; it must divide the model's ${name}, ${count}`;
    }
  }
  if (numKvHeads % worldSize !== 0 && worldSize % numKvHeads !== 0) {
    return (
      `tensorParallelSize is ${worldSize}; it must divide the model's numKvHeads, ${numKvHeads}, ` +
      'or be a multiple of it'
    );
  }
  return null;
}

/** The sizes of one rank's share; with more ranks than key-value heads, several ranks hold the same head. */
export function shareOf(spec: ModelSpec, worldSize: number): ModelSpec {
  const { experts } = spec;
  return {
    ...spec,
    numHeads: spec.numHeads / worldSize,
    numKvHeads: Math.max(1, spec.numKvHeads / worldSize),
    // Not necessarily divisible in a model without gated MLPs.
    intermediateSize: Math.floor(spec.intermediateSize / worldSize),
    experts: experts && { ...experts, numExperts: experts.numExperts / worldSize },
  };
}
