/** A model's metrics with the names, labels and buckets of vLLM's server. */
import { type FinishedRequest, type HistogramStats, VLLM_TOKEN_BOUNDS } from '../engine/metrics';
import { BucketHistogram, type Buckets, type Labels, PrometheusText } from './prometheus';
import type { ServableLLM, ServedModel } from './servedModels';

/** Seconds; vLLM's `request_latency_buckets`. */
const LATENCY = [
  0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680,
];
/** Seconds. */
const FIRST_TOKEN = [
  0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
  160, 640, 2560,
];
/** Seconds. */
const TOKEN = VLLM_TOKEN_BOUNDS.map((ms) => ms / 1000);

/** 1, 2, 5, 10, ... up to `max`. */
function counts(max: number): number[] {
  const bounds: number[] = [];
  for (let power = 1; ; power *= 10) {
    for (const digit of [1, 2, 5]) {
      if (digit * power > max) return bounds;
      bounds.push(digit * power);
    }
  }
}

/** Each metric of a finished request: its name behind `vllm:`, its help and its buckets. */
const OF_REQUESTS = {
  promptTokens: ['request_prompt_tokens', 'Number of prefill tokens processed.', null],
  generationTokens: ['request_generation_tokens', 'Number of generation tokens processed.', null],
  firstToken: [
    'time_to_first_token_seconds',
    'Histogram of time to first token in seconds.',
    FIRST_TOKEN,
  ],
  perOutputToken: [
    'request_time_per_output_token_seconds',
    'Histogram of time_per_output_token_seconds per request.',
    TOKEN,
  ],
  endToEnd: [
    'e2e_request_latency_seconds',
    'Histogram of end to end request latency in seconds.',
    LATENCY,
  ],
  queue: [
    'request_queue_time_seconds',
    'Histogram of time spent in WAITING phase for request.',
    LATENCY,
  ],
  inference: [
    'request_inference_time_seconds',
    'Histogram of time spent in RUNNING phase for request.',
    LATENCY,
  ],
  prefill: [
    'request_prefill_time_seconds',
    'Histogram of time spent in PREFILL phase for request.',
    LATENCY,
  ],
  decode: [
    'request_decode_time_seconds',
    'Histogram of time spent in DECODE phase for request.',
    LATENCY,
  ],
} as const;

type OfRequest = keyof typeof OF_REQUESTS;

type Histograms = Readonly<Record<OfRequest, BucketHistogram>>;

/** By model, so that several handlers of a model listen to it once. */
const histogramsOf = new WeakMap<ServableLLM, Histograms>();

/** The histograms of the model's requests that finish after the first call for it. */
function watch(llm: ServableLLM): Histograms {
  const known = histogramsOf.get(llm);
  if (known !== undefined) return known;
  const tokens = counts(llm.engine.config.model.maxModelLen);
  const entries = Object.entries(OF_REQUESTS).map(([key, [, , bounds]]) => [
    key,
    new BucketHistogram(bounds ?? tokens),
  ]);
  const histograms = Object.fromEntries(entries) as Histograms;
  llm.events.on('finished', (request) => observeRequest(histograms, request));
  histogramsOf.set(llm, histograms);
  return histograms;
}

function observeRequest(histograms: Histograms, request: FinishedRequest): void {
  const { numPromptTokens, numOutputTokens, finishReason } = request;
  const { queueTimeMs, timeToFirstTokenMs, totalTimeMs } = request;
  const observe = (name: OfRequest, ms: number) => histograms[name].observe(ms / 1000);
  if (timeToFirstTokenMs !== null) observe('firstToken', timeToFirstTokenMs);
  // vLLM counts the rest for requests that end with an output.
  if (finishReason === 'error' || finishReason === 'timeout') return;
  histograms.promptTokens.observe(numPromptTokens);
  histograms.generationTokens.observe(numOutputTokens);
  observe('endToEnd', totalTimeMs);
  if (queueTimeMs === null) return;
  observe('queue', queueTimeMs);
  observe('inference', totalTimeMs - queueTimeMs);
  if (timeToFirstTokenMs === null) return;
  observe('prefill', timeToFirstTokenMs - queueTimeMs);
  observe('decode', totalTimeMs - timeToFirstTokenMs);
  if (numOutputTokens < 2) return;
  observe('perOutputToken', (totalTimeMs - timeToFirstTokenMs) / (numOutputTokens - 1));
}

