import path from 'node:path';
import { readGenerationConfig } from '../../lib/config/generationConfig';
import { folderWith } from '../support/folder';
import { rejection } from '../model/checkpointFolder';

const read = async (json: unknown) =>
  readGenerationConfig(await folderWith({ 'generation_config.json': json }), 100);

describe('readGenerationConfig', () => {
  it('reads the sampling values, also without do_sample', async () => {
    const json = {
      do_sample: false,
      temperature: 0.6,
      top_p: 0.9,
      top_k: 20,
      min_p: 0.05,
      repetition_penalty: 1.05,
      max_new_tokens: 512,
      eos_token_id: [7, 8],
      transformers_version: '4.51.0',
    };
    expect(await read(json)).toEqual({
      defaults: {
        temperature: 0.6,
        topP: 0.9,
        topK: 20,
        minP: 0.05,
        repetitionPenalty: 1.05,
        maxTokens: 512,
      },
      eosTokenIds: [7, 8],
    });
  });

  it('omits missing and null values', async () => {
    expect(await read({ temperature: null, top_p: 0.8 })).toEqual({
      defaults: { topP: 0.8 },
      eosTokenIds: null,
    });
  });

  it('reads one end of sequence as a list of one', async () => {
    expect((await read({ eos_token_id: 0 })).eosTokenIds).toEqual([0]);
  });

  it('has no defaults without the file', async () => {
    expect(await readGenerationConfig(await folderWith({}), 100)).toEqual({
      defaults: {},
      eosTokenIds: null,
    });
  });

  it.each([
    [{ temperature: -1 }, 'temperature is -1; it must be a number of at least 0'],
    [{ temperature: '1' }, "temperature is '1'"],
    [{ top_p: 0 }, 'top_p is 0'],
    [{ top_k: 1.5 }, 'top_k is 1.5'],
    // Every request with the default would be refused.
    [{ top_k: 2 ** 31 }, 'topK is 2147483648'],
    [{ min_p: 2 }, 'min_p is 2'],
    [{ repetition_penalty: 0 }, 'repetition_penalty is 0'],
    [{ max_new_tokens: 0 }, 'max_new_tokens is 0'],
    [{ eos_token_id: ['2'] }, "eos_token_id is [ '2' ]"],
    [{ eos_token_id: [2, 100] }, 'eos_token_id is 100; it must be below vocab_size, 100'],
    ['{', 'not JSON'],
  ])('refuses %j, naming the file', async (json, message) => {
    const error = await rejection(read(json));
    expect(error.code).toBe('CHECKPOINT_INVALID');
    expect(path.basename((error as { file?: string }).file ?? '')).toBe('generation_config.json');
    expect(error.message).toContain(message);
  });
});
