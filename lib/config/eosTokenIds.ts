/** The token ids that end a text, by the checkpoint's files. */
import type { GenerationConfig } from './generationConfig';
import { readTokenizerEosId } from './tokenizerEos';
import type { TransformerConfig } from './uniprocConfig';

/**
 * All ids that the files name. The family's default, which may be a word in another vocabulary, is
 * used only if they name none. A tokenizer's id beyond the vocabulary is ignored.
 */
export async function readEosTokenIds(
  folder: string,
  generation: GenerationConfig,
  transformer: TransformerConfig,
  namesEos: boolean,
): Promise<number[]> {
  const tokenizerEosId = await readTokenizerEosId(folder);
  const named = [
    ...(generation.eosTokenIds ?? []),
    ...(namesEos ? transformer.eosTokenIds : []),
    ...(tokenizerEosId === null || tokenizerEosId >= transformer.spec.vocabSize
      ? []
      : [tokenizerEosId]),
  ];
  return named.length > 0 || namesEos ? named : transformer.eosTokenIds;
}
