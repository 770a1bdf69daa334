/**
 * Reads the id of a tokenizer's eos_token without loading the tokenizer. A chat model's eos_token ends
 * its turn and is often missing in config.json.
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

/** A larger tokenizer.json is parsed in a worker thread, so that it does not block the event loop. */
const MAX_INLINE_BYTES = 256 * 1024;

/** Parses workerData.file and posts the parts that give the id of workerData.content. */
const PARSER = `
  const { parentPort, workerData: { file, content } } = require('node:worker_threads');
  const text = require('node:fs').readFileSync(file, 'utf8');
  const { added_tokens, model } = JSON.parse(text.replace(/^\\ufeff/, ''));
  const vocab = model?.vocab;
  const id = Array.isArray(vocab) ? vocab.findIndex((entry) => entry?.[0] === content) : vocab?.[content];
  parentPort.postMessage({ added_tokens, model: { vocab: { [content]: id } } });
`;

/**
 * The id of eos_token in the folder's tokenizer_config.json (or the older special_tokens_map.json);
 * null without an eos_token or if no file has its id. Throws CheckpointError.
 */
export async function readTokenizerEosId(folder: string): Promise<number | null> {
  const config = await readIfExists(path.join(folder, 'tokenizer_config.json'));
  const content = config?.eos_token === undefined ? undefined : eosIn(folder, config);
  const eos = content === undefined ? await readOldEos(folder) : content;
  if (eos === null) return null;
  const id = idInDecoder(config?.added_tokens_decoder, eos);
  if (id !== null) return id;
  const file = path.join(folder, 'tokenizer.json');
  return (await fileExists(file)) ? idInTokenizer(await readTokenizer(file, eos), eos) : null;
}

async function readIfExists(file: string): Promise<Record<string, unknown> | null> {
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
  const json = await readIfExists(path.join(folder, name));
  return json && eosIn(folder, json, name);
}

/** Looks a token up in `added_tokens_decoder`, which maps ids to tokens. */
function idInDecoder(decoder: unknown, content: string): number | null {
  const entries = Object.entries((decoder ?? {}) as Record<string, unknown>);
  const found = entries.find(
    ([, token]) => (token as { content?: unknown } | null)?.content === content,
  );
  return found ? toId(Number(found[0])) : null;
}

/** Reads a tokenizer.json, or the parts of it that `idInTokenizer` needs. */
async function readTokenizer(file: string, content: string): Promise<Record<string, unknown>> {
  const { size } = await stat(file);
  const parsed = size > MAX_INLINE_BYTES ? await parseInThread(file, content) : null;
  // readJsonObject's errors give line and column.
  return parsed ?? readJsonObject(file);
}

/** null if JSON.parse rejects the file. */
async function parseInThread(
  file: string,
  content: string,
): Promise<Record<string, unknown> | null> {
  // Without the process's flags: --input-type=module would break PARSER.
  const worker = new Worker(PARSER, { eval: true, execArgv: [], workerData: { file, content } });
  return new Promise((resolve) => {
    let answer: Record<string, unknown> | null = null;
    worker.on('message', (message: Record<string, unknown>) => (answer = message));
    worker.on('error', () => {}); // 'exit' follows
    worker.on('exit', () => resolve(answer));
  });
}

/** Looks a token up in the added tokens and the vocabulary: an object of ids, or Unigram's list. */
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
