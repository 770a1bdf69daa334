/** POST /v1/embeddings and /pooling, as vLLM has them. */
import type { EmbeddingOutput } from '../embedding';
import { tokenizingOptionsOf } from './chatFields';
import { promptsOf } from './completionFields';
import type { Exchange } from './exchange';
import { notSupported } from './httpError';
import { jsonInPieces, LazyList } from './jsonResponse';
import { refuseFields } from './samplingFields';
import { usageBody } from './usage';

/** Chats as inputs, and stored prompts; refused by name. */
const REFUSED = ['messages', 'prompt_embeds', 'stream'];

const FIELDS: readonly string[] = [
  ...REFUSED,
  'model',
  'input',
  'encoding_format',
  'dimensions',
  'normalize',
  'use_activation',
  'priority',
  'cache_salt',
  'truncate_prompt_tokens',
  'add_special_tokens',
  'user',
];
export const EMBEDDING_FIELDS = FIELDS;
export const POOLING_FIELDS: readonly string[] = [...FIELDS, 'task'];

/** Numbers written in one turn of the event loop. */
const PIECE_NUMBERS = 2 ** 14;

interface Dialect {
  id: string;
  object: string;
  /** The field with the numbers. */
  field: string;
}

export const embeddings = (exchange: Exchange): Promise<Response> =>
  embed(exchange, { id: 'embd', object: 'embedding', field: 'embedding' });

export function pooling(exchange: Exchange): Promise<Response> {
  const { task } = exchange.fields;
  if (task != null && task !== 'embed') {
    throw notSupported('task', "must be 'embed', the only one that is supported");
  }
  return embed(exchange, { id: 'pool', object: 'pooling', field: 'data' });
}

async function embed(exchange: Exchange, { id, object, field }: Dialect): Promise<Response> {
  const { fields, model, callOptions } = exchange;
  refuseFields(fields, REFUSED);
  const encode = encodingOf(fields.encoding_format ?? 'float');
  const normalize = fields.normalize ?? fields.use_activation;
  const outputs = await model.llm.embed(promptsOf(fields, 'input'), {
    ...tokenizingOptionsOf(fields),
    ...callOptions,
    // Checked by `embed`.
    ...(fields.dimensions != null && { dimensions: fields.dimensions as number }),
    ...(normalize != null && { normalize: normalize as boolean }),
    progress: false,
  });
  const sum = (count: (output: EmbeddingOutput) => number) =>
    outputs.reduce((total, output) => total + count(output), 0);
  const width = outputs[0]?.embedding.length ?? 1;
  const data = new LazyList(
    outputs.length,
    (start, end) =>
      outputs.slice(start, end).map(({ embedding }, i) => ({
        index: start + i,
        object,
        [field]: encode(embedding),
      })),
    Math.max(1, Math.floor(PIECE_NUMBERS / width)),
  );
  return jsonInPieces({
    id: `${id}-${exchange.id}`,
    object: 'list',
    created: exchange.created,
    model: model.name,
    data,
    usage: usageBody(
      sum(({ promptTokenIds }) => promptTokenIds.length),
      0,
      sum(({ numCachedTokens }) => numCachedTokens),
    ),
  });
}

/** How an embedding is written: numbers, or the base64 of their bytes, float32 in little-endian order. */
function encodingOf(format: unknown): (embedding: Float32Array) => unknown {
  if (format === 'float') return (embedding) => Array.from(embedding);
  if (format === 'base64') {
    return ({ buffer, byteOffset, byteLength }) =>
      Buffer.from(buffer, byteOffset, byteLength).toString('base64');
  }
  throw notSupported('encoding_format', "must be 'float' or 'base64'");
}
