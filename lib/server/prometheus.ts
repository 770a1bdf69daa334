/** Prometheus's text format, version 0.0.4. */

export const CONTENT_TYPE = 'text/plain; version=0.0.4; charset=utf-8';

export type Labels = Readonly<Record<string, string | number>>;

/** A histogram with cumulative buckets. */
export interface Buckets {
  /** Ascending, inclusive. */
  readonly upperBounds: readonly number[];
  /** Values up to each bound. */
  readonly cumulative: readonly number[];
  readonly sum: number;
  readonly count: number;
}

/** Counts observations by bound. */
export class BucketHistogram implements Buckets {
  private readonly counts: Float64Array;
  sum = 0;
  count = 0;

  constructor(readonly upperBounds: readonly number[]) {
    this.counts = new Float64Array(upperBounds.length);
  }

  observe(value: number): void {
    const bucket = this.upperBounds.findIndex((bound) => value <= bound);
    if (bucket >= 0) this.counts[bucket]++;
    this.sum += value;
    this.count++;
  }

  get cumulative(): readonly number[] {
    let total = 0;
    return Array.from(this.counts, (count) => (total += count));
  }
}

/** A metric's samples are written one after another, below its HELP and TYPE. */
export class PrometheusText {
  private readonly families = new Map<string, string[]>();

  gauge(name: string, help: string, labels: Labels, value: number): void {
    this.family(name, help, 'gauge').push(sample(name, labels, value));
  }

  /** `name` without `_total`. */
  counter(name: string, help: string, labels: Labels, value: number): void {
    this.family(`${name}_total`, help, 'counter').push(sample(`${name}_total`, labels, value));
  }

  histogram(name: string, help: string, labels: Labels, buckets: Buckets): void {
    const { upperBounds, cumulative, sum, count } = buckets;
    const lines = this.family(name, help, 'histogram');
    upperBounds.forEach((bound, i) => {
      // Python's form of a float, which vLLM's dashboards know.
      const le = Number.isInteger(bound) ? `${bound}.0` : String(bound);
      lines.push(sample(`${name}_bucket`, { ...labels, le }, cumulative[i]));
    });
    lines.push(sample(`${name}_bucket`, { ...labels, le: '+Inf' }, count));
    lines.push(sample(`${name}_sum`, labels, sum), sample(`${name}_count`, labels, count));
  }

  toString(): string {
    return `${[...this.families.values()].map((lines) => lines.join('\n')).join('\n')}\n`;
  }

  private family(name: string, help: string, type: string): string[] {
    let lines = this.families.get(name);
    if (lines === undefined) {
      lines = [`# HELP ${name} ${help}`, `# TYPE ${name} ${type}`];
      this.families.set(name, lines);
    }
    return lines;
  }
}

function sample(name: string, labels: Labels, value: number): string {
  const pairs = Object.entries(labels).map(([key, text]) => `${key}="${escape(String(text))}"`);
  return `${name}${pairs.length > 0 ? `{${pairs.join(',')}}` : ''} ${value}`;
}

const escape = (text: string) =>
  text.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n');
