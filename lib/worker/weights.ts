/** Which of a checkpoint's tensors make up the model's weights, under the names Hugging Face gives them. */
import { show } from '../config/schema';
import { CheckpointError } from '../errors';
import type { DType, ModelSpec, WeightPart } from '../native';
import type { SafetensorsDType, TensorTable } from './checkpoint';

/** All that `NativeModel.load` needs to be told. */
export interface WeightSources {
  files: string[];
  parts: WeightPart[];
  /** Bytes of the parts, as the files hold them. */
  totalBytes: number;
}

/** Types that weights may be stored in. */
const WEIGHT_DTYPES: Partial<Record<SafetensorsDType, DType>> = {
  F32: 'float32',
  F16: 'float16',
  BF16: 'bfloat16',
};

/** A dimension: its size, and what in config.json it comes from. */
interface Dimension {
  size: number;
  of: string;
}

/** One of the model's weights: tensors of a checkpoint, one below the other. */
interface Weight {
  name: string;
  layer: number;
  /** By the tensor's name: [rows] or [rows, cols]. */
  tensors: [string, Dimension[]][];
}

/** The weights of a model in the order of its forward pass. */
function* weightsOf(spec: ModelSpec): Generator<Weight> {
  const vocab = { size: spec.vocabSize, of: 'vocab_size' };
  const hidden = { size: spec.hiddenSize, of: 'hidden_size' };
  const intermediate = { size: spec.intermediateSize, of: 'intermediate_size' };
  const head = { size: spec.headDim, of: 'head_dim' };
  const heads = {
    size: spec.numHeads * spec.headDim,
    of: 'num_attention_heads * head_dim',
  };
  const kvHeads = {
    size: spec.numKvHeads * spec.headDim,
    of: 'num_key_value_heads * head_dim',
  };

  yield {
    name: 'embedTokens',
    layer: 0,
    tensors: [['model.embed_tokens.weight', [vocab, hidden]]],
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
    if (spec.outputBias) yield weight('oBias', ['self_attn.o_proj.bias', [hidden]]);

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
    if (spec.mlpBias) yield weight('downBias', ['mlp.down_proj.bias', [hidden]]);
  }
  yield { name: 'norm', layer: 0, tensors: [['model.norm.weight', [hidden]]] };
  if (!spec.tieWordEmbeddings) {
    yield { name: 'lmHead', layer: 0, tensors: [['lm_head.weight', [vocab, hidden]]] };
  }
}

/** Tensors that change what a layer computes; where the model has no place for one, config.json is wrong. */
const LAYER_TENSOR =
  /^model\.layers\.\d+\.(self_attn\.([qkvo]_proj\.(weight|bias)|[qk]_norm\.weight)|mlp\.(gate|up|down)_proj\.(weight|bias)|(input|post_attention)_layernorm\.weight)$/;

/**
 * The model's weights as parts of the checkpoint's files. With tied embeddings an lm_head in the
 * files is left alone, and so are tensors that no layer knows (rotary_emb.inv_freq). Throws
 * CheckpointError: a tensor missing, of another shape or type than config.json says, or one config.json
 * has no place for.
 */
export function weightParts(spec: ModelSpec, table: TensorTable): WeightSources {
  const parts: WeightPart[] = [];
  const used = new Set<string>();
  let totalBytes = 0;
  for (const { name: weight, layer, tensors } of weightsOf(spec)) {
    let rowOffset = 0;
    for (const [name, shape] of tensors) {
      const entry = table.tensors.get(name);
      if (!entry) throw new CheckpointError(table.source, missing(name));
      const file = table.files[entry.file];
      if (
        entry.shape.length !== shape.length ||
        shape.some(({ size }, i) => size !== entry.shape[i])
      ) {
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
      const [rows, cols = 1] = entry.shape;
      parts.push({
        weight,
        layer,
        rowOffset,
        file: entry.file,
        offset: entry.offset,
        rows,
        cols,
        dtype,
      });
      rowOffset += rows;
      totalBytes += entry.numBytes;
      used.add(name);
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
    name === 'lm_head.weight'
      ? '; only with tie_word_embeddings in config.json need it not be there'
      : '';
  return `tensor ${name} is missing${reason}`;
}
