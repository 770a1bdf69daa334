'use strict';

/** Numbers from 0 up to 1, the same ones for the same seed (xorshift32, Marsaglia 2003). */
function seededRandom(seed) {
  // Odd, and so never zero, at which it would stay.
  let state = Math.imul(seed, 0x9e3779b1) | 1;
  const next = () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
  // Seeds that differ in few bits begin alike.
  for (let i = 0; i < 16; i++) next();
  return next;
}

/** An integer from `least` to `most`, both included. */
function randomInteger(random, least, most) {
  return least + Math.floor(random() * (most - least + 1));
}

module.exports = { randomInteger, seededRandom };
