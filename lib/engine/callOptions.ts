/** Options of a call that reach the engine. */
import type { RequestOptions } from '../config/requestOptions';
import type { PoolingConfig } from '../config/uniprocConfig';
import type { PoolingParams } from '../contract/schedulerOutput';
import { InvalidRequestError } from '../errors';

export interface CallOptions extends RequestOptions {
  /** The call wants embeddings; omitted: generated tokens. */
  pooling?: PoolingParams;
}

/** Throws InvalidRequestError if the model does not do what the call wants. */
export function checkTask(model: PoolingConfig | null, { pooling }: CallOptions): void {
  if ((model !== null) === (pooling !== undefined)) return;
  throw new InvalidRequestError(
    model === null
      ? 'the model generates and has no embeddings; load an embedding model, such as Qwen/Qwen3-Embedding-0.6B'
      : 'the model makes embeddings and does not generate; call embed',
  );
}
