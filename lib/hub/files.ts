/** Which of a repository's files a model needs. */

/** A file as the hub lists it. */
export interface HubFile {
  /** Path in the repository. */
  path: string;
  size: number;
  /** Name in the cache's blobs: the SHA-256 of a large file, else git's id of the blob (SHA-1). */
  id: string;
  /** How `id` is computed. */
  hash: 'sha256' | 'git';
}

/** Configuration, tokenizer and templates, at the top of the repository; modules.json is sentence-transformers'. */
const SMALL = new Set([
  'config.json',
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'tokenizer.model',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.json',
  'merges.txt',
  'chat_template.jinja',
  'chat_template.json',
  'preprocessor_config.json',
  'hf_quant_config.json',
  'modules.json',
]);

const TEMPLATE = /^additional_chat_templates\/[^/]+\.jinja$/;
const POOLING = /^[^/]+_Pooling\/config\.json$/;
const WEIGHTS = /^[^/]+\.safetensors(?:\.index\.json)?$/;
/** Weights by transformers' names; others in the same repository are copies in a maker's own format. */
const MODEL_WEIGHTS = /^model\b/;

/** The files of a checkpoint that this library reads, in the repository's order. */
export function filesOfModel<File extends { path: string }>(files: readonly File[]): File[] {
  const weights = files.filter((file) => WEIGHTS.test(file.path));
  const ours = weights.filter((file) => MODEL_WEIGHTS.test(file.path));
  const wanted = new Set(ours.length > 0 ? ours : weights);
  return files.filter(
    (file) =>
      SMALL.has(file.path) ||
      TEMPLATE.test(file.path) ||
      POOLING.test(file.path) ||
      wanted.has(file),
  );
}
