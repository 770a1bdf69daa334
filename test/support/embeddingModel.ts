/** The golden Qwen3 as a checkpoint of an embedding model. */
import { mkdir, readFile, symlink, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { folderWith } from './folder';

const weights = path.join(__dirname, '..', 'golden', 'checkpoints', 'qwen3', 'model.safetensors');

export const MODULES = [
  { idx: 0, name: '0', path: '', type: 'sentence_transformers.models.Transformer' },
  { idx: 1, name: '1', path: '1_Pooling', type: 'sentence_transformers.models.Pooling' },
  { idx: 2, name: '2', path: '2_Normalize', type: 'sentence_transformers.models.Normalize' },
];
const LAST_TOKEN = {
  word_embedding_dimension: 72,
  pooling_mode_cls_token: false,
  pooling_mode_mean_tokens: false,
  pooling_mode_lasttoken: true,
  include_prompt: true,
};

/** The golden Qwen3 as an embedding model. */
export async function embeddingModel({
  modules = MODULES,
  pooling = LAST_TOKEN,
  isAlone = false,
}: {
  modules?: unknown;
  pooling?: object;
  isAlone?: boolean;
} = {}): Promise<string> {
  const folder = await folderWith({
    'config.json': await readFile(path.join(path.dirname(weights), 'config.json'), 'utf8'),
    'modules.json': modules,
  });
  await mkdir(path.join(folder, '1_Pooling'));
  await writeFile(path.join(folder, '1_Pooling', 'config.json'), JSON.stringify(pooling));
  const own = path.join(folder, 'model.safetensors');
  if (isAlone) await writeFile(own, transformerAlone(await readFile(weights)));
  else await symlink(weights, own);
  return folder;
}

/** The file as AutoModel writes it: without `model.` in the names, and without a head. */
function transformerAlone(file: Buffer): Buffer {
  const length = Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.toString('utf8', 8, 8 + length)) as Record<string, unknown>;
  // The head's bytes stay, under a name of a head that is ignored, so that the file has no gap.
  const names = Object.entries(header).map(([name, entry]) => [
    name.replace(/^model\./, ''),
    entry,
  ]);
  const text = Buffer.from(JSON.stringify(Object.fromEntries(names)));
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([size, text, file.subarray(8 + length)]);
}

/** A tokenizer of single bytes that ends a text with '!', as Qwen3-Embedding's does with <|endoftext|>. */
export async function writeTokenizer(folder: string): Promise<void> {
  const file = path.join(__dirname, '..', 'tokenizer', 'byte-bpe', 'tokenizer.json');
  const tokenizer = JSON.parse(await readFile(file, 'utf8')) as { model: object };
  const single = [{ Sequence: { id: 'A', type_id: 0 } }, { SpecialToken: { id: '!', type_id: 0 } }];
  const pair = [...single, { Sequence: { id: 'B', type_id: 0 } }];
  const special = { '!': { id: '!', ids: [0], tokens: ['!'] } };
  const content = {
    ...tokenizer,
    model: { ...tokenizer.model, merges: [] },
    post_processor: { type: 'TemplateProcessing', single, pair, special_tokens: special },
  };
  await writeFile(path.join(folder, 'tokenizer.json'), JSON.stringify(content));
}
