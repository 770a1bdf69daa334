/**
 * Reads special tokens from the files beside tokenizer.json and merges them as transformers 5 does
 * (PreTrainedTokenizerBase._from_pretrained, TokenizersBackend.__init__).
 */
import path from 'node:path';
import { z } from 'zod';
import { fileExists, readJsonObject } from '../config/jsonFile';
import { parseFields, show } from '../config/schema';
import { CheckpointError } from '../errors';

/** A token that is matched in a text before all other processing. */
export interface AddedToken {
  content: string;
  special: boolean;
  /** Matches only whole words. */
  singleWord: boolean;
  /** Absorbs the white space before it (lstrip), and after it (rstrip). */
  lstrip: boolean;
  rstrip: boolean;
  /** Matches the normalized text. */
  normalized: boolean;
}

/** Added tokens of the files beside tokenizer.json. */
export interface SpecialTokensConfig {
  /** Tokens by name: bos_token, ..., and a model's own such as image_token. */
  named: Readonly<Record<string, AddedToken>>;
  /** Special tokens without a name. */
  extra: readonly AddedToken[];
  /** With their ids, which only determine their order. */
  added: readonly (readonly [id: number, token: AddedToken])[];
}

const NAMES = [
  'bos_token',
  'eos_token',
  'unk_token',
  'sep_token',
  'pad_token',
  'cls_token',
  'mask_token',
] as const;

const token = z.union([
  z.string(),
  z.looseObject({
    content: z.string(),
    special: z.boolean().optional(),
    single_word: z.boolean().optional(),
    lstrip: z.boolean().optional(),
    rstrip: z.boolean().optional(),
    normalized: z.boolean().optional(),
  }),
]);
type TokenJson = z.output<typeof token>;

const tokenOrNull = () => token.nullish().describe('a string, an object with content, or null');
const tokens = () => z.array(token).nullish().describe('a list of tokens');

const fileSchema = z.looseObject({
  ...(Object.fromEntries(NAMES.map((name) => [name, tokenOrNull()])) as Record<
    (typeof NAMES)[number],
    ReturnType<typeof tokenOrNull>
  >),
  additional_special_tokens: tokens(),
  extra_special_tokens: z
    .union([z.array(token), z.record(z.string(), token)])
    .nullish()
    .describe('a list of tokens, or an object of tokens by name'),
  added_tokens_decoder: z
    .record(z.string().regex(/^\d+$/), token)
    .nullish()
    .describe('an object of tokens, each an object with content, by id'),
});
type TokensFile = z.output<typeof fileSchema>;

/** A string is a special token; an object has flags. Special tokens default to not normalized. */
function addedToken(json: TokenJson, special?: boolean): AddedToken {
  const fields = typeof json === 'string' ? { content: json, special: true } : json;
  const isSpecial = special ?? fields.special ?? false;
  return {
    content: fields.content,
    special: isSpecial,
    singleWord: fields.single_word ?? false,
    lstrip: fields.lstrip ?? false,
    rstrip: fields.rstrip ?? false,
    normalized: fields.normalized ?? !isSpecial,
  };
}

async function readTokensFile(file: string): Promise<TokensFile | null> {
  if (!(await fileExists(file))) return null;
  return parseFields(
    fileSchema,
    await readJsonObject(file),
    (message) => new CheckpointError(file, message),
  );
}

/** Reads added_tokens.json of old checkpoints: ids by token. */
async function readAddedTokensFile(file: string): Promise<[content: string, id: number][]> {
  if (!(await fileExists(file))) return [];
  return Object.entries(await readJsonObject(file)).map(([content, id]) => {
    if (Number.isInteger(id)) return [content, id as number];
    throw new CheckpointError(
      file,
      `the id of ${show(content)} is ${show(id)}; it must be an integer`,
    );
  });
}

