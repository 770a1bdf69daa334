/** Folders with the JSON files a test wants to have read. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { UniprocError } from '../../lib/errors';

const folders: string[] = [];

afterAll(async () => {
  await Promise.all(folders.map((folder) => rm(folder, { recursive: true })));
});

/** A new folder that holds `files`, each by its text or by the value its JSON is to have. */
export async function folderWith(files: Record<string, unknown>): Promise<string> {
  const folder = await mkdtemp(path.join(tmpdir(), 'uniproc-config-'));
  folders.push(folder);
  for (const [name, content] of Object.entries(files)) {
    const text = typeof content === 'string' ? content : JSON.stringify(content);
    await writeFile(path.join(folder, name), text);
  }
  return folder;
}

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
