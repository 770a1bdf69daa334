/** Sliced work with a clock and event loop turns under the test's control. */
import { SlicedWork } from '../lib/slicedWork';

class Bench {
  time = 0;
  private readonly callbacks: (() => void)[] = [];
  readonly work = new SlicedWork(
    () => this.time,
    (callback) => this.callbacks.push(callback),
  );
  readonly log: string[] = [];

  /** `count` pieces of a millisecond each. */
  *pieces(name: string, count: number): Generator<void, void> {
    for (let i = 0; i < count; i++) {
      this.time++;
      this.log.push(name);
      yield;
    }
  }

  run(name: string, count: number): void {
    const failed = (error: unknown) => this.log.push(`${name} failed: ${String(error)}`);
    this.work.run(this.pieces(name, count), () => this.log.push(`${name} done`), failed);
  }

  /** Runs the next event loop turn; returns its milliseconds. */
  turn(): number {
    const start = this.time;
    for (const callback of this.callbacks.splice(0)) callback();
    return this.time - start;
  }
}

test('a small job completes at once', () => {
  const bench = new Bench();
  bench.run('a', 2);
  expect(bench.log).toEqual(['a', 'a', 'a done']);
});

test('no turn exceeds the budget by more than a few pieces, with any number of jobs', () => {
  const bench = new Bench();
  for (let i = 0; i < 20; i++) bench.run(String(i), 50);
  const atOnce = bench.time;
  const turns = Array.from({ length: 2000 }, () => bench.turn());
  for (const duration of [atOnce, ...turns]) expect(duration).toBeLessThanOrEqual(2 + 8);
  expect(bench.log.filter((line) => line.endsWith('done'))).toHaveLength(20);
});

test('a small job does not wait for a large one', () => {
  const bench = new Bench();
  bench.run('large', 1000);
  bench.run('small', 1);
  for (let i = 0; i < 5; i++) bench.turn();
  expect(bench.log).toContain('small done');
  expect(bench.log).not.toContain('large done');
});

test('a job that throws fails alone', () => {
  const bench = new Bench();
  function* broken(): Generator<void, void> {
    yield;
    throw new Error('broken');
  }
  bench.run('before', 50);
  bench.work.run(
    broken(),
    () => bench.log.push('done'),
    (error) => bench.log.push(String(error)),
  );
  for (let i = 0; i < 100; i++) bench.turn();
  expect(bench.log.filter((line) => line !== 'before')).toEqual(['Error: broken', 'before done']);
});
