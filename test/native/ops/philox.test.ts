import { cpuOps, dtypes, isas, philox } from './binding';
import { widen } from './reference';

describe('philox', () => {
  // The known answers published with Random123.
  it.each([
    [
      [0, 0, 0, 0],
      [0, 0],
      [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
    ],
    [
      [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff],
      [0xffffffff, 0xffffffff],
      [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
    ],
    [
      [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
      [0xa4093822, 0x299f31d0],
      [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
    ],
  ])('gives the published words of counter %p and key %p', (counter, key, expected) => {
    expect([...philox(Uint32Array.from(counter), Uint32Array.from(key))]).toEqual(expected);
  });
});

describe.each(isas)('fillRandom, %s', (isa) => {
  const ops = cpuOps(isa);
  const count = 100003;

  const fill = (mean: number, std: number, seed: bigint, numThreads = 2, length = count) => {
    const some = cpuOps(isa, numThreads);
    const out = some.zeros(length);
    some.fillRandom(out, mean, std, seed);
    return some.readFloats(out, length);
  };

  it('has the mean, deviation and tails of a normal distribution', () => {
    const values = fill(0.5, 2, 1n);
    const z = Array.from(values, (x) => (x - 0.5) / 2).sort((a, b) => a - b);
    // The largest distance between the distributions, which is below 1.95 / sqrt(n) with
    // probability 0.999 (Kolmogorov-Smirnov).
    let distance = 0;
    for (let x = -4, below = 0; x <= 4; x += 0.02) {
      while (below < count && z[below] <= x) ++below;
      distance = Math.max(distance, Math.abs(normalBelow(x) - below / count));
    }
    expect(distance).toBeLessThan(1.95 / Math.sqrt(count));
    // Neighbours are uncorrelated.
    for (const lag of [1, 2, 3, 4]) {
      let sum = 0;
      for (let i = 0; i + lag < count; ++i) sum += (values[i] - 0.5) * (values[i + lag] - 0.5);
      expect(Math.abs(sum / count / 4)).toBeLessThan(4 / Math.sqrt(count));
    }
  });

  it('depends only on seed and index', () => {
    expect(fill(0, 1, 5n, 1)).toEqual(fill(0, 1, 5n, 3));
    expect(fill(0, 1, 5n, 2, 1001)).toEqual(fill(0, 1, 5n).subarray(0, 1001));
    expect(fill(0, 1, 6n)[0]).not.toBe(fill(0, 1, 5n)[0]);
    expect(fill(0, 1, 1n << 32n)[0]).not.toBe(fill(0, 1, 0n)[0]);
  });

  it.each(dtypes)('fills %s; with deviation 0, with the mean', (dtype) => {
    const out = ops.zeros(7, dtype);
    ops.fillRandom(out, 1, 0, 3n);
    const read = () =>
      dtype === 'float32'
        ? Array.from(ops.readFloats(out, 7))
        : Array.from(ops.readBits(out, 7), widen[dtype]);
    expect(read()).toEqual(Array(7).fill(1));
    ops.fillRandom(out, 0, 1, 3n);
    const exact = fill(0, 1, 3n, 1, 7);
    read().forEach((x, i) => expect(Math.abs(x - exact[i])).toBeLessThan(0.02));
  });
});

/** Standard normal distribution function, integrated with Simpson's rule. */
function normalBelow(x: number): number {
  const steps = 200;
  const h = x / steps;
  let sum = 0;
  for (let i = 0; i <= steps; ++i) {
    const weight = i === 0 || i === steps ? 1 : i % 2 === 1 ? 4 : 2;
    sum += weight * Math.exp(-((i * h) ** 2) / 2);
  }
  return 0.5 + (sum * h) / 3 / Math.sqrt(2 * Math.PI);
}
