/** Helpers of the tests of config.json. */
import { UniprocError } from '../../lib/errors';

/** The error that `promise` rejects with. */
export async function rejection(promise: Promise<unknown>): Promise<UniprocError> {
  const error: unknown = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(UniprocError);
  return error as UniprocError;
}

/** A small Llama. */
export const LLAMA = {
  architectures: ['LlamaForCausalLM'],
  vocab_size: 320,
  hidden_size: 64,
  intermediate_size: 96,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  max_position_embeddings: 512,
};
