/** The operations of a mixture of experts, against float64. */
import { backends, openOps } from './binding';
import { BlockScaledMatrix, expectClose, expectSameBits, Random } from './reference';

interface Routed {
  expertIds: number[];
  weights: number[];
}

/** The topK of softmax(logits); ties go to the lower id. */
function route(logits: ArrayLike<number>, topK: number, normalize: boolean): Routed {
  const value = (id: number) => (Number.isNaN(logits[id]) ? -Infinity : logits[id]);
  const ids = Array.from({ length: logits.length }, (_, id) => id);
  const chosen = [...ids].sort((a, b) => value(b) - value(a) || a - b).slice(0, topK);
  const exps = ids.map((id) => Math.exp(value(id) - value(chosen[0])));
  const sum = (normalize ? chosen : ids).reduce((total, id) => total + exps[id], 0);
  return { expertIds: chosen, weights: chosen.map((id) => exps[id] / sum) };
}

/** Random distinct experts for each token. */
function randomIds(random: Random, numTokens: number, numExperts: number, topK: number) {
  return Int32Array.from({ length: numTokens }).reduce<number[]>((ids) => {
    ids.push(...random.permutation(numExperts).subarray(0, topK));
    return ids;
  }, []);
}

const geluTanh = (x: number) =>
  0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));

