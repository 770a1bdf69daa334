/** Whether ranks can divide a model among them. */
import type { TransformerSpec } from '../config/uniprocConfig';
import type { ModelSpec } from '../native';

/** Why a model cannot be divided among that many ranks; null when it can. */
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

/** The sizes of one rank's share; where there are more ranks than key-value heads, several hold the same one. */
export function shareOf(spec: ModelSpec, worldSize: number): ModelSpec {
  const { experts } = spec;
  return {
    ...spec,
    numHeads: spec.numHeads / worldSize,
    numKvHeads: Math.max(1, spec.numKvHeads / worldSize),
    // Of a model without gated MLPs it need not divide.
    intermediateSize: Math.floor(spec.intermediateSize / worldSize),
    experts: experts && { ...experts, numExperts: experts.numExperts / worldSize },
  };
}
