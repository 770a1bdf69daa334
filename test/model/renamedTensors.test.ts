/** Families whose checkpoints hold tensors under other names, or in stacks. */
import path from 'node:path';
import { CheckpointError } from '../../lib/errors';
import { gemma4 } from '../../lib/model/families/gemma4';
import { glm4Moe } from '../../lib/model/families/glm4Moe';
import { gptOss } from '../../lib/model/families/gptOss';
import { llama4 } from '../../lib/model/families/llama4';
import { renamedTensors } from '../../lib/model/parameterNames';
import type { TensorEntry, TensorTable } from '../../lib/model/safetensors';
import { readTensorTable } from '../../lib/model/safetensors';
import { parameterSources } from '../../lib/model/parameterSources';
import { readTransformerConfig } from '../../lib/model/transformerConfig';
import { native } from '../../lib/native';
import { readModel } from '../support/modelSpec';

const GOLDEN = path.join(__dirname, '..', 'golden', 'checkpoints');

const entryOf = (shape: number[]): TensorEntry => ({
  dtype: 'BF16',
  shape,
  file: 0,
  offset: 64,
  numBytes: 2 * shape.reduce((product, size) => product * size, 1),
});

const tableOf = (tensors: Record<string, number[]>): TensorTable => ({
  source: '/checkpoint/model.safetensors',
  files: ['/checkpoint/model.safetensors'],
  tensors: new Map(Object.entries(tensors).map(([name, shape]) => [name, entryOf(shape)])),
});

