/** How a worker's model gets its weights: from the checkpoint's files, or at random ('dummy'). */
import type { LoadProgress, UniprocConfig } from '../config/uniprocConfig';
import type { WeightBytes } from '../contract/workerSummary';
import { CheckpointError } from '../errors';
import {
  type DType,
  type ModelSpec,
  native,
  type NativeDevice,
  type NativeModel,
  type Parameter,
  type StorageType,
  type WeightFormat,
} from '../native';
import type { Family } from './families/family';
import { areEmbeddingsTied, ParameterNames, parameterSources } from './parameterSources';
import { weightFormats } from './quantization';
import { familyOf } from './registry';
import { readTensorTable, type TensorTable } from './safetensors';

/** A rank's place among those that share the model. */
interface Place {
  rank: number;
  worldSize: number;
}

/** Bytes of one element. */
const BYTES_PER_ELEMENT: Record<StorageType, number> = {
  float32: 4,
  float16: 2,
  bfloat16: 2,
  float8_e4m3: 1,
};

/** The type that a parameter has on the device. */
function storedTypeOf({ part, isLinear, format }: Parameter, dtype: DType): StorageType {
  if (part === 'scales') return 'float32';
  return part === 'weight' && isLinear ? format.type : dtype;
}

export class ModelLoader {
  /** The output head is the embedding; null before the files were looked at: as config.json says. */
  #embeddingsTied: boolean | null = null;
  #weightFormats: Record<string, WeightFormat> = {};
  /** What `examine` found, for the `load` that follows it. */
  #table: TensorTable | null = null;
  readonly #family: Family;

  constructor(private readonly config: UniprocConfig) {
    this.#family = familyOf(config.model.transformer.architecture);
  }

  /** The forward pass, with what the files say of tied embeddings and of the weights' formats. */
  get spec(): ModelSpec {
    const { transformer, dtype } = this.config.model;
    const { spec } = transformer;
    return {
      ...spec,
      dtype,
      tieWordEmbeddings: this.#embeddingsTied ?? spec.tieWordEmbeddings,
      weightFormats: this.#weightFormats,
    };
  }

  /**
   * Reads the files' headers and decides whether the output head is the embedding, which the model
   * has to be made for. Rank 0 warns, once, where the files contradict config.json. Rejects with
   * CheckpointError.
   */
  async examine(device: NativeDevice, rank: number): Promise<void> {
    const { load, model } = this.config;
    const { spec, quantization } = model.transformer;
    if (load.loadFormat === 'dummy') {
      this.#weightFormats = weightFormats(quantization, this.#declared(), null);
      return;
    }
    const table = await readTensorTable(model.path);
    const isTied = await areEmbeddingsTied(spec, this.#family, table, device, model.dtype);
    const isNews = this.#embeddingsTied !== false && spec.tieWordEmbeddings && !isTied;
    if (isNews && rank === 0) warnOfUntiedEmbeddings(table);
    this.#embeddingsTied = isTied;
    this.#weightFormats = this.#formatsIn(table);
    this.#table = table;
  }

  /** The model's parameters, whichever rank has them, as if none were quantised. */
  #declared(): Parameter[] {
    return native().declareParameters({ ...this.spec, weightFormats: {} }, 0, 1);
  }

  #formatsIn(table: TensorTable): Record<string, WeightFormat> {
    const { quantization } = this.config.model.transformer;
    if (quantization === null) return {};
    const names = new ParameterNames(this.#family, table, this.spec.tieWordEmbeddings);
    return weightFormats(
      quantization,
      this.#declared(),
      (parameter) => table.tensors.get(names.tensorOf(parameter))?.dtype,
    );
  }

  /** Bytes of a rank's share of the weights; scales counted as the files hold them. */
  weightBytes({ rank, worldSize }: Place): WeightBytes {
    const sums: WeightBytes = {};
    for (const parameter of native().declareParameters(this.spec, rank, worldSize)) {
      const type = storedTypeOf(parameter, this.spec.dtype);
      const count = parameter.shape.reduce((product, dimension) => product * dimension.count, 1);
      if (count > 0) sums[type] = (sums[type] ?? 0) + count * BYTES_PER_ELEMENT[type];
    }
    return sums;
  }

  /** Fills a model made for what `examine` found. */
  async load(
    model: NativeModel,
    place: Place,
    onProgress?: (progress: LoadProgress) => void,
  ): Promise<void> {
    if (this.config.load.loadFormat === 'dummy') return model.loadDummy(this.config.model.seed);
    const table = this.#table ?? (await readTensorTable(this.config.model.path));
    this.#table = null;
    await this.#fill(model, table, place, onProgress);
  }

  /**
   * Fills the model once more, from the files as they are now. Rejects with CheckpointError, also
   * where the head was tied and differs from the embedding now: the model has no place for it.
   */
  async reload(model: NativeModel, device: NativeDevice, place: Place): Promise<void> {
    const { load, model: config } = this.config;
    if (load.loadFormat === 'dummy') return model.loadDummy(config.seed);
    const table = await readTensorTable(config.path);
    const { spec } = this;
    const isTied = () => areEmbeddingsTied(spec, this.#family, table, device, config.dtype);
    if (spec.tieWordEmbeddings && !(await isTied())) {
      throw new CheckpointError(
        table.source,
        'lm_head.weight was equal to the embedding when the model was loaded and is not now; ' +
          'put the files back, or load the model anew',
      );
    }
    await this.#fill(model, table, place);
  }

  async #fill(
    model: NativeModel,
    table: TensorTable,
    { rank, worldSize }: Place,
    onProgress?: (progress: LoadProgress) => void,
  ): Promise<void> {
    const { files, sources, totalBytes } = parameterSources(
      this.spec,
      this.#family,
      table,
      rank,
      worldSize,
    );
    const start = performance.now();
    let failure: unknown = null;
    await model.load(files, sources, (bytes, tensors) => {
      try {
        const bytesPerSecond = (1000 * bytes) / (performance.now() - start);
        const totalTensors = sources.length;
        onProgress?.({ bytes, totalBytes, tensors, totalTensors, bytesPerSecond });
      } catch (error) {
        // Thrown from a native callback it would end the process.
        failure ??= error;
      }
    });
    if (failure !== null) throw failure as Error;
  }
}

/** Says that the files and config.json do not agree, as transformers 5 does. */
function warnOfUntiedEmbeddings(table: TensorTable): void {
  process.emitWarning(
    `${table.source}: config.json has tie_word_embeddings, but lm_head.weight differs from ` +
      'model.embed_tokens.weight, so they are not tied; set tie_word_embeddings to false in ' +
      'config.json to silence this warning',
    { type: 'CheckpointWarning', code: 'UNIPROC_UNTIED_EMBEDDINGS' },
  );
}
