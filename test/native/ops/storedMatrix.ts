/** A quantized matrix in every format of native/ops/linear.h, and its elements in float64. */
import type { LinearWeight, Ops } from './binding';
import { float8ToNumber, Random } from './reference';

export interface StoredFormat {
  type: 'float8_e4m3' | 'int8' | 'uint4' | 'float4_e2m1';
  /** Columns of a group. */
  groupCols: number;
  /** Rows of a block; default: 1. */
  groupRows?: number;
  hasZeros?: boolean;
  isOrdered?: boolean;
  /** Of an ordered weight: stored columns that fill blocks up and are none of the matrix's. */
  numFilling?: number;
}

/** OCP Microscaling Formats 1.0, section 5.3.3. */
const FLOAT4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6];

function float4ToNumber(code: number): number {
  return code & 8 ? -FLOAT4[code & 7] : FLOAT4[code & 7];
}

export class StoredMatrix {
  readonly storedCols: number;
  /** One code an element, by stored column. */
  readonly codes: Uint8Array;
  readonly scales: Float32Array | Uint8Array;
  readonly zeros: Uint8Array | null;
  readonly order: Int32Array | null;
  /** [rows, cols], in the order of x's columns. */
  readonly values: Float64Array;

  constructor(
    readonly rows: number,
    readonly cols: number,
    readonly format: StoredFormat,
    random: Random,
  ) {
    const { type, groupCols, groupRows = 1, hasZeros, isOrdered, numFilling = 0 } = format;
    const storedCols = cols + numFilling;
    this.storedCols = storedCols;
    const isFloat4 = type === 'float4_e2m1';
    const numCodes = type === 'uint4' || isFloat4 ? 16 : 256;
    this.codes = Uint8Array.from({ length: rows * storedCols }, () => {
      const code = random.below(numCodes);
      return type === 'float8_e4m3' && (code & 0x7f) === 0x7f ? 0 : code; // no NaN
    });
    const groups = Math.ceil(storedCols / groupCols);
    const numScales = Math.ceil(rows / groupRows) * groups;
    this.scales = isFloat4
      ? Uint8Array.from({ length: numScales }, () => 118 + random.below(8))
      : Float32Array.from({ length: numScales }, () => 0.001 + 0.01 * random.uniform());
    this.zeros = hasZeros ? Uint8Array.from({ length: numScales }, () => random.below(16)) : null;
    this.order = isOrdered
      ? random.permutation(storedCols).map((col) => (col < cols ? col : -1))
      : null;
    this.values = new Float64Array(rows * cols);
    for (let row = 0; row < rows; ++row) {
      for (let col = 0; col < storedCols; ++col) {
        const block = Math.floor(row / groupRows) * groups + Math.floor(col / groupCols);
        const to = this.order ? this.order[col] : col;
        if (to < 0) continue;
        this.values[row * cols + to] = this.#element(this.codes[row * storedCols + col], block);
      }
    }
  }

  #element(code: number, block: number): number {
    const scale = this.scales[block];
    switch (this.format.type) {
      case 'float8_e4m3':
        return float8ToNumber(code) * scale;
      case 'int8':
        return ((code << 24) >> 24) * scale;
      case 'uint4':
        return (code - (this.zeros ? this.zeros[block] : 8)) * scale;
      case 'float4_e2m1':
        return float4ToNumber(code) * 2 ** (scale - 127);
    }
  }

  /** The elements' bytes: two codes in one, the even column's in the low bits, where 16 suffice. */
  bytes(): Uint8Array {
    if (this.format.type === 'float8_e4m3' || this.format.type === 'int8') return this.codes;
    return Uint8Array.from(
      { length: this.codes.length / 2 },
      (_, i) => this.codes[2 * i] | (this.codes[2 * i + 1] << 4),
    );
  }

  onDevice(ops: Ops, dtype: LinearWeight['dtype'] = 'float32'): LinearWeight {
    const { rows, cols, storedCols, format, zeros, order, scales } = this;
    const bytesOf = (array: Uint8Array) => {
      const tensor = ops.allocate(array.length, 'int8', 'a test');
      ops.copyToDevice(tensor, array);
      return tensor;
    };
    const data = ops.allocate(rows * storedCols, format.type, 'a test');
    ops.copyToDevice(data, this.bytes());
    return {
      data,
      rows,
      cols: storedCols,
      inputCols: cols,
      scales: scales instanceof Uint8Array ? bytesOf(scales) : ops.floats(scales),
      scaleRows: format.groupRows ?? 1,
      scaleCols: format.groupCols,
      ...(zeros && { zeros: bytesOf(zeros) }),
      ...(order && { order: ops.ints(order) }),
      dtype,
    };
  }

  /** x [m, cols] W^T + bias in float64, and the sum of the terms' magnitudes. */
  product(x: Float32Array, bias: Float32Array | null, m: number) {
    const { rows, cols, values } = this;
    const expected = new Float64Array(m * rows);
    const magnitude = new Float64Array(m * rows);
    for (let i = 0; i < m; ++i) {
      for (let j = 0; j < rows; ++j) {
        let sum = bias ? bias[j] : 0;
        let size = Math.abs(sum);
        for (let k = 0; k < cols; ++k) {
          const term = x[i * cols + k] * values[j * cols + k];
          sum += term;
          size += Math.abs(term);
        }
        expected[i * rows + j] = sum;
        magnitude[i * rows + j] = size;
      }
    }
    return { expected, magnitude };
  }
}