describe('gpt-oss', () => {
  const read = async (tensors: Record<string, number[]>) => {
    const { spec } = await readTransformerConfig(path.join(GOLDEN, 'gpt-oss'));
    return (await renamedTensors(gptOss, tableOf(tensors), spec)).tensors;
  };

  it('has gate and up in turns, and matrices transposed', async () => {
    // 8 experts of [3, 2 * 2] and [2, 3]
    const tensors = await read({
      'model.layers.0.mlp.experts.gate_up_proj': [8, 3, 4],
      'model.layers.0.mlp.experts.gate_up_proj_bias': [8, 4],
      'model.layers.0.mlp.experts.down_proj': [8, 2, 3],
    });
    expect(tensors.size).toBe(8 * 5);
    const expert = 'model.layers.0.mlp.experts.7';
    expect(tensors.get(`${expert}.up_proj.weight`)).toMatchObject({
      shape: [2, 3],
      strides: { row: 2, col: 4 },
      offset: 64 + 7 * 24 + 2,
      numBytes: 12,
    });
    expect(tensors.get(`${expert}.gate_proj.bias`)).toMatchObject({
      shape: [2],
      strides: { row: 2, col: 1 },
      offset: 64 + 7 * 8,
    });
    expect(tensors.get(`${expert}.down_proj.weight`)).toMatchObject({
      shape: [3, 2],
      strides: { row: 1, col: 3 },
      offset: 64 + 7 * 12,
    });
  });

  describe('in mxfp4', () => {
    // Of the golden checkpoint: 8 experts of [2 * 64, 64] and [64, 64], 2 blocks in a row.
    const PREFIX = 'model.layers.0.mlp.experts';
    const STACKS: Record<string, number[]> = {
      [`${PREFIX}.gate_up_proj_blocks`]: [8, 128, 2, 16],
      [`${PREFIX}.gate_up_proj_scales`]: [8, 128, 2],
      [`${PREFIX}.down_proj_blocks`]: [8, 64, 2, 16],
      [`${PREFIX}.down_proj_scales`]: [8, 64, 2],
    };
    const bytesOf = (tensors: Record<string, number[]>): TensorTable => {
      const table = tableOf(tensors);
      const entries = [...table.tensors].map(([name, entry]): [string, TensorEntry] => [
        name,
        { ...entry, dtype: 'U8', numBytes: entry.numBytes / 2 },
      ]);
      return { ...table, tensors: new Map(entries) };
    };
    const rename = async (table: TensorTable) => {
      const { spec } = await readTransformerConfig(path.join(GOLDEN, 'gpt-oss-mxfp4'));
      return (await renamedTensors(gptOss, table, spec)).tensors;
    };

    it('has every other row of gate and up, and whole matrices of down', async () => {
      const tensors = await rename(bytesOf(STACKS));
      expect(tensors.size).toBe(8 * 6);
      const expert = `${PREFIX}.7`;
      expect(tensors.get(`${expert}.up_proj.blocks`)).toMatchObject({
        shape: [64, 32],
        strides: { row: 2 * 64, col: 1 },
        offset: 64 + 7 * 128 * 32 + 32,
      });
      expect(tensors.get(`${expert}.up_proj.scales`)).toMatchObject({
        shape: [64, 2],
        strides: { row: 4, col: 1 },
        offset: 64 + 7 * 128 * 2 + 2,
      });
      const down = tensors.get(`${expert}.down_proj.blocks`);
      expect(down).toMatchObject({ shape: [64, 32], offset: 64 + 7 * 64 * 32 });
      expect(down?.strides).toBeUndefined();
    });

    it.each<[string, Record<string, number[] | null>, string]>([
      [
        'another number of experts',
        { [`${PREFIX}.down_proj_blocks`]: [9, 64, 2, 16] },
        'down_proj_blocks has shape [ 9, 64, 2, 16 ]; config.json requires [ 8, 64, 2, 16 ]',
      ],
      [
        'another number of blocks',
        { [`${PREFIX}.gate_up_proj_scales`]: [8, 128, 3] },
        'gate_up_proj_scales has shape [ 8, 128, 3 ]; config.json requires [ 8, 128, 2 ]',
      ],
      [
        'no scales',
        { [`${PREFIX}.down_proj_scales`]: null },
        `tensor ${PREFIX}.down_proj_scales is missing, but ${PREFIX}.down_proj_blocks is there`,
      ],
      [
        'no blocks',
        { [`${PREFIX}.gate_up_proj_blocks`]: null },
        `tensor ${PREFIX}.gate_up_proj_blocks is missing`,
      ],
    ])('is refused for %s', async (_, changes, message) => {
      const stacks = Object.entries({ ...STACKS, ...changes });
      const present = stacks.filter((each): each is [string, number[]] => each[1] !== null);
      const renamed = rename(bytesOf(Object.fromEntries(present)));
      await expect(renamed).rejects.toThrow(CheckpointError);
      await expect(renamed).rejects.toThrow(message);
      await expect(renamed).rejects.toThrow('/checkpoint/model.safetensors');
    });

    it('is refused for another type', async () => {
      await expect(rename(tableOf(STACKS))).rejects.toThrow(
        'gate_up_proj_blocks has dtype BF16; it must be U8',
      );
    });

    it('is refused where its rows have no whole blocks', async () => {
      const { spec } = await readTransformerConfig(path.join(GOLDEN, 'gpt-oss'));
      await expect(renamedTensors(gptOss, bytesOf(STACKS), spec)).rejects.toThrow(
        'hidden_size, 48, is no multiple of 32',
      );
    });

    it('is refused where config.json does not say so', async () => {
      const { spec, family, table } = await readModel(path.join(GOLDEN, 'gpt-oss-mxfp4'));
      const plain = { ...spec, weightFormats: {} };
      const declared = native().declareParameters(plain, 0, 1);
      await expect(parameterSources(declared, plain, family, table)).rejects.toThrow(
        `${PREFIX}.0.gate_proj.blocks is quantized, but config.json has no quantization_config`,
      );
    });
  });

  it('yields for each expert, as a large model has tens of thousands of tensors', async () => {
    const { spec } = await readTransformerConfig(path.join(GOLDEN, 'gpt-oss'));
    const table = tableOf({ 'model.layers.0.mlp.experts.gate_up_proj': [8, 3, 4] });
    const pieces = [...(gptOss.renameTensors?.(table, spec) ?? [])];
    expect(pieces.length).toBeGreaterThanOrEqual(8);
  });

  it.each([[[9, 3, 4]], [[8, 3]], [[1e9, 0, 4]]])('refuses a stack of %j', async (shape) => {
    await expect(read({ 'model.layers.0.mlp.experts.gate_up_proj': shape })).rejects.toThrow(
      'gate_up_proj has shape',
    );
  });
});

describe('GLM-4.5', () => {
  it('leaves out the layers that predict further tokens, and no others', async () => {
    const { spec } = await readTransformerConfig(path.join(GOLDEN, 'glm4-moe'));
    const own = (await readTensorTable(path.join(GOLDEN, 'glm4-moe'))).tensors;
    const added = tableOf({
      'model.layers.3.eh_proj.weight': [4, 8],
      'model.layers.3.mlp.gate.weight': [16, 4],
      'model.layers.4.mlp.gate.weight': [16, 4],
    });
    const table = { ...added, tensors: new Map([...own, ...added.tensors]) };
    const names = [...(await renamedTensors(glm4Moe, table, spec)).tensors.keys()];
    expect(names.filter((name) => /layers\.[34]/.test(name))).toEqual([
      'model.layers.4.mlp.gate.weight',
    ]);
    expect(names).toContain('model.layers.1.mlp.gate.e_score_correction_bias.weight');
  });
});

