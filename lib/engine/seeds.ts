/** Derives seeds for requests without one, and for a request's samples. */

/** The `n`th value that SplitMix64 draws from `seed` (Steele, Lea, Flood 2014); 64 bits. */
function splitMix64(seed: bigint, n: bigint): bigint {
  let z = BigInt.asUintN(64, seed + n * 0x9e3779b97f4a7c15n);
  z = BigInt.asUintN(64, (z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n);
  z = BigInt.asUintN(64, (z ^ (z >> 27n)) * 0x94d049bb133111ebn);
  return z ^ (z >> 31n);
}

/** Seed of the engine's `count`th request, from 0. */
export function requestSeed(engineSeed: number, count: number): bigint {
  return splitMix64(BigInt(engineSeed), BigInt(count) + 1n);
}

/** Seed of a request's sample; the first uses the request's own. */
export function sampleSeed(requestSeed: bigint, index: number): bigint {
  const seed = BigInt.asUintN(64, requestSeed);
  // Negative counts avoid the values that `requestSeed` derives from the same seed.
  return index === 0 ? seed : splitMix64(seed, BigInt(-index));
}
