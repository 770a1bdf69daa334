/** End-of-sequence ids: the union of three checkpoint files, or the user's option. */
import { writeFile } from 'node:fs/promises';
import path from 'node:path';
import { createUniprocConfig, type EngineArgs } from '../../lib/config/engineArgs';
import { folderWith } from '../support/folder';
import { LLAMA, rejection } from '../model/checkpointFolder';

type Files = Record<string, unknown>;

/** A Llama with 320 tokens; eos_token_id is 2 unless `files` has another config.json. */
const folderOf = (files: Files) =>
  folderWith({ 'config.json': { ...LLAMA, eos_token_id: 2 }, ...files });

async function eosOf(files: Files, args: EngineArgs = {}): Promise<number[]> {
  const config = await createUniprocConfig({ model: await folderOf(files), ...args });
  return [...config.model.transformer.eosTokenIds].sort((a, b) => a - b);
}

async function complaint(files: Files, args: EngineArgs = {}) {
  return rejection(createUniprocConfig({ model: await folderOf(files), ...args }));
}

const config = (eos?: unknown) => ({ 'config.json': { ...LLAMA, eos_token_id: eos } });
const generation = (eos: unknown) => ({ 'generation_config.json': { eos_token_id: eos } });
const tokenizerConfig = (eos: unknown, others: object = {}) => ({
  'tokenizer_config.json': { eos_token: eos, ...others },
});
const tokenizer = (content: string, id: number) => ({
  'tokenizer.json': {
    added_tokens: [
      { id: 0, content: '<s>' },
      { id, content, special: true },
    ],
  },
});
/** <|im_end|> is 9. */
const chat = { ...tokenizerConfig('<|im_end|>'), ...tokenizer('<|im_end|>', 9) };

