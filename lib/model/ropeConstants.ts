/**
 * Checks the constants of a rotary embedding before the model is made. The native side computes them in
 * float32 (native/model/rope.cpp); one that is not finite and above 0 makes every logit NaN.
 */
import type { RopeScaling } from './spec';
import { isPositiveFloat32 } from '../config/schema';

export interface RopeConstants {
  /** The config.json key of `scaling`. */
  section: string;
  /** Base of the wavelengths. */
  theta: number;
  scaling: RopeScaling;
  /** Maximum positions. */
  maxPositions: number;
  /** Rotated elements of a head, even. */
  rotaryDim: number;
}

/** Makes the error from a message with the key and its value. */
type Fail = (message: string) => Error;

const f32 = Math.fround;

/** Throws `fail`'s error unless each of `values` is finite and above 0 in float32. */
function requirePositive(
  fail: Fail,
  key: string,
  given: number,
  constant: string,
  ...values: number[]
): void {
  const wrong = values.find((value) => !isPositiveFloat32(value));
  if (wrong === undefined) return;
  throw fail(
    `${key} is ${given}; the resulting ${constant} is ${wrong}; ` +
      'it must be a number above 0, within float32',
  );
}

/**
 * Checks the wavelengths, frequencies and angles of every dimension pair and position. They are
 * monotonic in the pair, and a blend of two lies between them, so checking the first and last pair
 * suffices. Throws `fail`'s error, which names the key, its value and the constant.
 */
export function checkRopeConstants(rope: RopeConstants, fail: Fail): void {
  const { section, theta, scaling, maxPositions, rotaryDim } = rope;
  const exponentOf = (pair: number) => f32(f32(2 * pair) / f32(rotaryDim));
  const lastExponent = exponentOf(rotaryDim / 2 - 1);
  // Inverse frequencies theta ** (2i / rotaryDim) of the first and the last pair.
  const inverted = [1, f32(f32(theta) ** lastExponent)];
  requirePositive(fail, 'rope_theta', theta, 'wavelength', ...inverted);
  const frequencies = inverted.map((each) => f32(1 / each));
  requirePositive(fail, 'rope_theta', theta, 'frequency', ...frequencies);
  requireAngles('rope_theta', theta, frequencies);

  switch (scaling.type) {
    case 'default':
      return;

    case 'proportional':
    case 'linear': {
      const { factor } = scaling;
      requireFrequencies(
        factor,
        frequencies.map((frequency) => f32(frequency / f32(factor))),
      );
      return;
    }

    case 'dynamic': {
      const { factor, originalMaxPositionEmbeddings: original } = scaling;
      const stretch = (factor * maxPositions) / original - (factor - 1);
      const base = f32(theta * stretch ** (rotaryDim / (rotaryDim - 2)));
      const last = f32(base ** lastExponent);
      requirePositive(fail, `${section}: factor`, factor, 'wavelength', base, last);
      requireFrequencies(factor, [1, f32(1 / last)]);
      return;
    }

    case 'longrope': {
      for (const [key, factors] of [
        ['short_factor', scaling.shortFactors],
        ['long_factor', scaling.longFactors],
      ] as const) {
        factors.forEach((factor, pair) => {
          const name = `${section}: ${key}[${pair}]`;
          const wave = f32(f32(factor) * f32(f32(theta) ** exponentOf(pair)));
          requirePositive(fail, name, factor, 'wavelength', wave);
          requirePositive(fail, name, factor, 'frequency', f32(1 / wave));
          requireAngles(name, factor, [f32(1 / wave)]);
        });
      }
      return;
    }

    case 'llama3': {
      const { factor, lowFreqFactor, highFreqFactor, originalMaxPositionEmbeddings } = scaling;
      requireFrequencies(
        factor,
        frequencies.map((frequency) => f32(frequency / f32(factor))),
      );
      const waves = frequencies.map((frequency) => f32(f32(1 / frequency) * f32(2 * Math.PI)));
      requirePositive(fail, 'rope_theta', theta, 'wavelength', ...waves);
      for (const [key, value] of [
        ['low_freq_factor', lowFreqFactor],
        ['high_freq_factor', highFreqFactor],
      ] as const) {
        const wave = originalMaxPositionEmbeddings / value;
        requirePositive(fail, `${section}: ${key}`, value, 'wavelength', wave);
      }
      return;
    }

    case 'yarn': {
      const { factor } = scaling;
      if (Math.log(theta) === 0) {
        throw fail(`rope_theta is ${theta}; yarn divides by its logarithm, so it must not be 1`);
      }
      const stretched = inverted.map((each) => f32(f32(factor) * each));
      requirePositive(fail, `${section}: factor`, factor, 'wavelength', ...stretched);
      requireFrequencies(
        factor,
        stretched.map((each) => f32(1 / each)),
      );
      return;
    }
  }

  /** Checks frequencies scaled by `factor`. */
  function requireFrequencies(factor: number, scaled: number[]): void {
    requirePositive(fail, `${section}: factor`, factor, 'frequency', ...scaled);
    requireAngles(`${section}: factor`, factor, scaled);
  }

  function requireAngles(key: string, given: number, each: number[]): void {
    const largest = Math.max(...each);
    const angle = f32(f32(Math.max(maxPositions - 1, 1)) * largest);
    requirePositive(fail, key, given, `angle of position ${maxPositions - 1}`, angle);
  }
}
