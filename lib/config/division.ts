/** Whether ranks can divide a model among them. */
import type { TransformerSpec } from './uniprocConfig';

/** Why a model cannot be divided among that many ranks; null when it can. */
export function divisionFault(spec: TransformerSpec, worldSize: number): string | null {
  const { numHeads, numKvHeads, intermediateSize } = spec;
  for (const [name, count] of Object.entries({ numHeads, intermediateSize })) {
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