/** Named tokens: transformers' names and any other field that ends in _token. */
function namedTokens(file: TokensFile): Record<string, TokenJson> {
  const named: Record<string, TokenJson> = {};
  for (const [name, value] of Object.entries(file)) {
    const isName = (NAMES as readonly string[]).includes(name);
    if (isName ? value : name.endsWith('_token') && token.safeParse(value).success) {
      named[name] = value as TokenJson;
    }
  }
  const extra = file.extra_special_tokens;
  return extra && !Array.isArray(extra) ? { ...named, ...extra } : named;
}

function extraTokens(file: TokensFile): readonly TokenJson[] {
  const { extra_special_tokens: extra, additional_special_tokens: additional } = file;
  return (Array.isArray(extra) ? extra : null) ?? additional ?? [];
}

/**
 * Reads tokenizer_config.json (returned as `config`), special_tokens_map.json and added_tokens.json
 * in `folder`, if present. Throws CheckpointError.
 */
export async function readSpecialTokens(
  folder: string,
): Promise<{ config: Record<string, unknown>; tokens: SpecialTokensConfig }> {
  const config = (await readTokensFile(path.join(folder, 'tokenizer_config.json'))) ?? {};
  const { added_tokens_decoder: decoder } = config;
  let named = namedTokens(config);
  let extra = extraTokens(config);
  const added: [number, AddedToken][] = [];
  if (decoder) {
    for (const [id, json] of Object.entries(decoder)) added.push([Number(id), addedToken(json)]);
  } else {
    // The two other files predate added_tokens_decoder and apply only without it.
    const map = await readTokensFile(path.join(folder, 'special_tokens_map.json'));
    if (map !== null) {
      const kept = Object.entries(named).filter(([name]) => map[name] !== null);
      named = { ...Object.fromEntries(kept), ...namedTokens(map) };
      const listed = Array.isArray(map.extra_special_tokens) ? map.extra_special_tokens : null;
      if (listed !== null) extra = [...extra, ...listed];
      else if (extra.length === 0) extra = map.additional_special_tokens ?? [];
    }
    const special = new Set(
      [...Object.values(named), ...extra].map((json) => addedToken(json, true).content),
    );
    const old = await readAddedTokensFile(path.join(folder, 'added_tokens.json'));
    for (const [content, id] of old) {
      added.push([id, addedToken({ content }, special.has(content))]);
    }
  }
  return {
    config,
    tokens: {
      named: Object.fromEntries(
        Object.entries(named).map(([name, json]) => [name, addedToken(json, true)]),
      ),
      extra: extra.map((json) => addedToken(json, true)),
      added: added.sort(([a], [b]) => a - b),
    },
  };
}

/** An entry of tokenizer.json's added_tokens. */
export interface AddedTokenJson {
  [field: string]: unknown;
  id: number;
  content: string;
  special: boolean;
  single_word: boolean;
  lstrip: boolean;
  rstrip: boolean;
  normalized: boolean;
}

/** The tokens to add to a tokenizer.json that has `present`, in order. */
export function tokensToAdd(
  { named, extra, added }: SpecialTokensConfig,
  present: readonly AddedTokenJson[],
): AddedToken[] {
  const names = new Set(Object.values(named).map(({ content }) => content));
  const byContent = new Map<string, AddedToken>();
  for (const json of present) byContent.set(json.content, addedToken(json));
  const toAdd: AddedToken[] = [];
  const add = (addition: AddedToken) => {
    const special = addition.special || names.has(addition.content);
    const before = byContent.get(addition.content);
    const flags = ['singleWord', 'lstrip', 'rstrip', 'normalized'] as const;
    if (before?.special === special && flags.every((flag) => before[flag] === addition[flag])) {
      return;
    }
    byContent.set(addition.content, { ...addition, special });
    toAdd.push({ ...addition, special });
  };
  for (const [, token] of added) add(token);
  // A name makes an existing token special.
  for (const token of [...byContent.values()]) if (names.has(token.content)) add(token);
  for (const token of [...Object.values(named), ...extra]) {
    if (!byContent.has(token.content)) add(token);
  }
  return toAdd;
}