describe('llama4_text', () => {
  const read = async (tensors: Record<string, number[]>) => {
    const { spec } = await readTransformerConfig(path.join(GOLDEN, 'llama4'));
    return (await renamedTensors(llama4, tableOf(tensors), spec)).tensors;
  };
  const experts = 'model.layers.1.feed_forward.experts';

  it('has the rows of gate before those of up, and matrices transposed', async () => {
    // 4 experts of [3, 2 * 2] and [2, 3]
    const tensors = await read({
      [`${experts}.gate_up_proj`]: [4, 3, 4],
      [`${experts}.down_proj`]: [4, 2, 3],
    });
    expect(tensors.size).toBe(4 * 3);
    expect(tensors.get(`${experts}.3.gate_proj.weight`)).toMatchObject({
      shape: [2, 3],
      strides: { row: 1, col: 4 },
      offset: 64 + 3 * 24,
      numBytes: 12,
    });
    expect(tensors.get(`${experts}.3.up_proj.weight`)).toMatchObject({ offset: 64 + 3 * 24 + 4 });
    expect(tensors.get(`${experts}.3.down_proj.weight`)).toMatchObject({
      shape: [3, 2],
      strides: { row: 1, col: 3 },
      offset: 64 + 3 * 12,
    });
  });

  it('may have the matrices of each expert, as quantized checkpoints', async () => {
    const name = `${experts}.0.gate_proj.weight`;
    expect((await read({ [name]: [2, 3] })).get(name)).toEqual(entryOf([2, 3]));
  });

  it('refuses stacks in fp8', async () => {
    const { spec } = await readTransformerConfig(path.join(GOLDEN, 'llama4'));
    const stack = { ...entryOf([4, 3, 4]), dtype: 'F8_E4M3' as const };
    const table = { ...tableOf({}), tensors: new Map([[`${experts}.gate_up_proj`, stack]]) };
    await expect(renamedTensors(llama4, table, spec)).rejects.toThrow('has dtype F8_E4M3; tensors');
  });

  it.each([
    [[5, 3, 4], 'num_local_experts, 4'],
    [[4, 3], 'two dimensions more'],
  ])('refuses a stack of shape %j', async (shape, message) => {
    await expect(read({ [`${experts}.gate_up_proj`]: shape })).rejects.toThrow(message);
  });
});

describe('gemma4_text', () => {
  it('reads values from the tensors of keys in layers without a window', async () => {
    const { spec } = await readTransformerConfig(path.join(GOLDEN, 'gemma4'));
    const table = tableOf({
      'model.layers.1.self_attn.k_proj.weight': [32, 48],
      'model.layers.2.self_attn.k_proj.weight': [32, 48],
      'model.layers.2.layer_scalar': [1],
    });
    const { tensors } = await renamedTensors(gemma4, table, spec);
    expect([...tensors.keys()]).toEqual([
      'model.layers.1.self_attn.k_proj.weight',
      'model.layers.2.self_attn.k_proj.weight',
      'model.layers.2.self_attn.v_proj.weight',
      'model.layers.2.layer_scalar.weight',
    ]);
  });

  it('divides stacks of experts by rows, and gives scales of routers the suffix of weights', async () => {
    const { spec } = await readTransformerConfig(path.join(GOLDEN, 'gemma4-moe'));
    const table = tableOf({
      'model.layers.1.router.scale': [48],
      'model.layers.1.router.per_expert_scale': [8],
      'model.layers.1.experts.gate_up_proj': [8, 48, 48],
    });
    const { tensors } = await renamedTensors(gemma4, table, spec);
    expect([...tensors.keys()].slice(0, 4)).toEqual([
      'model.layers.1.router.scale.weight',
      'model.layers.1.router.per_expert_scale.weight',
      'model.layers.1.experts.0.gate_proj.weight',
      'model.layers.1.experts.0.up_proj.weight',
    ]);
    const up = tensors.get('model.layers.1.experts.7.up_proj.weight');
    expect(up).toMatchObject({ shape: [24, 48] });
    expect(up).not.toHaveProperty('strides');
  });
});
