/**
 * Linear layers with float8 weights and a scale per block, against float64 products of the
 * dequantised weights.
 */
import { backends, type LinearWeight, type Ops, openOps } from './binding';
import {
  BlockScaledMatrix,
  expectClose,
  expectSameBits,
  float8ToNumber,
  Random,
} from './reference';

function onDevice(ops: Ops, matrix: BlockScaledMatrix): LinearWeight {
  const { rows, cols, scaleRows, scaleCols } = matrix;
  const data = ops.allocate(rows * cols, 'float8_e4m3', 'a test');
  ops.upload(data, matrix.codes, 'float8_e4m3');
  const scales = ops.floats(matrix.scales);
  return { data, rows, cols, scales, scaleRows, scaleCols, dtype: 'float32' };
}

describe.each(backends)('weights with block scales, %s', (backend) => {
  const ops = openOps(backend);

  it.each([
    [1, 1, 1, 1, 1],
    [1, 256, 256, 128, 128],
    [3, 130, 300, 128, 128],
    [7, 33, 1100, 16, 8],
    [9, 100, 515, 48, 24],
    [70, 65, 130, 1, 128],
  ])('give [%i, %i] over %i, a scale for %i x %i', (m, n, k, scaleRows, scaleCols) => {
    const random = new Random(m * 1000 + n * 10 + k);
    const matrix = new BlockScaledMatrix(n, k, scaleRows, scaleCols, random);
    const x = random.normals(m * k);
    const b = random.normals(n);
    const weight = onDevice(ops, matrix);
    const bias = { data: ops.floats(b), rows: n, cols: 1 };
    const expected = new Float64Array(m * n);
    const magnitude = new Float64Array(m * n);
    for (let i = 0; i < m; ++i) {
      for (let j = 0; j < n; ++j) {
        let sum = b[j];
        let size = Math.abs(sum);
        for (let l = 0; l < k; ++l) {
          const product = x[i * k + l] * matrix.values[j * k + l];
          sum += product;
          size += Math.abs(product);
        }
        expected[i * n + j] = sum;
        magnitude[i * n + j] = size;
      }
    }
    const out = ops.zeros(m * n);
    ops.linear(ops.floats(x), m, weight, bias, out);
    expectClose(ops.readFloats(out, m * n), expected, (i) => magnitude[i] * 2 ** -20);
  });

  it('decode each of the 256 codes', () => {
    const codes = Uint8Array.from({ length: 256 }, (_, i) => i);
    const data = ops.allocate(256, 'float8_e4m3', 'a test');
    ops.upload(data, codes, 'float8_e4m3');
    const scales = ops.floats(new Float32Array(256).fill(1));
    const weight = { data, rows: 256, cols: 1, scales, scaleRows: 1, scaleCols: 1 };
    const out = ops.zeros(256);
    ops.linear(ops.floats([1]), 1, { ...weight, dtype: 'float32' }, null, out);
    const expected = Float32Array.from(codes, (code) => 0 + float8ToNumber(code)); // no -0
    expect([...ops.readFloats(out, 256)]).toEqual([...expected]);
  });
});

describe.each(backends)('the fused linear layers, %s', (backend) => {
  const ops = openOps(backend);
  const random = new Random(11);
  const [m, n, k] = [5, 48, 64];
  const floats = (count: number) => random.normals(count);
  const weight = { data: ops.floats(floats(n * k)), rows: n, cols: k };

  it('after a norm give the same bits as the separate norm and layer', () => {
    const norm = { data: ops.floats(floats(k)), rows: k, cols: 1 };
    const x = ops.floats(floats(m * k));
    const residual = floats(m * k);
    const [once, twice] = [ops.floats(residual), ops.floats(residual)];
    const normed = ops.zeros(m * k);
    const [fused, plain] = [ops.zeros(m * n), ops.zeros(m * n)];
    ops.normLinear(x, once, norm, 1e-5, normed, m, weight, fused);
    ops.rmsNorm(x, twice, m, norm, 1e-5, normed);
    ops.linear(normed, m, weight, null, plain);
    expectSameBits(ops.readFloats(fused, m * n), ops.readFloats(plain, m * n));
    expectSameBits(ops.readFloats(once, m * k), ops.readFloats(twice, m * k));
  });

  it('with SiLU and product give the same bits as the separate layer, SiLU and product', () => {
    const x = ops.floats(floats(m * k));
    const gateUp = ops.zeros(m * n);
    const [fused, plain] = [ops.zeros((m * n) / 2), ops.zeros((m * n) / 2)];
    ops.linearSiluAndMul(x, m, weight, gateUp, fused);
    ops.linear(x, m, weight, null, gateUp);
    ops.siluAndMul(gateUp, m, n / 2, plain);
    expectSameBits(ops.readFloats(fused, (m * n) / 2), ops.readFloats(plain, (m * n) / 2));
  });
});

describe.each(backends)('random float8 elements, %s', (backend) => {
  const ops = openOps(backend);

  it('are rounded to the nearest code, ties to even, and to the largest beyond it', () => {
    const codes = Array.from({ length: 0x7f }, (_, code) => code);
    const numbers = codes.map(float8ToNumber);
    const cases = codes.slice(1).flatMap((code) => {
      const [below, above] = [numbers[code - 1], numbers[code]];
      const middle = (below + above) / 2; // exact in float32
      const even = code % 2 === 0 ? code : code - 1;
      return [
        [above, code],
        [middle, even],
        [middle * (1 + 2 ** -20), code],
        [middle * (1 - 2 ** -20), code - 1],
      ];
    });
    for (const [value, code] of [...cases, [448.5, 0x7e], [1e30, 0x7e], [Infinity, 0x7e]]) {
      for (const sign of [0, 0x80]) {
        const tensor = ops.allocate(1, 'float8_e4m3', 'a test');
        ops.fillRandom(tensor, sign ? -value : value, 0, 1n);
        const actual = new Uint8Array(1);
        ops.copyToHost(actual, tensor);
        ops.synchronize();
        if (actual[0] !== (sign | code)) {
          throw new Error(`${value} became ${actual[0]}, not ${sign | code}`);
        }
      }
    }
  });
});
