/** Which of a checkpoint's tensors make up the model's weights, under the names Hugging Face gives them. */
import { show } from '../config/schema';
import type { TransformerSpec } from '../config/uniprocConfig';
import { CheckpointError } from '../errors';
import type { DType, NativeDevice, StoredTensor, WeightPart } from '../native';
import type { SafetensorsDType, TensorEntry, TensorTable } from './checkpoint';
import { type Share, sharesOf } from './tensorParallel';

/** All that `NativeModel.load` needs to be told. */
export interface WeightSources {
  files: string[];
  parts: WeightPart[];
  /** Bytes of the parts, which are this rank's alone, as the files hold them. */
  totalBytes: number;
}

/** Types that weights may be stored in. */
const WEIGHT_DTYPES: Partial<Record<SafetensorsDType, DType>> = {
  F32: 'float32',
  F16: 'float16',
  BF16: 'bfloat16',
};

/** A dimension of a tensor: its size, what in config.json it comes from, and what of it this rank has. */
interface Dimension {
  size: number;
  of: string;
  first: number;
  count: number;
}

/** One of the model's weights: tensors of a checkpoint, one below the other. */
interface Weight {
  name: string;
  layer: number;
  /** By the tensor's name: [rows] or [rows, cols]. */
  tensors: [string, Dimension[]][];
}

function whole(size: number, of: string): Dimension {
  return { size, of, first: 0, count: size };
}

/** A share of things that are each so many elements. */
function divided({ of: total, first, count }: Share, of: string, elements = 1): Dimension {
  return { size: total * elements, of, first: first * elements, count: count * elements };
}

const EMBEDDING = 'model.embed_tokens.weight';
const HEAD = 'lm_head.weight';

/** Where tied weights stand in the files: under the head's name where the embedding's is missing. */
function embeddingName(spec: TransformerSpec, { tensors }: TensorTable): string {
  return spec.tieWordEmbeddings && !tensors.has(EMBEDDING) && tensors.has(HEAD) ? HEAD : EMBEDDING;
}

/**
 * A rank's weights of a model, in the order of its forward pass. A rank that has nothing of a tensor,
 * as of the biases that are added once, has a dimension of count 0.
 */
function* weightsOf(
  spec: TransformerSpec,
  embedding: string,
  rank: number,
  worldSize: number,
): Generator<Weight> {
  const shares = sharesOf(spec, rank, worldSize);
  const vocab = divided(shares.vocab, 'vocab_size');
  const hidden = whole(spec.hiddenSize, 'hidden_size');
  const hiddenOnce = rank === 0 ? hidden : { ...hidden, count: 0 };
  const intermediate = divided(shares.intermediate, 'intermediate_size');
  const head = whole(spec.headDim, 'head_dim');
  const heads = divided(shares.heads, 'num_attention_heads * head_dim', spec.headDim);
  const kvHeads = divided(shares.kvHeads, 'num_key_value_heads * head_dim', spec.headDim);

  yield {
    name: 'embedTokens',
    layer: 0,
    tensors: [[embedding, [vocab, hidden]]],
  };
  for (let layer = 0; layer < spec.numLayers; layer++) {
    const weight = (name: string, ...tensors: [string, Dimension[]][]): Weight => ({
      name,
      layer,
      tensors: tensors.map(([tensor, shape]) => [`model.layers.${layer}.${tensor}`, shape]),
    });

    yield weight('inputNorm', ['input_layernorm.weight', [hidden]]);
    yield weight(
      'qkv',
      ['self_attn.q_proj.weight', [heads, hidden]],
      ['self_attn.k_proj.weight', [kvHeads, hidden]],
      ['self_attn.v_proj.weight', [kvHeads, hidden]],
    );
    if (spec.qkvBias) {
      yield weight(
        'qkvBias',
        ['self_attn.q_proj.bias', [heads]],
        ['self_attn.k_proj.bias', [kvHeads]],
        ['self_attn.v_proj.bias', [kvHeads]],
      );
    }
    if (spec.qkNorm) {
      yield weight('qNorm', ['self_attn.q_norm.weight', [head]]);
      yield weight('kNorm', ['self_attn.k_norm.weight', [head]]);
    }
    yield weight('o', ['self_attn.o_proj.weight', [hidden, heads]]);
    if (spec.outputBias) yield weight('oBias', ['self_attn.o_proj.bias', [hiddenOnce]]);

    yield weight('postAttentionNorm', ['post_attention_layernorm.weight', [hidden]]);
    yield weight(
      'gateUp',
      ['mlp.gate_proj.weight', [intermediate, hidden]],
      ['mlp.up_proj.weight', [intermediate, hidden]],
    );
    if (spec.mlpBias) {
      yield weight(
        'gateUpBias',
        ['mlp.gate_proj.bias', [intermediate]],
        ['mlp.up_proj.bias', [intermediate]],
      );
    }
    yield weight('down', ['mlp.down_proj.weight', [hidden, intermediate]]);
    if (spec.mlpBias) yield weight('downBias', ['mlp.down_proj.bias', [hiddenOnce]]);
  }
  yield { name: 'norm', layer: 0, tensors: [['model.norm.weight', [hidden]]] };
  if (!spec.tieWordEmbeddings) {
    yield { name: 'lmHead', layer: 0, tensors: [[HEAD, [vocab, hidden]]] };
  }
}

