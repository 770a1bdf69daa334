/** Properties of sampled tokens for any logits, parameters and lists. */
import * as fc from 'fast-check';
import type { NativeSampling } from '../../../lib/native';
import { backends, openOps } from './binding';
import { request, sample, sampleAndCount } from './samples';
import { permittedTokens, sampleReference } from './samplerReference';
import { samplerCase, type SamplerCase } from './samplerCases';

const RUNS = Number(process.env.UNIPROC_PROPERTY_RUNS ?? 300);
const options = { numRuns: RUNS, seed: Number(process.env.UNIPROC_PROPERTY_SEED ?? 10) };

jest.setTimeout(600_000); // allows for more runs, or a busy machine

describe.each(backends)('any row, %s', (backend) => {
  const ops = openOps(backend);
  const run = ({ logits, request: made, bitmask }: SamplerCase) => {
    const { tokenIds, numNans } = sampleAndCount(ops, [logits], [made], bitmask);
    return { tokenId: tokenIds[0], numNans: numNans[0] };
  };

  it('gets a permitted token, and a possible one if there is any', () => {
    fc.assert(
      fc.property(samplerCase, (trial) => {
        const { logits, request: made, bitmask } = trial;
        const { permitted } = permittedTokens(logits.length, made, bitmask);
        const possible = permitted.filter((id) => logits[id] > -Infinity);
        expect(possible.length > 0 ? possible : permitted).toContain(run(trial).tokenId);
      }),
      options,
    );
  });

  it('gets the same token again', () => {
    fc.assert(
      fc.property(samplerCase, (trial) => {
        expect(run(trial)).toEqual(run(trial));
      }),
      options,
    );
  });

  it('gets the token of the float64 reference if float32 accuracy suffices', () => {
    let numCompared = 0;
    fc.assert(
      fc.property(samplerCase, (trial) => {
        const { tokenId, margin } = sampleReference(trial.logits, trial.request, trial.bitmask);
        if (margin < 2e-5) return;
        ++numCompared;
        expect(run(trial).tokenId).toBe(tokenId);
      }),
      options,
    );
    expect(numCompared).toBeGreaterThan(RUNS / 2);
  });

  it('has its NaN counted', () => {
    fc.assert(
      fc.property(samplerCase, (trial) => {
        expect(run(trial).numNans).toBe(trial.logits.filter(Number.isNaN).length);
      }),
      options,
    );
  });
});

describe.each(backends)('parameters at the ends of float32, %s', (backend) => {
  const ops = openOps(backend);
  const logits = Float32Array.from({ length: 40 }, (_, i) => (i % 7) - 3);
  const allowed = Int32Array.of(11, 12, 13);

  it.each<[string, Partial<NativeSampling>]>([
    ['a temperature of infinity, top-p', { temperature: 1e39, topP: 0.9 }],
    ['a temperature of infinity, top-k', { temperature: Infinity, topK: 2 }],
    ['a temperature of infinity', { temperature: Infinity }],
    ['a temperature that is not a number', { temperature: NaN }],
    ['a negative temperature', { temperature: -1, topP: 0.5 }],
    ['a repetition penalty of 0, top-p', { repetitionPenalty: 1e-46, topP: 0.9 }],
    ['a negative repetition penalty', { repetitionPenalty: -1, minP: 0.1 }],
    ['an infinite repetition penalty', { repetitionPenalty: Infinity, topP: 0.5 }],
    ['infinite penalties', { presencePenalty: Infinity, frequencyPenalty: -Infinity, topP: 0.9 }],
    ['a presence penalty that is not a number', { presencePenalty: NaN, topK: 5 }],
    ['top-p below 0', { topP: -Infinity }],
    ['top-p of the smallest float32', { topP: 1e-45 }],
    ['min-p above 1', { minP: Infinity }],
    ['top-k below 0', { topK: -(2 ** 31), topP: 0.5 }],
  ])('%s: a token that is allowed', (_, sampling) => {
    const requests = Array.from({ length: 20 }, (__, i) =>
      request({ ...sampling, seed: BigInt(i), allowedTokenIds: allowed }, [11, 12, 1], [12, 13, 2]),
    );
    const rows = requests.map(() => logits);
    for (const tokenId of sample(ops, rows, requests)) expect(allowed).toContain(tokenId);
  });

  it('an infinite bias does not permit a forbidden token', () => {
    const biases = {
      logitBiasTokenIds: Int32Array.of(5, 11),
      logitBiases: Float32Array.of(Infinity, -Infinity),
      allowedTokenIds: allowed,
    };
    for (const more of [{ temperature: 0 }, {}, { topP: 0.9 }, { topK: 2 }, { minP: 0.1 }]) {
      expect([12, 13]).toContain(sample(ops, [logits], [request({ ...biases, ...more })])[0]);
    }
  });

  it('a token with logit -Infinity stays impossible at any temperature', () => {
    const row = Float32Array.from({ length: 5000 }, (_, i) => (i % 1000 === 7 ? -3 : -Infinity));
    for (const temperature of [1e38, Infinity]) {
      for (const more of [{}, { topP: 0.999 }, { topK: 4000 }, { minP: 1e-30 }]) {
        const requests = Array.from({ length: 20 }, (_, i) =>
          request({ temperature, ...more, seed: BigInt(i) }),
        );
        const tokenIds = sample(ops, Array(20).fill(row) as Float32Array[], requests);
        for (const tokenId of tokenIds) expect(tokenId % 1000).toBe(7);
      }
    }
  });

  it('bans apply while another token is permitted, even if none is possible', () => {
    const stop = { stopTokenIds: Int32Array.of(0, 1), minTokens: 5 };
    for (const value of [NaN, -Infinity]) {
      for (const more of [{ temperature: 0 }, {}, { topP: 0.5 }]) {
        const one = (sampling: Partial<NativeSampling>) =>
          sample(ops, [new Float32Array(9000).fill(value)], [request({ ...more, ...sampling })])[0];
        expect(one(stop)).toBe(2);
        expect(one({ ...stop, allowedTokenIds: Int32Array.of(8000, 0, 5000) })).toBe(5000);
        expect(one({ ...stop, allowedTokenIds: Int32Array.of(1, 0) })).toBe(0);
      }
    }
  });

  it('NaN of one row is not counted in another', () => {
    const rows = [0, 1, 3000, 0, 9001].map((numNans) =>
      Float32Array.from({ length: 9001 }, (_, i) => (i < numNans ? NaN : i % 10)),
    );
    const requests = rows.map(() => request({ topP: 0.5 }));
    expect(sampleAndCount(ops, rows, requests).numNans).toEqual([0, 1, 3000, 0, 9001]);
  });
});
