/** config.json and the tensors of Qwen3-MoE. Expected layers are those of transformers 5's decoder. */
import path from 'node:path';
import { CheckpointError, UnsupportedModelError } from '../../lib/errors';
import { ParameterNames } from '../../lib/model/parameterNames';
import { parameterSources } from '../../lib/model/parameterSources';
import { readQuantization, schemesOf } from '../../lib/model/quantization';
import { readTensorTable, type TensorTable } from '../../lib/model/safetensors';
import { parseTransformerConfig } from '../../lib/model/transformerConfig';
import { qwen3Moe } from '../../lib/model/families/qwen3Moe';
import { type ModelSpec, native } from '../../lib/native';
import { folderWith } from '../support/folder';
import { readModel } from '../support/modelSpec';
import { fileOf } from '../worker/safetensors';

const FILE = '/checkpoint/config.json';
const GOLDEN = path.join(__dirname, '..', 'golden', 'checkpoints', 'qwen3-moe');

const MOE = {
  architectures: ['Qwen3MoeForCausalLM'],
  model_type: 'qwen3_moe',
  vocab_size: 12,
  hidden_size: 8,
  intermediate_size: 10,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 1,
  head_dim: 4,
  max_position_embeddings: 64,
  moe_intermediate_size: 6,
  num_experts_per_tok: 2,
  num_experts: 4,
};

const expertsOf = (changes: object) =>
  parseTransformerConfig(FILE, { ...MOE, ...changes }).spec.experts;

describe('config.json of Qwen3-MoE', () => {
  it.each<[object, boolean[] | null]>([
    [{}, [true, true]],
    [{ decoder_sparse_step: 2 }, [false, true]],
    [{ decoder_sparse_step: 3 }, null],
    [{ mlp_only_layers: [0] }, [false, true]],
    [{ mlp_only_layers: [7] }, [true, true]],
    [{ mlp_only_layers: null }, [true, true]],
    [{ mlp_only_layers: [0, 1] }, null],
    [{ num_experts: 0 }, null],
    [{ num_experts: undefined, num_local_experts: 0 }, null],
  ])('with %j has experts in the layers %j', (changes, layers) => {
    expect(expertsOf(changes)?.layers ?? null).toEqual(layers);
  });

  it.each<[object, number]>([
    [{ num_experts: undefined, num_local_experts: 3 }, 3], // as transformers 5 writes it
    [{ num_local_experts: 4 }, 4],
    [{ num_experts: undefined }, 128],
    [{ num_experts: 1, num_experts_per_tok: 1 }, 1],
  ])('with %j has %i experts', (changes, numExperts) => {
    expect(expertsOf(changes)?.numExperts).toBe(numExperts);
  });

  it('takes the values of transformers for keys that are missing', () => {
    const missing = {
      num_experts_per_tok: undefined,
      moe_intermediate_size: undefined,
      norm_topk_prob: undefined,
      num_experts: 16,
    };
    const given = JSON.parse(JSON.stringify({ ...MOE, ...missing })) as Record<string, unknown>;
    expect(parseTransformerConfig(FILE, given).spec.experts).toMatchObject({
      numExpertsPerToken: 8,
      intermediateSize: 768,
      normTopkProb: false,
    });
  });

  it.each<[object, RegExp]>([
    [{ num_local_experts: 8 }, /num_experts is 4 and num_local_experts 8/],
    [{ num_experts_per_tok: 5 }, /num_experts_per_tok is 5.*num_experts, 4/],
    [{ num_experts_per_tok: 0 }, /num_experts_per_tok is 0/],
    [{ num_experts: -1 }, /num_experts is -1/],
    [{ num_experts: 2 ** 11 + 1 }, /num_experts is 2049/], // bytes of a layer beyond 64 bits
    [{ num_local_experts: 'many' }, /num_local_experts is 'many'/],
    [{ decoder_sparse_step: 0 }, /decoder_sparse_step is 0/],
    [{ mlp_only_layers: [-1] }, /mlp_only_layers/],
    [{ mlp_only_layers: 1 }, /mlp_only_layers is 1/],
    [{ norm_topk_prob: 'yes' }, /norm_topk_prob is 'yes'/],
    [{ moe_intermediate_size: null }, /moe_intermediate_size is null/],
    [{ moe_intermediate_size: 0 }, /moe_intermediate_size is 0/],
  ])('with %j is refused by that name', (changes, message) => {
    expect(() => expertsOf(changes)).toThrow(CheckpointError);
    expect(() => expertsOf(changes)).toThrow(message);
  });

  it.each([
    { n_routed_experts: 8 },
    { layer_types: ['sliding_attention', 'full_attention'] },
    { layer_types: ['sliding_attention', 'sliding_attention'], sliding_window: 16 },
  ])('with %j means another model, and is refused', (changes) => {
    expect(() => expertsOf(changes)).toThrow(UnsupportedModelError);
  });

  it('has the window in every layer or in none', () => {
    const windows = (changes: object) =>
      parseTransformerConfig(FILE, { ...MOE, ...changes }).spec.slidingWindows;
    expect(windows({ sliding_window: 16 })).toEqual([0, 0]);
    expect(windows({ sliding_window: 16, use_sliding_window: true })).toEqual([16, 16]);
  });
});

