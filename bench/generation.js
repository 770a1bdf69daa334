// Prefill and decode rates of a whole engine, and the event loop's delay meanwhile.
'use strict';

const { monitorEventLoopDelay } = require('node:perf_hooks');
const { LLM } = require('..');
const { cacheBytesOfStep } = require('./decode');
const { floorSeconds, productSeconds } = require('./floor');
const { Products } = require('./products');
const { greedy, makePrompts } = require('./prompts');

const BATCHES = [1, 8, 32];
const PROMPT_TOKENS = 512;
const DECODE_TOKENS = 128;
const MAX_STEP_TOKENS = 2048;
/** Maximum event loop delay, 99th percentile, in ms. */
const MAX_EVENT_LOOP_DELAY = 20;

async function seconds(work) {
  const start = performance.now();
  await work();
  return (performance.now() - start) / 1000;
}

async function benchGeneration({ model, dtype }) {
  const llm = await LLM.create({
    model,
    dtype,
    device: 'cpu',
    maxNumSeqs: Math.max(...BATCHES),
    maxNumBatchedTokens: MAX_STEP_TOKENS,
    enablePrefixCaching: false, // The prompts repeat.
  });
  const config = llm.engine.executor.config.model;
  const { vocabSize } = config.transformer.spec;
  const products = new Products(config);
  const rows = [
    {
      bench: 'ceiling',
      what: 'reading memory',
      value: products.readBandwidth / 1e9,
      unit: 'GB/s',
    },
    {
      bench: 'ceiling',
      what: 'a large product',
      value: products.productRate / 1e9,
      unit: 'GFLOP/s',
    },
  ];
  const delay = monitorEventLoopDelay({ resolution: 1 });
  try {
    await llm.generate(makePrompts(1, 16, vocabSize), greedy(16));
    for (const batch of BATCHES) {
      delay.enable();
      const prompts = makePrompts(batch, PROMPT_TOKENS, vocabSize);
      const prefill = await seconds(() => llm.generate(prompts, greedy(1)));
      const whole = await seconds(() => llm.generate(prompts, greedy(1 + DECODE_TOKENS)));
      delay.disable();
      const stepTokens = Math.min(batch * PROMPT_TOKENS, MAX_STEP_TOKENS);
      const stepPrompts = stepTokens / PROMPT_TOKENS;
      const prefillStep = {
        numTokens: stepTokens,
        numSampled: stepPrompts,
        prompts: { count: stepPrompts, length: PROMPT_TOKENS },
      };
      const contexts = new Array(batch).fill(PROMPT_TOKENS + DECODE_TOKENS / 2);
      const decodeStep = {
        numTokens: batch,
        numSampled: batch,
        cacheBytes: cacheBytesOfStep(config, contexts),
      };
      rows.push(
        {
          bench: 'prefill',
          what: `${batch} x ${PROMPT_TOKENS} tokens`,
          value: (batch * PROMPT_TOKENS) / prefill,
          unit: 'tok/s',
          floor: stepTokens / floorSeconds(config, products, prefillStep),
          ceiling: stepTokens / productSeconds(config, products, stepTokens, 1),
        },
        {
          bench: 'decode',
          what: `${batch} x ${DECODE_TOKENS} tokens after ${PROMPT_TOKENS}`,
          value: (batch * DECODE_TOKENS) / (whole - prefill),
          unit: 'tok/s',
          floor: batch / floorSeconds(config, products, decodeStep),
          ceiling: batch / productSeconds(config, products, batch, batch),
        },
      );
    }
    rows.push({
      bench: 'event loop delay',
      what: '99th percentile while generating',
      // The recorded delays include the monitor's own period.
      value: Math.max(0, delay.percentile(99) / 1e6 - 1),
      unit: 'ms',
      bound: MAX_EVENT_LOOP_DELAY,
    });
  } finally {
    await llm.shutdown();
  }
  return rows;
}

module.exports = { benchGeneration };
