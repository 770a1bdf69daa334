/** Loads a model's weights: from the checkpoint's files, or random ('dummy'). */
import { BYTES_PER_ELEMENT, type DType } from '../config/dtype';
import type { LoadProgress, UniprocConfig } from '../config/uniprocConfig';
import type { WeightBytes } from '../contract/workerSummary';
import { CheckpointError } from '../errors';
import type { Family } from './families/family';
import { packSources } from './packedSources';
import { ParameterNames } from './parameterNames';
import { areEmbeddingsTied, parameterSources, type TensorComparer } from './parameterSources';
import { weightFormats } from './quantization';
import { familyOf } from './registry';
import { readTensorTable, type TensorTable } from './safetensors';
import type { ModelSpec, Parameter, StorageType, WeightFormat } from './spec';

interface Place {
  rank: number;
  worldSize: number;
}

/** The part of a model that loading needs; NativeModelRunner has it. */
export interface LoadableModel {
  /**
   * Allocates the weights and reads them from the files. `sources` comes from `packSources`: every
   * parameter of this rank needs exactly one. `onProgress(bytes, tensors)` receives totals. Rejects with OUT_OF_MEMORY, or
   * CHECKPOINT_INVALID if a file is too short or becomes shorter; then no weights stay allocated.
   */
  load(
    files: string[],
    sources: Float64Array,
    onProgress: (bytes: number, tensors: number) => void,
  ): Promise<void>;
  /**
   * Fills the weights with random values (std 0.02, norms 1) from a seed, for benchmarks; ranks get
   * different values.
   */
  loadDummy(seed: number): Promise<void>;
}

/** Bytes of one stored element. */
const STORED_BYTES: Readonly<Record<StorageType, number>> = {
  ...BYTES_PER_ELEMENT,
  float8_e4m3: 1,
};

/** The type that a parameter has on the device. */
function storedTypeOf({ part, isLinear, format }: Parameter, dtype: DType): StorageType {
  if (part === 'scales') return 'float32';
  return part === 'weight' && isLinear ? format.type : dtype;
}

export class ModelLoader {
  /** Whether the output head is the embedding; null before `examine`: as in config.json. */
  #embeddingsTied: boolean | null = null;
  #weightFormats: Record<string, WeightFormat> = {};
  /** The table that `examine` read, for the next `load`. */
  #table: TensorTable | null = null;
  readonly #family: Family;

  /** `declare` gives the parameters that a model's native blocks declare for one rank. */
  constructor(
    private readonly config: UniprocConfig,
    private readonly declare: (spec: ModelSpec, rank: number, worldSize: number) => Parameter[],
  ) {
    this.#family = familyOf(config.model.transformer.architecture);
  }

  /** The forward pass, with tied embeddings and weight formats according to the files. */
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
   * Reads the files' headers and determines whether the output head is the embedding, before the model
   * is made. Rank 0 warns once if the files contradict config.json. Rejects with CheckpointError.
   */
  async examine(device: TensorComparer, rank: number): Promise<void> {
    const { load, model } = this.config;
    const { spec, quantization } = model.transformer;
    if (load.loadFormat === 'dummy') {
      this.#weightFormats = await weightFormats(quantization, this.#declared(), null);
      return;
    }
    const table = await readTensorTable(model.path);
    const isTied = await this.#isTied(table, device);
    const isNewlyUntied = this.#embeddingsTied !== false && spec.tieWordEmbeddings && !isTied;
    if (isNewlyUntied && rank === 0) warnOfUntiedEmbeddings(table);
    this.#embeddingsTied = isTied;
    const names = new ParameterNames(this.#family, table, isTied);
    this.#weightFormats = await weightFormats(quantization, this.#declared(), names);
    this.#table = table;
  }

  /** The whole model's parameters, without quantisation. */
  #declared(changes: Partial<ModelSpec> = {}): Parameter[] {
    return this.declare({ ...this.spec, ...changes, weightFormats: {} }, 0, 1);
  }

  async #isTied(table: TensorTable, device: TensorComparer): Promise<boolean> {
    const { dtype, transformer } = this.config.model;
    if (!transformer.spec.tieWordEmbeddings) return false;
    const untied = this.#declared({ tieWordEmbeddings: false });
    return areEmbeddingsTied(untied, this.#family, table, device, dtype);
  }

  /** Bytes of a rank's share of the weights; scales counted as the files hold them. */
  weightBytes({ rank, worldSize }: Place): WeightBytes {
    const sums: WeightBytes = {};
    for (const parameter of this.declare(this.spec, rank, worldSize)) {
      const type = storedTypeOf(parameter, this.spec.dtype);
      const { shape, experts } = parameter;
      const numTensors = experts?.count ?? 1;
      const count = shape.reduce((product, dimension) => product * dimension.count, numTensors);
      if (count > 0) sums[type] = (sums[type] ?? 0) + count * STORED_BYTES[type];
    }
    return sums;
  }

  /** Loads the weights into a model made from `spec` after `examine`. */
  async load(
    model: LoadableModel,
    place: Place,
    onProgress?: (progress: LoadProgress) => void,
  ): Promise<void> {
    if (this.config.load.loadFormat === 'dummy') return model.loadDummy(this.config.model.seed);
    const table = this.#table ?? (await readTensorTable(this.config.model.path));
    this.#table = null;
    await this.#fill(model, table, place, onProgress);
  }

  /**
   * Loads the weights again from the current files. Rejects with CheckpointError, also if the head was
   * tied and now differs from the embedding.
   */
  async reload(model: LoadableModel, device: TensorComparer, place: Place): Promise<void> {
    const { load, model: config } = this.config;
    if (load.loadFormat === 'dummy') return model.loadDummy(config.seed);
    const table = await readTensorTable(config.path);
    const { spec } = this;
    if (spec.tieWordEmbeddings && !(await this.#isTied(table, device))) {
      throw new CheckpointError(
        table.source,
        'lm_head.weight was equal to the embedding when the model was loaded, but now differs; ' +
          'restore the files, or create the LLM again',
      );
    }
    await this.#fill(model, table, place);
  }

  async #fill(
    model: LoadableModel,
    table: TensorTable,
    { rank, worldSize }: Place,
    onProgress?: (progress: LoadProgress) => void,
  ): Promise<void> {
    const { spec } = this;
    const declared = this.declare(spec, rank, worldSize);
    const { files, sources, totalBytes } = await parameterSources(
      declared,
      spec,
      this.#family,
      table,
    );
    const packed = await packSources(sources);
    const start = performance.now();
    let failure: unknown = null;
    await model.load(files, packed, (bytes, tensors) => {
      try {
        const bytesPerSecond = (1000 * bytes) / (performance.now() - start);
        const totalTensors = sources.length;
        onProgress?.({ bytes, totalBytes, tensors, totalTensors, bytesPerSecond });
      } catch (error) {
        // An exception in a native callback would end the process.
        failure ??= error;
      }
    });
    if (failure !== null) throw failure as Error;
  }
}

/** Warns, as transformers 5, that the files contradict config.json. */
function warnOfUntiedEmbeddings(table: TensorTable): void {
  process.emitWarning(
    `${table.source}: config.json has tie_word_embeddings, but lm_head.weight differs from ` +
      'model.embed_tokens.weight, so they are not tied; set tie_word_embeddings to false in ' +
      'config.json to silence this warning',
    { type: 'CheckpointWarning', code: 'UNIPROC_UNTIED_EMBEDDINGS' },
  );
}