describe('the tensors of experts', () => {
  const { spec: shape } = parseTransformerConfig(FILE, { ...MOE, num_hidden_layers: 1 });
  const SPEC: ModelSpec = { ...shape, dtype: 'float32', weightFormats: {} };
  const EXPERTS = 'model.layers.0.mlp.experts';

  type Tensors = Record<string, { dtype: string; shape: number[] }>;

  /** Each tensor that the model has, then the changes; undefined leaves one out. */
  async function tableWith(changes: Record<string, Tensors[string] | undefined>) {
    const names = new ParameterNames(qwen3Moe, emptyTable(), false);
    const tensors: Tensors = {};
    for (const parameter of native().declareParameters(SPEC, 0, 1)) {
      const { experts, shape } = parameter;
      for (let i = 0; i < (experts?.size ?? 1); i++) {
        const name = names.tensorOf(parameter, experts && i);
        tensors[name] = { dtype: 'F32', shape: shape.map(({ size }) => size) };
      }
    }
    const given = Object.entries({ ...tensors, ...changes }).filter(([, tensor]) => tensor);
    const file = fileOf(Object.fromEntries(given) as Parameters<typeof fileOf>[0]);
    return readTensorTable(await folderWith({ 'model.safetensors': file }));
  }

  const emptyTable = (): TensorTable => ({ source: '', files: [], tensors: new Map() });
  const sourcesIn = (table: TensorTable, rank = 0, worldSize = 1) =>
    parameterSources(native().declareParameters(SPEC, rank, worldSize), SPEC, qwen3Moe, table);

  it.each([1, 2, 4])('are divided among %i ranks, each whole on one of them', async (size) => {
    const table = await tableWith({});
    const all: string[] = [];
    for (let rank = 0; rank < size; rank++) {
      const { sources } = await sourcesIn(table, rank, size);
      const offsets = new Map([...table.tensors].map(([name, { offset }]) => [offset, name]));
      for (const { offset, expert } of sources) {
        if (expert === undefined) continue;
        expect(Math.floor((expert * size) / 4)).toBe(rank);
        expect(offsets.get(offset)).toContain(`${EXPERTS}.${expert}.`);
        all.push(offsets.get(offset) ?? '');
      }
    }
    const names = [0, 1, 2, 3].flatMap((expert) =>
      ['gate', 'up', 'down'].map((module) => `${EXPERTS}.${expert}.${module}_proj.weight`),
    );
    expect(all.sort()).toEqual(names.sort());
  });

  it.each<[string, Record<string, Tensors[string] | undefined>, string]>([
    [
      'one is missing',
      { [`${EXPERTS}.3.up_proj.weight`]: undefined },
      `tensor ${EXPERTS}.3.up_proj.weight is missing`,
    ],
    [
      'there is one more',
      { [`${EXPERTS}.4.up_proj.weight`]: { dtype: 'F32', shape: [6, 8] } },
      `tensor ${EXPERTS}.4.up_proj.weight is not part of the model that config.json describes; ` +
        'check its num_hidden_layers (1), num_experts (4)',
    ],
    [
      'one has another shape',
      { [`${EXPERTS}.2.down_proj.weight`]: { dtype: 'F32', shape: [8, 7] } },
      `tensor ${EXPERTS}.2.down_proj.weight has shape [ 8, 7 ]; ` +
        'config.json requires [ 8, 6 ]: hidden_size 8, moe_intermediate_size 6',
    ],
    [
      'one has another type',
      { [`${EXPERTS}.1.gate_proj.weight`]: { dtype: 'F64', shape: [6, 8] } },
      `tensor ${EXPERTS}.1.gate_proj.weight has dtype F64`,
    ],
    [
      'the router is missing',
      { 'model.layers.0.mlp.gate.weight': undefined },
      'tensor model.layers.0.mlp.gate.weight is missing',
    ],
  ])('are refused by name where %s', async (_, changes, message) => {
    const table = await tableWith(changes);
    for (const rank of [0, 1]) {
      await expect(sourcesIn(table, rank, 2)).rejects.toThrow(message);
    }
  });

  it('are refused by name where one tensor stacks them', async () => {
    const none = [0, 1, 2, 3].flatMap((expert) =>
      ['gate', 'up', 'down'].map((module) => [`${EXPERTS}.${expert}.${module}_proj.weight`]),
    );
    const table = await tableWith({
      ...Object.fromEntries(none.map(([name]) => [name, undefined])),
      [`${EXPERTS}.gate_up_proj`]: { dtype: 'F32', shape: [4, 12, 8] },
      [`${EXPERTS}.down_proj`]: { dtype: 'F32', shape: [4, 8, 6] },
    });
    await expect(sourcesIn(table)).rejects.toThrow(
      /experts\.0\.gate_proj\.weight is missing; \S+mlp\.experts\.gate_up_proj holds all experts/,
    );
  });

  it('are refused by both names where some alone are in fp8', async () => {
    const fp8 = { dtype: 'F8_E4M3', shape: [6, 8] };
    const table = await tableWith({ [`${EXPERTS}.2.up_proj.weight`]: fp8 });
    const names = new ParameterNames(qwen3Moe, table, false);
    const declared = native().declareParameters(SPEC, 0, 1);
    const quantization = readQuantization('', { quant_method: 'fp8', weight_block_size: [4, 4] });
    const formats = schemesOf(quantization, declared, names);
    await expect(formats).rejects.toThrow(CheckpointError);
    await expect(formats).rejects.toThrow(
      `tensor ${EXPERTS}.0.gate_proj.weight has dtype F32 and tensor ${EXPERTS}.2.up_proj.weight F8_E4M3`,
    );
  });

  it('take one entry of the list that the blocks declare', async () => {
    const { spec } = await readModel(GOLDEN);
    const declared = native().declareParameters(spec, 1, 2);
    const up = declared.filter(({ module }) => module === 'experts.up');
    expect(up.map(({ layer }) => layer)).toEqual([0, 2]);
    expect(up[0].experts).toEqual({ size: 8, first: 4, count: 4 });
  });
});
