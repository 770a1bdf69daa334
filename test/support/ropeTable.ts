/**
 * The constants of a rotary embedding in float32, after transformers' modeling_rope_utils.py
 * (compute_default_rope_parameters, _compute_linear_scaling_, _compute_llama3_, _compute_yarn_parameters),
 * to check that all are finite.
 */
import type { RopeSpec } from '../../lib/native';

const f32 = Math.fround;

/** Radians per position of pair `i` of `rotaryDim / 2`, in a context of `maxPositions`. */
export function ropeFrequency(
  { theta, scaling, rotaryDim: headDim }: RopeSpec,
  maxPositions: number,
  i: number,
): number {
  const wavelength = f32(f32(theta) ** f32((2 * i) / headDim));
  const frequency = f32(1 / wavelength);
  switch (scaling.type) {
    case 'default':
      return frequency;
    case 'proportional':
      return 2 * i < scaling.rotatedDim ? f32(frequency / f32(scaling.factor)) : 0;
    case 'linear':
      return f32(frequency / f32(scaling.factor));
    case 'dynamic': {
      const { factor, originalMaxPositionEmbeddings: original } = scaling;
      const length = Math.max(maxPositions, original);
      const grown =
        theta * ((factor * length) / original - (factor - 1)) ** (headDim / (headDim - 2));
      return f32(1 / f32(f32(grown) ** f32((2 * i) / headDim)));
    }
    case 'longrope': {
      const isLong = maxPositions > scaling.originalMaxPositionEmbeddings;
      const factors = isLong ? scaling.longFactors : scaling.shortFactors;
      return f32(1 / f32(f32(factors[i]) * wavelength));
    }
    case 'llama3': {
      const [low, high] = [f32(scaling.lowFreqFactor), f32(scaling.highFreqFactor)];
      const context = f32(scaling.originalMaxPositionEmbeddings);
      const wave = f32(f32(2 * Math.PI) / frequency);
      if (wave < f32(context / high)) return frequency;
      const slow = f32(frequency / f32(scaling.factor));
      if (wave > f32(context / low)) return slow;
      const smooth = f32(f32(f32(context / wave) - low) / f32(high - low));
      return f32(f32(f32(1 - smooth) * slow) + f32(smooth * frequency));
    }
    case 'yarn': {
      const correction = (turns: number) =>
        (headDim * Math.log(scaling.originalMaxPositionEmbeddings / (turns * 2 * Math.PI))) /
        (2 * Math.log(theta));
      const bounds = [correction(scaling.betaFast), correction(scaling.betaSlow)];
      const [first, last] = scaling.truncate
        ? [Math.floor(bounds[0]), Math.ceil(bounds[1])]
        : bounds;
      const low = Math.max(first, 0);
      let high = Math.min(last, headDim - 1);
      if (low === high) high += 0.001;
      const ramp = f32(f32(i - low) / f32(high - low));
      // Math.min and Math.max propagate NaN; a comparison would hide it.
      const share = f32(1 - Math.min(Math.max(ramp, 0), 1));
      const slow = f32(1 / f32(f32(scaling.factor) * wavelength));
      return f32(f32(slow * f32(1 - share)) + f32(frequency * share));
    }
  }
}

/** The constants that are not finite and positive in float32, as text, for at most 64 pairs. */
export function unusableConstants(rope: RopeSpec, maxPositions: number): string[] {
  const { theta, scaling, rotaryDim } = rope;
  const wrong: string[] = [];
  const half = rotaryDim / 2;
  const step = Math.max(1, Math.floor(half / 63));
  const pairs = Array.from({ length: Math.min(half, 63) }, (_, i) => i * step).concat(half - 1);
  for (const pair of pairs) {
    const frequency = ropeFrequency(rope, maxPositions, pair);
    if (!Number.isFinite(frequency)) wrong.push(`frequency ${frequency} of pair ${pair}`);
    const angle = f32(f32(maxPositions - 1) * frequency);
    if (!Number.isFinite(angle)) wrong.push(`angle ${angle} of pair ${pair}`);
  }
  for (const [name, value] of Object.entries({ theta, ...scaling })) {
    if (typeof value !== 'number' || (f32(value) > 0 && f32(value) < Infinity)) continue;
    wrong.push(`${name} ${value}`);
  }
  return wrong;
}