describe.each(backends)('experts, %s', (backend) => {
  const ops = openOps(backend);

  it.each([
    [1, 8, 2, true],
    [5, 128, 8, true],
    [5, 128, 8, false],
    [3, 7, 7, false],
    [300, 33, 1, true],
    [5, 300, 8, false],
    [4, 600, 3, true],
    [2, 64, 40, false],
  ])('route %i tokens among %i experts to %i, normalised: %s', (numTokens, n, topK, normalize) => {
    const random = new Random(numTokens * n + topK);
    const logits = random.normals(numTokens * n, 'float32', 3);
    const routing = ops.routing(numTokens, n, topK);
    ops.routeTokens(ops.floats(logits), normalize, routing, null);
    const expected = Array.from({ length: numTokens }, (_, token) =>
      route(logits.subarray(token * n, (token + 1) * n), topK, normalize),
    );
    const ids = ops.readInts(routing.expertIds, numTokens * topK);
    expect([...ids]).toEqual(expected.flatMap(({ expertIds }) => expertIds));
    const weights = expected.flatMap((each) => each.weights);
    expectClose(ops.readFloats(routing.weights, numTokens * topK), weights, 1e-6);
  });

  it.each([16, 600])('multiply weights by the scales of %i experts', (n) => {
    const [numTokens, topK] = [5, 3];
    const random = new Random(n);
    const logits = random.normals(numTokens * n, 'float32', 3);
    const scales = random.normals(n, 'float32', 1);
    const routing = ops.routing(numTokens, n, topK);
    ops.routeTokens(ops.floats(logits), true, routing, ops.floats(scales));
    const weights = Array.from({ length: numTokens }, (_, token) =>
      route(logits.subarray(token * n, (token + 1) * n), topK, true),
    ).flatMap((each) => each.weights.map((weight, i) => weight * scales[each.expertIds[i]]));
    expectClose(ops.readFloats(routing.weights, numTokens * topK), weights, 1e-6);
  });

  it('prefer the lower id of equal logits, and rank NaN last', () => {
    const logits = [1, 3, NaN, 3, 2, NaN];
    const routing = ops.routing(1, 6, 6);
    ops.routeTokens(ops.floats(logits), true, routing, null);
    expect([...ops.readInts(routing.expertIds, 6)]).toEqual([1, 3, 4, 0, 2, 5]);
  });

  // torch.softmax of a row with NaN is NaN throughout.
  it.each([true, false])('give NaN to the tokens whose logits have it, normalized: %s', (norm) => {
    const routing = ops.routing(3, 3, 2);
    ops.routeTokens(ops.floats([1, 2, 3, 1, NaN, 3, 3, 2, 1]), norm, routing, null);
    const isNan = Array.from(ops.readFloats(routing.weights, 6), (weight) => Number.isNaN(weight));
    expect(isNan).toEqual([false, false, true, true, false, false]);
  });

  describe.each([1, 2])('on the rank with half %i of the experts', (half) => {
    it.each(['float32', 'float8_e4m3'] as const)('multiply rows by matrices in %s', (type) => {
      const [numTokens, numExperts, topK, rows, cols] = [9, 6, 2, 20, 40];
      const random = new Random(half);
      const numLocal = numExperts / 2;
      const firstLocal = (half - 1) * numLocal;
      const matrix = new BlockScaledMatrix(numLocal * rows, cols, 4, 8, random);
      const plain = random.normals(numLocal * rows * cols);
      const values = type === 'float32' ? plain : matrix.values;
      const data = ops.allocate(numLocal * rows * cols, type, 'a test');
      if (type === 'float32') ops.upload(data, plain, 'float32');
      else ops.upload(data, matrix.codes, type);
      const weight = {
        data,
        rows: numLocal * rows,
        cols,
        ...(type === 'float8_e4m3' && {
          scales: ops.floats(matrix.scales),
          scaleRows: 4,
          scaleCols: 8,
          dtype: 'float32' as const,
        }),
      };
      const ids = randomIds(random, numTokens, numExperts, topK);
      const routing = {
        ...ops.routing(numTokens, numExperts, topK),
        firstLocal,
        numLocal,
        expertIds: ops.ints(ids),
      };
      for (const rowsPerToken of [1, topK]) {
        const x = random.normals(numTokens * rowsPerToken * cols);
        const out = ops.zeros(numTokens * topK * rows);
        ops.expertLinear(ops.floats(x), rowsPerToken, routing, weight, out);
        const expected = new Float64Array(numTokens * topK * rows);
        const magnitude = new Float64Array(expected.length);
        ids.forEach((id, i) => {
          const expert = id - firstLocal;
          if (expert < 0 || expert >= numLocal) return;
          const input = Math.floor(i / (topK / rowsPerToken)) * cols;
          for (let row = 0; row < rows; row++) {
            for (let col = 0; col < cols; col++) {
              const product = x[input + col] * values[(expert * rows + row) * cols + col];
              expected[i * rows + row] += product;
              magnitude[i * rows + row] += Math.abs(product);
            }
          }
        });
        const actual = ops.readFloats(out, expected.length);
        expectClose(actual, expected, (i) => magnitude[i] * 2 ** -20);
      }
    });
  });

  it('give a token the same bits in any batch', () => {
    const [numExperts, topK, rows, cols] = [4, 2, 33, 520];
    const random = new Random(5);
    const data = ops.floats(random.normals(numExperts * rows * cols));
    const weight = { data, rows: numExperts * rows, cols };
    const x = random.normals(12 * cols);
    const ids = randomIds(random, 12, numExperts, topK);
    const run = (begin: number, end: number) => {
      const routing = {
        ...ops.routing(end - begin, numExperts, topK),
        expertIds: ops.ints(ids.slice(begin * topK, end * topK)),
      };
      const out = ops.zeros((end - begin) * topK * rows);
      ops.expertLinear(ops.floats(x.subarray(begin * cols, end * cols)), 1, routing, weight, out);
      return ops.readFloats(out, (end - begin) * topK * rows);
    };
    const all = run(0, 12);
    for (const [begin, end] of [
      [0, 1],
      [3, 8],
      [11, 12],
    ]) {
      expectSameBits(run(begin, end), all.subarray(begin * topK * rows, end * topK * rows));
    }
  });

  it.each([
    ['SiLU', 0, (x: number) => x / (1 + Math.exp(-x))],
    ['GELU by tanh', 2, geluTanh],
  ])('compute a token as the weighted sum of its experts, with %s', (_, activation, act) => {
    const [numTokens, numExperts, topK, hidden, size] = [6, 5, 2, 24, 16];
    const [firstLocal, numLocal] = [2, 3];
    const random = new Random(7);
    const x = random.normals(numTokens * hidden);
    const gateUp = random.normals(numLocal * 2 * size * hidden, 'float32', 0.2);
    const down = random.normals(numLocal * hidden * size, 'float32', 0.2);
    const weights = random.normals(numTokens * topK);
    const ids = randomIds(random, numTokens, numExperts, topK);
    const routing = {
      ...ops.routing(numTokens, numExperts, topK),
      firstLocal,
      numLocal,
      expertIds: ops.ints(ids),
      weights: ops.floats(weights),
    };
    const out = ops.zeros(numTokens * hidden);
    ops.multiplyExperts(
      ops.floats(x),
      routing,
      { data: ops.floats(gateUp), rows: numLocal * 2 * size, cols: hidden },
      { data: ops.floats(down), rows: numLocal * hidden, cols: size },
      activation,
      ops.zeros(numTokens * topK * 2 * size),
      ops.zeros(numTokens * topK * size),
      out,
    );
    const expected = new Float64Array(numTokens * hidden);
    ids.forEach((id, pair) => {
      const expert = id - firstLocal;
      if (expert < 0 || expert >= numLocal) return;
      const token = Math.floor(pair / topK);
      const dot = (row: number) => {
        let sum = 0;
        for (let c = 0; c < hidden; c++) sum += gateUp[row * hidden + c] * x[token * hidden + c];
        return sum;
      };
      const product = Float64Array.from({ length: size }, (__, unit) => {
        const gate = expert * 2 * size + unit;
        return act(dot(gate)) * dot(gate + size);
      });
      for (let i = 0; i < hidden; i++) {
        const row = (expert * hidden + i) * size;
        const sum = product.reduce((total, value, unit) => total + value * down[row + unit], 0);
        expected[token * hidden + i] += weights[pair] * sum;
      }
    });
    expectClose(ops.readFloats(out, expected.length), expected, 1e-5);
  });

  it('are summed with their weights', () => {
    const [numTokens, topK, width] = [7, 3, 50];
    const random = new Random(3);
    const x = random.normals(numTokens * topK * width);
    const weights = random.normals(numTokens * topK);
    const routing = { ...ops.routing(numTokens, 8, topK), weights: ops.floats(weights) };
    const out = ops.zeros(numTokens * width);
    ops.sumExperts(ops.floats(x), routing, width, out);
    const expected = Float64Array.from({ length: numTokens * width }, (_, i) => {
      const token = Math.floor(i / width);
      let sum = 0;
      for (let k = 0; k < topK; k++) {
        const row = token * topK + k;
        sum += x[row * width + (i % width)] * weights[row];
      }
      return sum;
    });
    expectClose(ops.readFloats(out, numTokens * width), expected, 1e-5);
  });
});
