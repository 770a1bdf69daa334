/** A GGUF model's tensors, one for each module. */
import { show } from '../../config/schema';
import type { TransformerSpec } from '../../config/uniprocConfig';
import { CheckpointError } from '../../errors';
import { slicedWork } from '../../slicedWork';
import type { TensorEntry, TensorTable } from '../safetensors';
import { OTHER_TENSORS } from './config';
import { readGgufModel } from './files';

/** A tensor of all experts of a layer. */
const STACK = /^(blk\.\d+\.ffn_(?:gate|up|down)_exps)\.(weight|bias)$/;
const LAYER = /^blk\.(\d+)\./;
const SCORE_BIAS = /^(blk\.\d+\.exp_probs_b)\.bias$/;
const SHARED_ROUTER = /^blk\.\d+\.ffn_gate_inp_shexp\.weight$/;

/**
 * Reads the tensors of the model whose first file is `file`: of each expert its own, without layers
 * behind the last, which predict further tokens, and without those that the configuration is read from.
 */
export async function readGgufTable(file: string, spec: TransformerSpec): Promise<TensorTable> {
  const { files, tensors } = await readGgufModel(file);
  const table = new Map<string, TensorEntry>();
  function* collect() {
    for (const [name, entry] of tensors) {
      yield;
      const layer = LAYER.exec(name);
      if (OTHER_TENSORS.has(name) || (layer && Number(layer[1]) >= spec.numLayers)) continue;
      const stacked = STACK.exec(name);
      if (stacked) {
        const [, stack, part] = stacked;
        yield* addExperts(files[entry.file], name, entry, spec, (expert, own) =>
          table.set(`${stack}.${expert}.${part}`, own),
        );
        continue;
      }
      const scores = SCORE_BIAS.exec(name);
      if (scores) {
        table.set(`${scores[1]}.weight`, entry);
      } else if (SHARED_ROUTER.test(name) && entry.shape.length === 1) {
        table.set(name, { ...entry, shape: [1, ...entry.shape] });
      } else {
        table.set(name, entry);
      }
    }
  }
  await slicedWork.finish(collect());
  return { source: file, files, tensors: table, config: 'its metadata', isComplete: true };
}

function* addExperts(
  file: string,
  name: string,
  entry: TensorEntry,
  { experts }: TransformerSpec,
  add: (expert: number, entry: TensorEntry) => void,
): Generator<void, void> {
  const [numExperts, ...shape] = entry.shape;
  if (numExperts !== experts?.numExperts || shape.length === 0) {
    throw new CheckpointError(
      file,
      `tensor ${name} has shape ${show(entry.shape)}; its metadata require expert_count, ` +
        `${experts?.numExperts ?? 0}, as the first of its dimensions`,
    );
  }
  const numBytes = entry.numBytes / numExperts;
  for (let expert = 0; expert < numExperts; expert++) {
    yield;
    add(expert, { ...entry, shape, offset: entry.offset + expert * numBytes, numBytes });
  }
}
