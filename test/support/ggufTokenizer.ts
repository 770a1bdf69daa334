/** Metadata of a GGUF file for a tokenizer.json, as llama.cpp's script writes them. */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import type { Value } from './ggufFile';

interface TokenizerJson {
  added_tokens: { id: number; content: string; special: boolean }[];
  model: {
    vocab: Record<string, number>;
    merges: (string | [string, string])[];
    byte_fallback: boolean;
    unk_token: string | null;
  };
}

const [NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE] = [1, 2, 3, 4, 5, 6];

/** `pre`: the name of the pre-tokenizer; null for SentencePiece. */
export function tokenizerMetadata(folder: string, pre: string | null): Record<string, Value> {
  const read = (name: string) =>
    JSON.parse(readFileSync(path.join(folder, name), 'utf8')) as unknown;
  const { model, added_tokens: added } = read('tokenizer.json') as TokenizerJson;
  const config = read('tokenizer_config.json') as Record<string, unknown>;
  const { vocab } = model;
  const size = Math.max(...Object.values(vocab), ...added.map(({ id }) => id)) + 1;
  const tokens = Array.from({ length: size }, (_, id) => `[PAD${id}]`);
  const types = new Array<number>(size).fill(UNUSED);
  for (const [token, id] of Object.entries(vocab)) {
    tokens[id] = token;
    types[id] = pre === null && /^<0x[\dA-F]{2}>$/.test(token) ? BYTE : NORMAL;
  }
  for (const { id, content, special } of added) {
    tokens[id] = content;
    types[id] = special ? CONTROL : USER_DEFINED;
    if (pre === null && content === model.unk_token) types[id] = UNKNOWN;
  }
  const ids: Record<string, Value> = {};
  for (const [key, name] of [
    ['bos', 'bos_token'],
    ['eos', 'eos_token'],
    ['padding', 'pad_token'],
    ['unknown', 'unk_token'],
  ]) {
    const token = config[name] as string | { content: string } | null | undefined;
    const content = typeof token === 'object' ? token?.content : token;
    if (content) ids[`tokenizer.ggml.${key}_token_id`] = { u32: tokens.indexOf(content) };
  }
  const templates = config.chat_template as string | { name: string; template: string }[];
  const named = Array.isArray(templates) ? templates : [{ name: 'default', template: templates }];
  for (const { name, template } of named) {
    const key = name === 'default' ? '' : `.${name}`;
    ids[`tokenizer.chat_template${key}`] = { text: template };
  }
  const merges = model.merges.map((pair) => (typeof pair === 'string' ? pair : pair.join(' ')));
  return {
    'tokenizer.ggml.model': { text: pre === null ? 'llama' : 'gpt2' },
    'tokenizer.ggml.tokens': { texts: tokens },
    'tokenizer.ggml.token_type': { i32s: types },
    ...ids,
    ...(pre === null
      ? { 'tokenizer.ggml.scores': { f32s: scoresOf(tokens, merges) } }
      : { 'tokenizer.ggml.pre': { text: pre }, 'tokenizer.ggml.merges': { texts: merges } }),
  };
}

/** SentencePiece's: less for each token that merges make later; of others the least. */
function scoresOf(tokens: readonly string[], merges: readonly string[]): number[] {
  const order = new Map<string, number>();
  for (const merge of merges) {
    const token = merge.split(' ').join('');
    if (!order.has(token)) order.set(token, order.size);
  }
  return tokens.map((token) => -(order.get(token) ?? 1e6));
}
