/**
 * The id of a tokenizer's eos_token, without the tokenizer: a chat model's is the end of its turn,
 * which config.json often does not name.
 */
import { stat } from 'node:fs/promises';
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import { z } from 'zod';
import { CheckpointError } from '../errors';
import { fileExists, readJsonObject } from './jsonFile';
import { parseFields } from './schema';

const eosSchema = z.looseObject({
  eos_token: z
    .union([z.string(), z.looseObject({ content: z.string() })])
    .nullish()
    .describe('a string, an object with content, or null'),
});

/** Bytes of a tokenizer.json beyond which parsing it would hold the event loop. */
const MAX_INLINE_BYTES = 256 * 1024;

/** Parses workerData.file and answers with what of it tells the id of workerData.content. */
const PARSER = `
  const { parentPort, workerData: { file, content } } = require('node:worker_threads');
  const text = require('node:fs').readFileSync(file, 'utf8');
  const { added_tokens, model } = JSON.parse(text.replace(/^\\ufeff/, ''));
  const vocab = model?.vocab;
  const id = Array.isArray(vocab) ? vocab.findIndex((entry) => entry?.[0] === content) : vocab?.[content];
  parentPort.postMessage({ added_tokens, model: { vocab: { [content]: id } } });
`;

/**
 * What tokenizer_config.json of `folder` (or the older special_tokens_map.json) calls eos_token, as
 * an id; null where it has none, or where no file tells the id. Throws CheckpointError.
 */
export async function readTokenizerEosId(folder: string): Promise<number | null> {
  const config = await readIfThere(path.join(folder, 'tokenizer_config.json'));
  const content = config?.eos_token === undefined ? undefined : eosIn(folder, config);
  const eos = content === undefined ? await readOldEos(folder) : content;
  if (eos === null) return null;
  const id = idInDecoder(config?.added_tokens_decoder, eos);
  if (id !== null) return id;
  const file = path.join(folder, 'tokenizer.json');
  return (await fileExists(file)) ? idInTokenizer(await readTokenizer(file, eos), eos) : null;
}

async function readIfThere(file: string): Promise<Record<string, unknown> | null> {
  return (await fileExists(file)) ? readJsonObject(file) : null;
}

function eosIn(
  folder: string,
  json: Record<string, unknown>,
  name = 'tokenizer_config.json',
): string | null {
  const { eos_token: eos } = parseFields(
    eosSchema,
    json,
    (message) => new CheckpointError(path.join(folder, name), message),
  );
  return (typeof eos === 'object' ? eos?.content : eos) ?? null;
}

async function readOldEos(folder: string): Promise<string | null> {
  const name = 'special_tokens_map.json';
  const json = await readIfThere(path.join(folder, name));
  return json && eosIn(folder, json, name);
}

/** `added_tokens_decoder` has the added tokens by their ids. */
function idInDecoder(decoder: unknown, content: string): number | null {
  const entries = Object.entries((decoder ?? {}) as Record<string, unknown>);
  const found = entries.find(
    ([, token]) => (token as { content?: unknown } | null)?.content === content,
  );
  return found ? toId(Number(found[0])) : null;
}

/** A tokenizer.json, or what of it `idInTokenizer` needs. */
async function readTokenizer(file: string, content: string): Promise<Record<string, unknown>> {
  const { size } = await stat(file);
  const parsed = size > MAX_INLINE_BYTES ? await parseElsewhere(file, content) : null;
  // The errors of the plain way say where the file is wrong.
  return parsed ?? readJsonObject(file);
}

/** null when the file is none that JSON.parse takes. */
async function parseElsewhere(
  file: string,
  content: string,
): Promise<Record<string, unknown> | null> {
  // Without the process's own flags: --input-type=module would be one that PARSER cannot do with.
  const worker = new Worker(PARSER, { eval: true, execArgv: [], workerData: { file, content } });
  return new Promise((resolve) => {
    let answer: Record<string, unknown> | null = null;
    worker.on('message', (message: Record<string, unknown>) => (answer = message));
    worker.on('error', () => {}); // 'exit' follows
    worker.on('exit', () => resolve(answer));
  });
}

/** Among the added tokens, or in the model's vocabulary: an object of ids, or Unigram's list. */
function idInTokenizer(json: Record<string, unknown>, content: string): number | null {
  const { added_tokens: added, model } = json;
  const tokens = (Array.isArray(added) ? added : []) as ({
    id?: unknown;
    content?: unknown;
  } | null)[];
  const token = tokens.find((each) => each?.content === content);
  if (token) return toId(token.id);
  const vocab = (model as { vocab?: unknown } | null | undefined)?.vocab;
  if (Array.isArray(vocab)) {
    return toId(vocab.findIndex((entry) => (entry as unknown[] | null)?.[0] === content));
  }
  if (typeof vocab !== 'object' || vocab === null || !Object.hasOwn(vocab, content)) return null;
  return toId((vocab as Record<string, unknown>)[content]);
}

function toId(value: unknown): number | null {
  return Number.isSafeInteger(value) && (value as number) >= 0 ? (value as number) : null;
}
