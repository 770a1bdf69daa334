/** A model's configuration from metadata that say it in more than one way. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { readGgufConfig } from '../../lib/model/gguf/config';
import type { Value } from '../support/ggufFile';
import { ggufOf } from '../support/ggufModel';
import { quantizedModel } from '../support/ggufQuantized';

const folder = mkdtempSync(path.join(os.tmpdir(), 'uniproc-test-'));
afterAll(() => rmSync(folder, { recursive: true }));

function configWith(metadata: Record<string, Value>) {
  const file = path.join(folder, 'model.gguf');
  writeFileSync(file, quantizedModel(() => 'q8_0', { metadata }).file);
  return readGgufConfig(file);
}

const UNSCALED = { type: 'default' };
const BY_4 = { type: 'linear', factor: 4 };

describe('the configuration of a GGUF file', () => {
  it.each<[string, Record<string, Value>, object]>([
    ['no factor', {}, UNSCALED],
    ['a factor without a type', { 'llama.rope.scaling.factor': { f32: 4 } }, BY_4],
    ['the old key of a factor', { 'llama.rope.scale_linear': { f32: 4 } }, BY_4],
    ['a factor of 0', { 'llama.rope.scaling.factor': { f32: 0 } }, UNSCALED],
    [
      'a factor and the type none',
      { 'llama.rope.scaling.factor': { f32: 4 }, 'llama.rope.scaling.type': { text: 'none' } },
      UNSCALED,
    ],
  ])('with %s scales positions as llama.cpp does', async (_, metadata, scaling) => {
    const { spec } = await configWith(metadata);
    expect(spec.ropes[0].scaling).toEqual(scaling);
  });

  it.each<[string, Value, string]>([
    ['attention.head_count', { u32: 0 }, 'is 0; it must be an integer from 1'],
    ['attention.head_count_kv', { f32: 1.5 }, 'is 1.5; it must be an integer from 1'],
    ['attention.key_length', { i32: -4 }, 'is -4; it must be an integer from 1'],
    ['block_count', { u32: 0 }, 'is 0; it must be an integer from 1'],
    ['nextn_predict_layers', { u32: 2 }, 'is 2; it must be less than block_count, 2'],
    ['context_length', { u32: 0 }, 'is 0; it must be an integer from 1'],
    ['rope.freq_base', { f32: NaN }, 'is NaN; it must be a number above 0'],
    ['attention.layer_norm_rms_epsilon', { f32: 0 }, 'is 0; it must be a number above 0'],
  ])('with another %s is refused by the key', async (key, value, message) => {
    const reading = configWith({ [`llama.${key}`]: value });
    await expect(reading).rejects.toThrow(`metadata 'llama.${key}' ${message}`);
  });

  it('of llama with a sliding window has it in every layer', async () => {
    const { spec } = await configWith({ 'llama.attention.sliding_window': { u32: 16 } });
    expect([...spec.slidingWindows]).toEqual([16, 16]);
  });

  it('with a factor of attention that the architecture does not have is refused', async () => {
    const reading = configWith({ 'llama.rope.scaling.attn_factor': { f32: 1.5 } });
    await expect(reading).rejects.toThrow(
      "metadata 'llama.rope.scaling.attn_factor' is 1.5, which is not supported with architecture 'llama'",
    );
  });

  describe('of OLMo 3', () => {
    const olmo3 = path.join(__dirname, '..', 'golden', 'checkpoints', 'olmo3');
    const KEY = 'olmo2.attention.sliding_window_pattern';
    const read = (pattern: Value) => {
      const file = path.join(folder, 'olmo3.gguf');
      writeFileSync(file, ggufOf(olmo3, 'olmo2', { [KEY]: pattern }));
      return readGgufConfig(file);
    };

    it.each<[Value, number[]]>([
      [{ bools: [false, true, true] }, [0, 40, 40]],
      [{ u32: 2 }, [40, 0, 40]],
      [{ u32: 3 }, [40, 40, 0]],
    ])(
      'a pattern %j says which layers have windows and unscaled positions',
      async (pattern, windows) => {
        const { spec } = await read(pattern);
        expect([...spec.slidingWindows]).toEqual(windows);
        const scalings = spec.layerRopes.map((rope) => spec.ropes[rope].scaling.type);
        expect(scalings).toEqual(windows.map((window) => (window > 0 ? 'default' : 'yarn')));
      },
    );

    it.each<[Value, string]>([
      [{ bools: [true, false] }, 'is [ true, false ]; it must be a list of 3 times true or false'],
      [{ i32s: [1, 1, 0] }, 'is [ 1, 1, 0 ]; it must be a list of 3 times true or false'],
      [{ u32: 0 }, 'is 0; it must be an integer from 1'],
    ])('a pattern %j is refused', async (pattern, message) => {
      await expect(read(pattern)).rejects.toThrow(`metadata '${KEY}' ${message}`);
    });
  });

  it.each<[string, string[], number[]]>([
    ['no token that ends a turn', ['a', 'b', 'c'], [0]],
    ['one that no key names', ['a', 'b', '<end_of_turn>'], [0, 2]],
    ['two', ['<eos>', '<|im_end|>', '<|endoftext|>'], [0, 1, 2]],
    ['<|end|> within a turn', ['a', '<|end|>', '<|return|>'], [0, 2]],
  ])('with %s among its tokens ends texts accordingly', async (_, texts, ids) => {
    const config = await configWith({
      'tokenizer.ggml.tokens': { texts },
      'tokenizer.ggml.eos_token_id': { u32: 0 },
    });
    expect(config.eosTokenIds).toEqual(ids);
  });
});
