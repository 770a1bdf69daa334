/** Campaigns with planted faults that the runner must find. */
import fc from 'fast-check';
import { type BytesTarget, type Campaign, Fault, type StructuredTarget } from '../../fuzz/campaign';

const bytes = (check: (bytes: Buffer) => void): Promise<BytesTarget> =>
  Promise.resolve({
    kind: 'bytes',
    seeds: [Buffer.from(`${'x'.repeat(40)}needle${'y'.repeat(40)}`)],
    words: ['needles'],
    check,
  });

const structured: StructuredTarget<{ n: number }> = {
  kind: 'structured',
  arbitrary: fc.record({ n: fc.nat(1e6) }),
  check: ({ n }) => {
    if (n > 1000) throw new Fault('more than a thousand');
  },
};

export const campaigns: Campaign[] = [
  {
    name: 'bytes',
    about: 'fails if a word occurs twice',
    open: () =>
      bytes((each) => {
        const text = each.toString('latin1');
        if (text.indexOf('needle') !== text.lastIndexOf('needle')) throw new Fault('two needles');
      }),
  },
  {
    name: 'structured',
    about: 'fails above a number',
    open: () => Promise.resolve(structured as StructuredTarget<unknown>),
  },
  {
    name: 'unhandled',
    about: 'leaves an unhandled rejection',
    open: () =>
      bytes((each) => {
        if (each.length < 50) void Promise.reject(new Error('unhandled'));
      }),
  },
  {
    name: 'crash',
    about: 'crashes the process',
    open: () =>
      bytes((each) => {
        if (each.length < 50) process.kill(process.pid, 'SIGKILL');
      }),
  },
  {
    name: 'hang',
    about: 'hangs',
    open: () =>
      bytes((each) => {
        while (each.length < 50);
      }),
  },
  { name: 'right', about: 'has no fault', open: () => bytes(() => undefined) },
];
