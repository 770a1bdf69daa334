/** Routing by sigmoids, and what gpt-oss adds to the products of experts, against float64. */
import { activate } from '../decoder';
import { backends, dtypes, openOps, type Routing, type SigmoidRouting } from './binding';
import { expectClose, Random, widen } from './reference';

/** Types of activations: the CPU computes in float32. */
const activationTypes = (backend: string) => (backend === 'cuda' ? dtypes : (['float32'] as const));

/** Half a unit in the last place of a value of this type, relative. */
const EPSILON = { float32: 2 ** -23, float16: 2 ** -10, bfloat16: 2 ** -7 };

type Rule = Omit<SigmoidRouting, 'bias'> & { bias: Float32Array | null };

/** The indices of the `count` largest scores, the lower one first on ties. */
const largest = (scores: number[], count: number) =>
  [...scores.keys()].sort((a, b) => scores[b] - scores[a] || a - b).slice(0, count);

/** Of one token: as Glm4MoeTopkRouter of transformers. */
function route(logits: number[], topK: number, rule: Rule) {
  const { bias, numGroups, numChosenGroups, normalize, scale } = rule;
  const weights = logits.map((logit) => 1 / (1 + Math.exp(-logit)));
  // Choices depend on float32.
  const scores = weights.map((weight, id) => Math.fround(Math.fround(weight) + (bias?.[id] ?? 0)));
  const size = logits.length / numGroups;
  const sums = Array.from({ length: numGroups }, (_, group) =>
    scores
      .slice(group * size, (group + 1) * size)
      .sort((a, b) => b - a)
      .slice(0, 2)
      .reduce((a, b) => a + b),
  );
  const groups = largest(sums, numChosenGroups);
  const choosable = scores.map((score, id) =>
    groups.includes(Math.floor(id / size)) ? score : -Infinity,
  );
  const expertIds = largest(choosable, topK);
  const sum = expertIds.reduce((total, id) => total + weights[id], 0);
  return {
    expertIds,
    weights: expertIds.map((id) => (scale * weights[id]) / (normalize ? sum : 1)),
  };
}

describe.each(backends)('experts, %s', (backend) => {
  const ops = openOps(backend);
  it.each([
    // tokens, experts, per token, groups, chosen groups, with a bias, normalized, scale
    [1, 8, 2, 1, 1, false, true, 1],
    [5, 128, 8, 1, 1, true, true, 2.5],
    [5, 256, 8, 8, 4, true, true, 2.5],
    [7, 40, 3, 40, 5, true, false, 1],
    [3, 12, 4, 2, 1, false, false, 16],
    [300, 33, 1, 3, 2, true, true, 1],
  ])(
    'route %i tokens by sigmoids among %i experts to %i, in %i groups of which %i count',
    (numTokens, n, topK, numGroups, numChosenGroups, withBias, normalize, scale) => {
      const random = new Random(numTokens * n + topK);
      const logits = random.normals(numTokens * n, 'float32', 2);
      const bias = withBias ? random.normals(n, 'float32', 0.3) : null;
      const rule = { numGroups, numChosenGroups, normalize, scale };
      const routing = ops.routing(numTokens, n, topK);
      const onDevice = { ...rule, bias: bias && ops.floats(bias) };
      ops.routeTokensBySigmoid(ops.floats(logits), onDevice, routing);
      const expected = Array.from({ length: numTokens }, (_, token) =>
        route([...logits.subarray(token * n, (token + 1) * n)], topK, { ...rule, bias }),
      );
      const ids = ops.readInts(routing.expertIds, numTokens * topK);
      expect([...ids]).toEqual(expected.flatMap(({ expertIds }) => expertIds));
      const weights = expected.flatMap((each) => each.weights);
      expectClose(ops.readFloats(routing.weights, numTokens * topK), weights, scale * 1e-6);
    },
  );

  it('choose by the logits without a bias, as large ones have equal sigmoids', () => {
    const routing = ops.routing(1, 4, 2);
    const rule = { bias: null, numGroups: 1, numChosenGroups: 1, normalize: false, scale: 1 };
    ops.routeTokensBySigmoid(ops.floats([30, 1, 33, 31]), rule, routing);
    expect([...ops.readInts(routing.expertIds, 2)]).toEqual([2, 3]);
    expect([...ops.readFloats(routing.weights, 2)]).toEqual([1, 1]);
  });

  it('prefer the lower id of equal scores, and rank NaN last among those of chosen groups', () => {
    const routing = ops.routing(1, 6, 3);
    const rule = { bias: null, numGroups: 2, numChosenGroups: 1, normalize: true, scale: 1 };
    ops.routeTokensBySigmoid(ops.floats([1, 1, 1, 2, NaN, 2]), rule, routing);
    expect([...ops.readInts(routing.expertIds, 3)]).toEqual([3, 5, 4]);
    expect([...ops.readFloats(routing.weights, 3)]).toEqual([NaN, NaN, NaN]);
  });

  it.each([true, false])('give NaN to the tokens whose logits have it, normalized: %s', (norm) => {
    const routing = ops.routing(3, 3, 2);
    const rule = { bias: null, numGroups: 1, numChosenGroups: 1, normalize: norm, scale: 2 };
    ops.routeTokensBySigmoid(ops.floats([1, 2, 3, 1, NaN, 3, 3, 2, 1]), rule, routing);
    const isNan = Array.from(ops.readFloats(routing.weights, 6), (weight) => Number.isNaN(weight));
    expect(isNan).toEqual([false, false, true, true, false, false]);
  });
});

