/** Rotary embeddings with constants outside float32 are refused by key. */
import fc from 'fast-check';
import { parseTransformerConfig } from '../../lib/model/transformerConfig';
import { CheckpointError, UniprocError } from '../../lib/errors';
import { unusableConstants } from '../support/ropeTable';
import { LLAMA } from './checkpointFolder';

const FILE = '/checkpoint/config.json';

function complaint(keys: Record<string, unknown>): string {
  let error: unknown;
  try {
    parseTransformerConfig(FILE, { ...LLAMA, ...keys });
  } catch (thrown) {
    error = thrown;
  }
  expect(error).toBeInstanceOf(CheckpointError);
  return (error as CheckpointError).message;
}

describe('a constant of the rotary embedding outside float32 is refused by name', () => {
  const yarn = { type: 'yarn', factor: 4 };
  const llama3 = { rope_type: 'llama3', factor: 8, low_freq_factor: 1, high_freq_factor: 4 };

  it.each([
    [
      'the base',
      { rope_theta: 1e-42, head_dim: 512 },
      'rope_theta is 1e-42; the resulting frequency',
    ],
    [
      'an angle by the base',
      { rope_theta: 1e-37, head_dim: 512 },
      'rope_theta is 1e-37; the resulting angle of position 511',
    ],
    [
      'the factor of linear',
      { rope_scaling: { type: 'linear', factor: 1e-42 } },
      'rope_scaling: factor is 1e-42; the resulting frequency',
    ],
    [
      'a frequency of 0 by the factor of linear',
      { rope_theta: 1e30, head_dim: 512, rope_parameters: { type: 'linear', factor: 1e30 } },
      'rope_parameters: factor is 1e+30; the resulting frequency',
    ],
    [
      'an angle by the factor of linear',
      { rope_scaling: { type: 'linear', factor: 1e-37 } },
      'rope_scaling: factor is 1e-37; the resulting angle of position 511',
    ],
    [
      'the factor of llama3',
      { rope_scaling: { ...llama3, factor: 1e-42 } },
      'rope_scaling: factor is 1e-42; the resulting frequency',
    ],
    [
      'the wavelengths of llama3 by the base',
      { rope_theta: 3e38, head_dim: 8192, rope_scaling: { ...llama3, factor: 1 } },
      'rope_theta is 3e+38; the resulting wavelength',
    ],
    [
      'the longest wavelength of llama3',
      { rope_scaling: { ...llama3, low_freq_factor: 1e-37 } },
      'rope_scaling: low_freq_factor is 1e-37; the resulting wavelength',
    ],
    [
      'the difference of the wavelengths of llama3',
      { rope_scaling: { ...llama3, low_freq_factor: 4, high_freq_factor: 3.9 } },
      'rope_scaling: high_freq_factor is 3.9; it must be at least low_freq_factor, 4',
    ],
    [
      'the attention factor of yarn, too large',
      { rope_scaling: { ...yarn, mscale: 1e300, mscale_all_dim: 1 } },
      'rope_scaling: mscale is 1e+300 and mscale_all_dim is 1; with a factor of 4',
    ],
    [
      'the attention factor of yarn, too small',
      { rope_scaling: { ...yarn, mscale: 1, mscale_all_dim: 1e300 } },
      'rope_scaling: mscale is 1 and mscale_all_dim is 1e+300',
    ],
    [
      'the attention factor of yarn, below 0',
      { rope_scaling: { ...yarn, mscale: -100, mscale_all_dim: 1 } },
      'rope_scaling: mscale is -100',
    ],
    [
      'the given attention factor of yarn',
      { rope_scaling: { ...yarn, attention_factor: 1e39 } },
      'rope_scaling: attention_factor is 1e+39',
    ],
    [
      'the wavelengths of yarn',
      { rope_theta: 1e30, head_dim: 512, rope_scaling: { ...yarn, factor: 1e20 } },
      'rope_scaling: factor is 100000000000000000000; the resulting wavelength',
    ],
    [
      'the frequencies of yarn',
      { rope_scaling: { ...yarn, factor: 1e-42 } },
      'rope_scaling: factor is 1e-42; the resulting frequency',
    ],
    [
      'the logarithm that yarn divides by',
      { rope_theta: 1, rope_scaling: yarn },
      'rope_theta is 1; yarn divides by its logarithm',
    ],
    [
      'a beta of yarn, too large',
      { rope_scaling: { ...yarn, beta_fast: 1e300 } },
      'rope_scaling: beta_fast is 1e+300; it must be 0, a number above 0, within float32, or null',
    ],
    [
      'a beta of yarn, too small',
      { rope_scaling: { ...yarn, beta_slow: 1e-300 } },
      'rope_scaling: beta_slow is 1e-300',
    ],
  ])('%s', (_, keys, message) => {
    expect(complaint(keys)).toContain(message);
  });
});

it('every accepted rotary embedding has finite constants', () => {
  const number = fc.oneof(
    { weight: 2, arbitrary: fc.double({ min: 0.25, max: 64, noNaN: true }) },
    // All magnitudes within float32 and slightly beyond.
    {
      weight: 1,
      arbitrary: fc
        .tuple(fc.integer({ min: -47, max: 40 }), fc.double({ min: 1, max: 10, noNaN: true }))
        .map(([exponent, digits]) => Number(`${digits.toFixed(6)}e${exponent}`)),
    },
    { weight: 1, arbitrary: fc.constantFrom(-1, 0, 1, 1e300, 1e-300, 3.4e38, 1e-45) },
  );
  const optional = fc.option(number, { nil: null });
  const scaling = fc.record(
    {
      rope_type: fc.constantFrom('default', 'linear', 'dynamic', 'llama3', 'yarn', 'longrope'),
      factor: number,
      low_freq_factor: number,
      high_freq_factor: number,
      attention_factor: optional,
      mscale: optional,
      mscale_all_dim: optional,
      beta_fast: optional,
      beta_slow: optional,
      truncate: fc.boolean(),
      short_factor: fc.array(number, { minLength: 2, maxLength: 2 }),
      long_factor: fc.array(number, { minLength: 2, maxLength: 2 }),
      original_max_position_embeddings: fc.constantFrom(1, 128, 2 ** 31 - 1),
    },
    { requiredKeys: ['rope_type', 'factor'] },
  );
  const config = fc.record({
    rope_theta: fc.oneof(number, fc.constantFrom(10000, 500000)),
    rope_scaling: scaling,
    head_dim: fc.constantFrom(2, 4, 64, 512),
    max_position_embeddings: fc.constantFrom(1, 512, 131072, 2 ** 31 - 1),
  });
  let numAccepted = 0;
  fc.assert(
    fc.property(config, (keys) => {
      let parsed;
      try {
        parsed = parseTransformerConfig(FILE, { ...LLAMA, ...keys });
      } catch (error) {
        expect(error).toBeInstanceOf(UniprocError);
        return;
      }
      numAccepted++;
      const { spec, maxPositionEmbeddings } = parsed;
      expect(spec.ropes.flatMap((rope) => unusableConstants(rope, maxPositionEmbeddings))).toEqual(
        [],
      );
    }),
    { numRuns: 20_000 },
  );
  expect(numAccepted).toBeGreaterThan(1000);
});