describe('the ends of sequence', () => {
  it.each<[string, Files, number[]]>([
    ['config.json alone', {}, [2]],
    ['generation_config.json and config.json', generation([7, 8]), [2, 7, 8]],
    ['all three', { ...generation(7), ...chat }, [2, 7, 9]],
    ['the same in all three', { ...config(9), ...generation([9]), ...chat }, [9]],
    ['Llama 3 Instruct', { ...config([5, 6]), ...generation([5, 6, 9]), ...chat }, [5, 6, 9]],
    ['Qwen 2 Instruct: the tokenizer alone knows the end of a turn', chat, [2, 9]],
    ['a config.json with null', { ...config(null), ...chat }, [9]],
    ['a config.json with null and no others', config(null), []],
    // LlamaConfig's default is 2, which may be a word in this vocabulary.
    ['a config.json without, and a tokenizer', { 'config.json': LLAMA, ...chat }, [9]],
    [
      'a config.json without, and a generation config',
      { 'config.json': LLAMA, ...generation(7) },
      [7],
    ],
    ['no file that names one', { 'config.json': LLAMA }, [2]],
    ['a generation_config.json with null', generation(null), [2]],
  ])('are those of %s', async (_, files, expected) => {
    expect(await eosOf(files)).toEqual(expected);
  });

  it.each<[string, Files, number[]]>([
    [
      'an object',
      { ...chat, ...tokenizerConfig({ content: '<|im_end|>', lstrip: false }) },
      [2, 9],
    ],
    ['null', { ...chat, ...tokenizerConfig(null) }, [2]],
    ['missing', { ...chat, 'tokenizer_config.json': {} }, [2]],
    [
      'named by added_tokens_decoder, without a tokenizer.json',
      tokenizerConfig('<eos>', {
        added_tokens_decoder: { 1: { content: 'a' }, 4: { content: '<eos>' } },
      }),
      [2, 4],
    ],
    [
      'a word of a vocabulary',
      { ...tokenizerConfig('</s>'), 'tokenizer.json': { model: { vocab: { a: 3, '</s>': 5 } } } },
      [2, 5],
    ],
    [
      'a piece of a Unigram vocabulary',
      {
        ...tokenizerConfig('</s>'),
        'tokenizer.json': {
          model: {
            vocab: [
              ['a', 0],
              ['</s>', -1.5],
            ],
          },
        },
      },
      [1, 2],
    ],
    [
      'in special_tokens_map.json, as older checkpoints have it',
      { 'special_tokens_map.json': { eos_token: '<|im_end|>' }, ...tokenizer('<|im_end|>', 9) },
      [2, 9],
    ],
    ['unknown to the tokenizer', { ...tokenizerConfig('<none>'), ...tokenizer('<eos>', 9) }, [2]],
    [
      'a name of Object.prototype',
      { ...tokenizerConfig('constructor'), 'tokenizer.json': { model: { vocab: {} } } },
      [2],
    ],
    ['without an id', tokenizerConfig('<eos>'), [2]],
    ['beyond the vocabulary', { ...tokenizerConfig('<eos>'), ...tokenizer('<eos>', 320) }, [2]],
    [
      'in files with a byte order mark',
      {
        'tokenizer_config.json': '\ufeff{"eos_token": "<eos>", "model_max_length": Infinity}',
        'tokenizer.json': '\ufeff{"added_tokens": [{"id": 9, "content": "<eos>"}], "x": NaN}',
      },
      [2, 9],
    ],
  ])('come from a tokenizer with eos_token %s', async (_, files, expected) => {
    expect(await eosOf(files)).toEqual(expected);
    expect(await eosOf(files, { skipTokenizerInit: true })).toEqual(expected);
  });

  it.each<[string, object]>([
    ['an added token', { added_tokens: [{ id: 9, content: '<eos>' }], model: { vocab: {} } }],
    ['a word', { added_tokens: [], model: { vocab: { '<eos>': 9 } } }],
    [
      'a Unigram piece',
      { model: { vocab: [...new Array<[string, number]>(9).fill(['a', 0]), ['<eos>', 0]] } },
    ],
  ])('are found in a large tokenizer.json, as %s', async (_, json) => {
    const padded = { ...json, padding: 'x'.repeat(2 ** 19) };
    const files = { ...tokenizerConfig('<eos>'), 'tokenizer.json': padded };
    expect(await eosOf(files)).toEqual([2, 9]);
    const marked = `\ufeff${JSON.stringify(padded).slice(0, -1)}, "n": NaN}`;
    expect(await eosOf({ ...files, 'tokenizer.json': marked })).toEqual([2, 9]);
  });

  it.each([[[7, 8]], [[0]], [[]]])('are %j where the user says so', async (eosTokenIds) => {
    expect(await eosOf({ ...generation(5), ...chat }, { eosTokenIds })).toEqual(eosTokenIds);
  });

  it('are those of the user, without reading the tokenizer', async () => {
    const files = { 'tokenizer_config.json': 'no JSON' };
    expect(await eosOf(files, { eosTokenIds: [7] })).toEqual([7]);
  });

  it('must be in the vocabulary', async () => {
    const error = await complaint({}, { eosTokenIds: [1, 320] });
    expect(error).toMatchObject({ code: 'CONFIG_INVALID' });
    expect(error.message).toMatch(/eosTokenIds has 320; the model in .* has token ids 0 to 319/);
  });

  it.each<[unknown]>([[7], ['7'], [[-1]], [[1.5]]])('cannot be %j', async (eosTokenIds) => {
    const error = await complaint({}, { eosTokenIds } as EngineArgs);
    expect(error).toMatchObject({ code: 'CONFIG_INVALID' });
    expect(error.message).toContain('eosTokenIds');
  });

  it.each<[string, Files, string]>([
    ['tokenizer_config.json', tokenizerConfig(7), 'eos_token is 7; it must be a string'],
    ['special_tokens_map.json', { 'special_tokens_map.json': { eos_token: {} } }, 'eos_token'],
    ['tokenizer.json', { ...tokenizerConfig('<eos>'), 'tokenizer.json': '{' }, 'not JSON'],
  ])('are refused when %s is invalid', async (name, files, message) => {
    const error = await complaint(files);
    expect(error).toMatchObject({ code: 'CHECKPOINT_INVALID' });
    expect(error.message).toContain(name);
    expect(error.message).toContain(message);
  });

  it('are refused when a large tokenizer.json is damaged', async () => {
    const folder = await folderOf(tokenizerConfig('<eos>'));
    const file = path.join(folder, 'tokenizer.json');
    await writeFile(file, `{"a": "${'x'.repeat(2 ** 19)}"`);
    const error = await rejection(createUniprocConfig({ model: folder }));
    expect(error).toMatchObject({ code: 'CHECKPOINT_INVALID', file });
    expect(error.message).toContain('not JSON: it ends');
  });
});
