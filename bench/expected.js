// Expected figures of an H200 by shape, and llama.cpp's for comparison.
'use strict';

/** Minimum GB/s of a load from the page cache. */
const LEAST_LOAD_RATE = 8;
/** Maximum microseconds of device idle time between two decode steps. */
const MOST_IDLE = 20;

/**
 * Maximum seconds to the first token from the start of a process and from the end of the load, and of
 * a decode step given its products' and cache's time; minimum share of the products' rate in a prefill.
 */
const EXPECTED = {
  'llama-3.1-8b': {
    firstToken: 6,
    afterWeights: 1,
    decode: {
      '1 after 128': (products) => 1.2 * products,
      '64 after 1024': (products, cache) => 1.3 * (products + cache),
    },
    prefill: { '1 x 8192': 0.6 },
  },
};

/**
 * llama.cpp on an H200, float16, flash attention, built for sm_90a (node-llama-cpp 3.22's engine):
 * milliseconds per decode step, tokens per second of prefill.
 */
const LLAMA_CPP = {
  'llama-3.1-8b': {
    decode: {
      '1 after 128': 4.89,
      '8 after 128': 7.34,
      '32 after 128': 7.59,
      '64 after 128': 9.14,
      '1 after 1024': 4.93,
      '8 after 1024': 7.62,
      '32 after 1024': 8.86,
      '64 after 1024': 11.6,
    },
    prefill: { '8 x 1024': 30800, '1 x 8192': 17200 },
  },
  'llama-3.2-1b': {
    decode: {
      '1 after 128': 1.41,
      '8 after 128': 2.36,
      '32 after 128': 2.83,
      '64 after 128': 3.64,
      '1 after 1024': 1.4,
      '8 after 1024': 2.21,
      '32 after 1024': 3.27,
      '64 after 1024': 4.69,
    },
    prefill: { '8 x 1024': 135000, '1 x 8192': 36700 },
  },
};

module.exports = { EXPECTED, LEAST_LOAD_RATE, LLAMA_CPP, MOST_IDLE };
