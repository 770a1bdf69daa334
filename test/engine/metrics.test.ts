import { Histogram } from '../../lib/engine/metrics';

describe('a histogram', () => {
  test('has buckets from 0.1 ms to 100 s, at most a factor of 1.6 wide, and one above', () => {
    const { upperBounds, counts, sum, count } = new Histogram().snapshot();
    expect(upperBounds.slice(0, 7)).toEqual([0.1, 0.16, 0.25, 0.4, 0.63, 1, 1.6]);
    expect(upperBounds.slice(-3)).toEqual([63_000, 80_000, 100_000]);
    for (let i = 1; i < upperBounds.length; i++) {
      const factor = upperBounds[i] / upperBounds[i - 1];
      expect(factor).toBeGreaterThan(1);
      expect(factor).toBeLessThan(1.61);
    }
    expect(counts).toEqual(Array(upperBounds.length + 1).fill(0));
    expect([sum, count]).toEqual([0, 0]);
  });

  test('counts each value in the first bucket with a bound not below it', () => {
    const values = [0, 0.1, 0.1000001, 5, 5, 6.3, 7, 99_999, 100_000, 100_001, 1e9];
    const histogram = new Histogram();
    for (const value of values) histogram.observe(value);
    const { upperBounds, counts, sum, count } = histogram.snapshot();
    const expected = upperBounds.map(
      (bound, i) =>
        values.filter((value) => value <= bound && value > (i > 0 ? upperBounds[i - 1] : -1))
          .length,
    );
    expect(counts).toEqual([...expected, 2]);
    expect(count).toBe(values.length);
    expect(sum).toBeCloseTo(values.reduce((a, b) => a + b));
  });

  test("has the bounds of vLLM's metrics of token latencies, so that they are exact", () => {
    expect(new Histogram().snapshot().upperBounds).toEqual(
      expect.arrayContaining([10, 25, 50, 75, 100, 150, 200, 300, 400, 500, 750, 1000, 80_000]),
    );
  });

  test('returns a copy', () => {
    const histogram = new Histogram();
    const before = histogram.snapshot();
    histogram.observe(3);
    expect(before.count).toBe(0);
    expect(before.counts.every((each) => each === 0)).toBe(true);
    expect(histogram.snapshot().count).toBe(1);
  });
});