export class ModelMetrics {
  private readonly histograms: Histograms;

  constructor(
    private readonly name: string,
    private readonly llm: ServableLLM,
  ) {
    this.histograms = watch(llm);
  }

  write(text: PrometheusText): void {
    const labels = { model_name: this.name, engine: '0' };
    this.writeState(text, labels);
    for (const [key, [name, help]] of Object.entries(OF_REQUESTS)) {
      text.histogram(`vllm:${name}`, help, labels, this.histograms[key as OfRequest]);
    }
    text.histogram(
      'vllm:inter_token_latency_seconds',
      'Histogram of inter-token latency in seconds.',
      labels,
      inSeconds(this.llm.stats().interTokenLatencyMs),
    );
  }

  private writeState(text: PrometheusText, labels: Labels): void {
    const stats = this.llm.stats();
    const { prefixCacheStats, kvCache, numFinishedReqs } = stats;
    const gauge = (name: string, help: string, value: number) =>
      text.gauge(`vllm:${name}`, help, labels, value);
    const counter = (name: string, help: string, value: number) =>
      text.counter(`vllm:${name}`, help, labels, value);
    gauge(
      'num_requests_running',
      'Number of requests in model execution batches.',
      stats.numRunningReqs,
    );
    gauge(
      'num_requests_waiting',
      'Number of requests waiting to be processed.',
      stats.numWaitingReqs,
    );
    gauge('kv_cache_usage_perc', 'KV-cache usage. 1 means 100 percent usage.', stats.kvCacheUsage);
    counter(
      'prefix_cache_queries',
      'Prefix cache queries, in terms of number of queried tokens.',
      prefixCacheStats.queries,
    );
    counter(
      'prefix_cache_hits',
      'Prefix cache hits, in terms of number of cached tokens.',
      prefixCacheStats.hits,
    );
    counter(
      'num_preemptions',
      'Cumulative number of preemption from the engine.',
      stats.numPreemptions,
    );
    counter('prompt_tokens', 'Number of prefill tokens processed.', stats.numPromptTokens);
    counter('generation_tokens', 'Number of generation tokens processed.', stats.numOutputTokens);
    for (const [reason, count] of Object.entries(numFinishedReqs)) {
      text.counter(
        'vllm:request_success',
        'Count of successfully processed requests.',
        { ...labels, finished_reason: reason },
        count,
      );
    }
    const { cache } = this.llm.engine.config;
    const { blockSize, numBlocks } = kvCache;
    text.gauge(
      'vllm:cache_config_info',
      'Information of the LLMEngine CacheConfig',
      {
        engine: '0',
        block_size: blockSize,
        enable_prefix_caching: cache.enablePrefixCaching ? 'True' : 'False',
        num_gpu_blocks: numBlocks,
      },
      1,
    );
  }
}

/** The engine's histogram with vLLM's buckets, which its own buckets include. */
function inSeconds({ upperBounds, counts, sum, count }: HistogramStats): Buckets {
  const cumulative = VLLM_TOKEN_BOUNDS.map((bound) =>
    counts.reduce((total, each, i) => (upperBounds[i] <= bound ? total + each : total), 0),
  );
  return { upperBounds: TOKEN, cumulative, sum: sum / 1000, count };
}

export function metricsText(models: readonly ServedModel[]): string {
  const text = new PrometheusText();
  for (const metrics of new Set(models.map((model) => model.metrics))) metrics.write(text);
  return text.toString();
}