/** Of a vector. */
const ONE_COLUMN = whole(1, '');

/** Tensors that change what a layer computes; where the model has no place for one, config.json is wrong. */
const LAYER_TENSOR =
  /^model\.layers\.\d+\.(self_attn\.([qkvo]_proj\.(weight|bias)|[qk]_norm\.weight)|mlp\.(gate|up|down)_proj\.(weight|bias)|(input|post_attention)_layernorm\.weight)$/;

/** The tensor and its type, once its shape is what config.json says. */
function lookUp(
  table: TensorTable,
  name: string,
  shape: readonly Dimension[],
): { entry: TensorEntry; dtype: DType } {
  const entry = table.tensors.get(name);
  if (!entry) throw new CheckpointError(table.source, missing(name));
  const file = table.files[entry.file];
  if (entry.shape.length !== shape.length || shape.some(({ size }, i) => size !== entry.shape[i])) {
    throw new CheckpointError(
      file,
      `tensor ${name} has the shape ${show(entry.shape)}, ` +
        `but by config.json it is ${show(shape.map(({ size }) => size))}: ` +
        shape.map(({ size, of }) => `${of} ${size}`).join(', '),
    );
  }
  const dtype = WEIGHT_DTYPES[entry.dtype];
  if (!dtype) {
    throw new CheckpointError(
      file,
      `tensor ${name} has the dtype ${entry.dtype}; weights must be F32, F16 or BF16`,
    );
  }
  return { entry, dtype };
}

/**
 * Whether the output head is the embedding. By config.json it may be, and the files hold a head
 * nevertheless: as in transformers 5 it is the embedding only if both are equal once converted to
 * the model's type. They are compared on the device's thread. Throws CheckpointError.
 */
export async function areEmbeddingsTied(
  spec: TransformerSpec,
  table: TensorTable,
  device: Pick<NativeDevice, 'areEqual'>,
  dtype: DType,
): Promise<boolean> {
  if (!spec.tieWordEmbeddings) return false;
  if (!table.tensors.has(EMBEDDING) || !table.tensors.has(HEAD)) return true;
  const shape = [whole(spec.vocabSize, 'vocab_size'), whole(spec.hiddenSize, 'hidden_size')];
  const stored = (name: string): StoredTensor => {
    const { entry, dtype: storedType } = lookUp(table, name, shape);
    return { path: table.files[entry.file], offset: entry.offset, dtype: storedType };
  };
  const count = spec.vocabSize * spec.hiddenSize;
  return device.areEqual(stored(EMBEDDING), stored(HEAD), count, dtype);
}

/**
 * One rank's weights as parts of the checkpoint's files: of the world's only rank all of them. With
 * tied embeddings one of the embedding and the lm_head need be in the files, and an lm_head beside the
 * embedding is left alone (areEmbeddingsTied compares them); so are tensors that no layer knows
 * (rotary_emb.inv_freq). Throws CheckpointError: a tensor missing, of another shape or type than
 * config.json says, or one config.json has no place for; ConfigError as sharesOf does.
 */
export function weightParts(
  spec: TransformerSpec,
  table: TensorTable,
  rank = 0,
  worldSize = 1,
): WeightSources {
  const parts: WeightPart[] = [];
  const used = new Set<string>();
  let totalBytes = 0;
  for (const { name: weight, layer, tensors } of weightsOf(
    spec,
    embeddingName(spec, table),
    rank,
    worldSize,
  )) {
    let rowOffset = 0;
    for (const [name, shape] of tensors) {
      const { entry, dtype } = lookUp(table, name, shape);
      used.add(name);
      const [rows, cols = ONE_COLUMN] = shape;
      if (rows.count === 0) continue;
      const bytesEach = entry.numBytes / (rows.size * cols.size);
      parts.push({
        weight,
        layer,
        rowOffset,
        file: entry.file,
        offset: entry.offset + (rows.first * cols.size + cols.first) * bytesEach,
        rows: rows.count,
        cols: cols.count,
        rowStride: cols.size,
        dtype,
      });
      rowOffset += rows.count;
      totalBytes += rows.count * cols.count * bytesEach;
    }
  }

  for (const [name, entry] of table.tensors) {
    if (LAYER_TENSOR.test(name) && !used.has(name)) {
      throw new CheckpointError(
        table.files[entry.file],
        `tensor ${name} has no place in the model that config.json describes; ` +
          `check num_hidden_layers (${spec.numLayers}), attention_bias and mlp_bias there`,
      );
    }
  }
  return { files: table.files, parts, totalBytes };
}

function missing(name: string): string {
  const reason =
    name === HEAD ? '; only with tie_word_embeddings in config.json need it not be there' : '';
  return `tensor ${name} is missing${reason}`;
}
