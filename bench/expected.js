// Expected figures of an H200 by shape, and peers' figures for comparison.
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

/**
 * vLLM 0.25.1 (torch 2.11, CUDA 13, FlashAttention 3, torch.compile, CUDA graphs, prefix caching off), on
 * another card: milliseconds per decode step, tokens per second of prefill, through `LLM.generate` with
 * random bfloat16 weights. `productRate` is that of the card's 8192 x 8192 x 8192 product.
 */
const VLLM = {
  name: 'vLLM 0.25.1 on an H100',
  card: { readBandwidth: 3.111e12, productRate: 686e12 },
  /** A step is (time of 104 tokens - time of 40 tokens) / 64, so its rows have this many more. */
  meanGenerated: 72,
  shapes: {
    'llama-3.1-8b': {
      decode: {
        '1 after 128': 6.45,
        '8 after 128': 6.66,
        '32 after 128': 7.19,
        '64 after 128': 7.81,
        '128 after 128': 8.92,
        '256 after 128': 11.5,
        '1 after 1024': 7.02,
        '8 after 1024': 7.24,
        '32 after 1024': 8.49,
        '64 after 1024': 10.03,
      },
      prefill: { '1 x 512': 28191, '1 x 2048': 38132, '1 x 8192': 37952, '8 x 1024': 40775 },
    },
    'llama-3.2-1b': {
      decode: {
        '1 after 128': 1.69,
        '8 after 128': 1.62,
        '64 after 128': 2.46,
        '256 after 128': 6.66,
        '64 after 1024': 3.39,
      },
      prefill: { '1 x 8192': 191400, '8 x 1024': 201559 },
    },
    'qwen3-30b-a3b': {
      decode: {
        '1 after 128': 4.71,
        '8 after 128': 11.6,
        '64 after 128': 23.5,
        '256 after 128': 27.6,
        '64 after 1024': 24.8,
      },
      prefill: { '1 x 8192': 49354 },
    },
  },
  formats: {
    'llama-3.1-8b': {
      'fp8 by channel': {
        decode: {
          '1 after 128': 4.26,
          '8 after 128': 4.4,
          '64 after 128': 5.35,
          '256 after 128': 9.07,
          '64 after 1024': 7.79,
        },
        prefill: { '1 x 8192': 58076 },
      },
      'int4 in groups of 128': {
        decode: {
          '1 after 128': 3.96,
          '8 after 128': 4.08,
          '64 after 128': 6.08,
          '256 after 128': 11.3,
          '64 after 1024': 8.28,
        },
        prefill: { '1 x 8192': 35941 },
      },
    },
  },
};

module.exports = { EXPECTED, LEAST_LOAD_RATE, LLAMA_CPP, MOST_IDLE, VLLM };
