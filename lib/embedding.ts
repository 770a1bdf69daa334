/** Embeddings of texts, by an embedding model. */
import { z } from 'zod';
import type { GenerateOptions } from './config/requestOptions';
import { SamplingParams } from './config/samplingParams';
import { parseFields } from './config/schema';
import { readingOf, snapshotFields } from './config/snapshot';
import type { UniprocConfig } from './config/uniprocConfig';
import type { PoolingParams } from './contract/schedulerOutput';
import { InvalidRequestError } from './errors';
import type { RequestMetrics, RequestOutput } from './requestOutput';

/** What embeddings of a call are like; all are optional. */
export interface EmbeddingOptions {
  /**
   * The first elements, which are kept and scaled: for models trained so (Matryoshka, Kusupati et al. 2022).
   * @defaultValue all, the model's hidden size
   */
  dimensions?: number;
  /**
   * Scale embeddings to a Euclidean norm of 1.
   * @defaultValue as the checkpoint's modules.json says
   */
  normalize?: boolean;
}

export interface EmbedOptions extends GenerateOptions, EmbeddingOptions {}

/** A prompt's embedding (vLLM's EmbeddingRequestOutput). */
export interface EmbeddingOutput {
  requestId: string;
  /** As text, when it was given as text. */
  prompt: string | null;
  promptTokenIds: number[];
  /** [dimensions] */
  embedding: Float32Array;
  /** Prompt tokens found in the prefix cache. */
  numCachedTokens: number;
  metrics: RequestMetrics;
}

/** Embeddings sample nothing: the engine ends a request with its prompt. */
export const EMBEDDING_PARAMS = new SamplingParams({
  maxTokens: 1,
  temperature: 0,
  ignoreEos: true,
  detokenize: false,
});

const schema = z.object({
  dimensions: z.int().min(1).optional().describe('an integer from 1'),
  normalize: z.boolean().optional().describe('true or false'),
} satisfies Record<keyof EmbeddingOptions, z.ZodType>);

/**
 * The options of `embed` apart: how embeddings are made, and those of every call. Throws
 * InvalidRequestError.
 */
export function takeEmbedOptions(
  options: EmbedOptions,
  { model: { transformer } }: Pick<UniprocConfig, 'model'>,
): { pooling: PoolingParams; rest: GenerateOptions } {
  const names = Object.keys(schema.shape);
  const given = readingOf('options', () => snapshotFields(options, names)) as EmbedOptions;
  const { dimensions, normalize } = parseFields(
    schema,
    given,
    (message) => new InvalidRequestError(`options: ${message}`),
  );
  const { hiddenSize } = transformer.spec;
  if (dimensions !== undefined && dimensions > hiddenSize) {
    throw new InvalidRequestError(
      `options: dimensions is ${dimensions}; the model's embeddings have ${hiddenSize}`,
    );
  }
  const rest = Object.fromEntries(
    Object.entries(given).filter(([name]) => !names.includes(name)),
  ) as GenerateOptions;
  const size = dimensions ?? hiddenSize;
  return {
    pooling: { size, normalize: normalize ?? transformer.pooling?.normalize ?? true },
    rest,
  };
}

export function embeddingOutput({ outputs, ...output }: RequestOutput): EmbeddingOutput {
  const { requestId, prompt, promptTokenIds, numCachedTokens, metrics } = output;
  const embedding = outputs[0].embedding as Float32Array;
  return { requestId, prompt, promptTokenIds, embedding, numCachedTokens, metrics };
}
