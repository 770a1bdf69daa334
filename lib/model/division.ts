/** Whether ranks can divide a model among them. */
import type { TransformerSpec } from '../config/uniprocConfig';

/** Why a model cannot be divided among that many ranks; null when it can. */
export function divisionFault(spec: TransformerSpec, worldSize: number): string | null {
  const { numHeads, numKvHeads, intermediateSize, experts } = spec;
  const divided = {
    numHeads,
    intermediateSize,
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

/** Key-value heads that a rank holds: where there are more ranks than heads, several hold the same one. */
export function numKvHeadsOfRank({ numKvHeads }: TransformerSpec, worldSize: number): number {
  return Math.max(1, numKvHeads / worldSize);
}