describe.each(backends.flatMap((backend) => activationTypes(backend).map((t) => [backend, t])))(
  '%s in %s',
  (backend, type) => {
    const dtype = type as keyof typeof EPSILON;
    const ops = openOps(backend as (typeof backends)[number]);
    const epsilon = EPSILON[dtype];
    const read = (tensor: ReturnType<typeof ops.floats>, count: number) =>
      dtype === 'float32'
        ? ops.readFloats(tensor, count)
        : Float32Array.from(ops.readBits(tensor, count), widen[dtype]);

    it.each([1, 7, 333, 5120])('scales rows of %i by the weight of their expert', (width) => {
      const numTokens = 5;
      const random = new Random(width);
      const x = random.normals(numTokens * width, dtype);
      const weights = Float32Array.from({ length: numTokens }, (_, token) => 1 / (token + 1.5));
      const routing = ops.routing(numTokens, 4, 1);
      const logits = Array.from(weights, (weight) => Math.log(weight / (1 - weight)));
      const rule = { bias: null, numGroups: 1, numChosenGroups: 1, normalize: false, scale: 1 };
      const ofExperts = logits.flatMap((logit) => [-9, logit, -9, -9]);
      ops.routeTokensBySigmoid(ops.floats(ofExperts), rule, routing);
      const tensor = ops.floats(x, dtype);
      ops.applyWeights(tensor, routing, width);
      const expected = Float64Array.from(x, (value, i) => value * weights[Math.floor(i / width)]);
      const actual = read(tensor, x.length);
      expectClose(actual, expected, (i) => Math.abs(expected[i]) * 2 * epsilon + 1e-7);
      expect([...ops.readFloats(routing.weights, numTokens)]).toEqual([1, 1, 1, 1, 1]);
    });

    it.each([1, 7, 64, 333, 2880])('multiplies rows of %i as clamped SwiGLU', (size) => {
      const numTokens = 3;
      const gateUp = new Random(size).normals(numTokens * 2 * size, dtype, 6);
      const out = ops.zeros(numTokens * size, dtype);
      ops.clampedSwiglu(ops.floats(gateUp, dtype), numTokens, size, out);
      const expected = Float64Array.from({ length: numTokens * size }, (_, i) => {
        const gate = 2 * Math.floor(i / size) * size + (i % size);
        return activate(gateUp[gate], 'clampedSwiglu', gateUp[gate + size]);
      });
      expectClose(read(out, expected.length), expected, (i) => {
        return Math.abs(expected[i]) * Math.max(epsilon, 1e-6) + 1e-6;
      });
    });

    it.each([
      [5, 1],
      [8, 4],
      [2880, 3],
    ])("adds each expert's bias of %i to its products alone, %i experts here", (rows, numLocal) => {
      const [numTokens, numExperts, topK, cols] = [6, 2 * numLocal, 2, 16];
      const random = new Random(rows);
      const x = random.normals(numTokens * cols, dtype);
      const matrix = random.normals(numLocal * rows * cols, dtype);
      const bias = random.normals(numLocal * rows, dtype);
      const ids = Array.from({ length: numTokens }, () => [
        ...random.permutation(numExperts).subarray(0, topK),
      ]).flat();
      const routing: Routing = {
        numTokens,
        numExperts,
        topK,
        firstLocal: numLocal,
        numLocal,
        expertIds: ops.ints(ids),
        weights: ops.zeros(numTokens * topK),
      };
      const out = ops.zeros(numTokens * topK * rows, dtype);
      ops.expertLinear(
        ops.floats(x, dtype),
        1,
        routing,
        { data: ops.floats(matrix, dtype), rows: numLocal * rows, cols },
        out,
        { data: ops.floats(bias, dtype), rows: numLocal * rows, cols: 1 },
      );
      const expected = Float64Array.from({ length: numTokens * topK * rows }, (_, i) => {
        const [output, row] = [Math.floor(i / rows), i % rows];
        const expert = ids[output] - numLocal;
        if (expert < 0) return 0;
        const at = (expert * rows + row) * cols;
        const from = Math.floor(output / topK) * cols;
        const terms = Array.from({ length: cols }, (_, c) => matrix[at + c] * x[from + c]);
        return terms.reduce((sum, term) => sum + term, bias[expert * rows + row]);
      });
      // Rounded before and after the bias.
      expectClose(read(out, expected.length), expected, (i) => {
        return (Math.abs(expected[i]) + 12) * epsilon;
      });
    });
  },
);
