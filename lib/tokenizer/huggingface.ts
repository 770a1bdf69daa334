/**
 * Hugging Face's tokenizers and jinja, as far as they are used here. Both come as CommonJS too, but
 * their types are for ES modules only.
 */

/* eslint-disable @typescript-eslint/no-require-imports -- a static import would ask for ES modules */

/** tokenizer.json at work. */
export interface HuggingFaceTokenizer {
  encode(text: string, options: { add_special_tokens: boolean }): { ids: number[] };
  /** `ids` must not be empty, nor have one without a token. */
  decode(ids: number[], options: { clean_up_tokenization_spaces: boolean }): string;
  token_to_id(token: string): number | undefined;
  id_to_token(id: number): string | undefined;
  get_vocab(): Map<string, number>;
  get_added_tokens_decoder(): Map<number, { special: boolean }>;
}

/** `json`: tokenizer.json. `config`: the names' tokens of tokenizer_config.json. */
export const { Tokenizer: HuggingFaceTokenizer } = require('@huggingface/tokenizers') as {
  Tokenizer: new (json: object, config: object) => HuggingFaceTokenizer;
};

/** A parsed template. */
export interface Template {
  render(variables: Record<string, unknown>): string;
}

/** The constructor throws when `source` is no template. */
export const { Template } = require('@huggingface/jinja') as {
  Template: new (source: string) => Template;
};
