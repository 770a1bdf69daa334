/** Random matrices in GGUF's blocks, and their products in float64. */
import type { BlockType } from '../../../lib/contract/workerSummary';
import type { DType } from '../../../lib/native';
import { colsOf, elementsOf, randomBlocks } from '../../support/ggufBlocks';
import type { LinearWeight, Ops } from './binding';
import type { Random } from './reference';

export class BlockMatrix {
  readonly bytes: Uint8Array;
  readonly values: Float64Array;

  constructor(
    readonly type: BlockType,
    readonly rows: number,
    readonly cols: number,
    random: Random,
  ) {
    this.bytes = randomBlocks(type, (rows * cols) / colsOf(type), random);
    this.values = elementsOf(type, this.bytes);
  }

  onDevice(ops: Ops, dtype: DType = 'float32'): LinearWeight {
    const { rows, cols, type } = this;
    const data = ops.allocate(rows * cols, type, 'a test');
    ops.copyToDevice(data, this.bytes);
    return { data, rows, cols, dtype };
  }

  /** x [m, cols] W^T in float64, and the sum of the terms' magnitudes. */
  product(x: Float32Array, m: number) {
    const { rows, cols, values } = this;
    const expected = new Float64Array(m * rows);
    const magnitude = new Float64Array(m * rows);
    for (let i = 0; i < m * rows; i++) {
      for (let k = 0; k < cols; k++) {
        const term = x[Math.floor(i / rows) * cols + k] * values[(i % rows) * cols + k];
        expected[i] += term;
        magnitude[i] += Math.abs(term);
      }
    }
    return { expected, magnitude };
  }
}
