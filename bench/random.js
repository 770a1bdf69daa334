'use strict';

/** Seeded random numbers from 0 to 1, exclusive (xorshift32, Marsaglia 2003). */
function seededRandom(seed) {
  // Odd, so never zero, which is a fixed point.
  let state = Math.imul(seed, 0x9e3779b1) | 1;
  const next = () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
  // Seeds that differ in few bits have similar first numbers.
  for (let i = 0; i < 16; i++) next();
  return next;
}

/** An integer from `least` to `most`, inclusive. */
function randomInteger(random, least, most) {
  return least + Math.floor(random() * (most - least + 1));
}

module.exports = { randomInteger, seededRandom };
