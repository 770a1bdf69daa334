/** How a worker's model gets its weights: from the checkpoint's files, or at random ('dummy'). */
import type { LoadProgress, UniprocConfig } from '../config/uniprocConfig';
import { CheckpointError } from '../errors';
import {
  type ModelSpec,
  type NativeDevice,
  type NativeModel,
  type Parameter,
  type WeightFormat,
} from '../native';
import type { Family } from './families/family';
import { ParameterNames } from './parameterNames';
import { areEmbeddingsTied, parameterSources } from './parameterSources';
import { weightFormats } from './quantization';
import { familyOf } from './registry';
import { readTensorTable, type TensorTable } from './safetensors';

/** A rank's place among those that share the model. */
interface Place {
  rank: number;
  worldSize: number;
}

export class ModelLoader {
  /** The output head is the embedding; null before the files were looked at: as config.json says. */
  #embeddingsTied: boolean | null = null;
  #weightFormats: Record<string, WeightFormat> = {};
  /** What `examine` found, for the `load` that follows it. */
  #table: TensorTable | null = null;
  readonly #family: Family;

  /** `declare` gives the parameters that a model's native blocks declare for one rank. */
  constructor(
    private readonly config: UniprocConfig,
    private readonly declare: (spec: ModelSpec, rank: number, worldSize: number) => Parameter[],
  ) {
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
      this.#weightFormats = await weightFormats(quantization, this.#declared(), null);
      return;
    }
    const table = await readTensorTable(model.path);
    const isTied = await this.#isTied(table, device);
    const isNews = this.#embeddingsTied !== false && spec.tieWordEmbeddings && !isTied;
    if (isNews && rank === 0) warnOfUntiedEmbeddings(table);
    this.#embeddingsTied = isTied;
    const names = new ParameterNames(this.#family, table, isTied);
    this.#weightFormats = await weightFormats(quantization, this.#declared(), names);
    this.#table = table;
  }

  /** The whole model's parameters, without quantisation. */
  #declared(changes: Partial<ModelSpec> = {}): Parameter[] {
    return this.declare({ ...this.spec, ...changes, weightFormats: {} }, 0, 1);
  }

  async #isTied(table: TensorTable, device: NativeDevice): Promise<boolean> {
    const { dtype, transformer } = this.config.model;
    if (!transformer.spec.tieWordEmbeddings) return false;
    const untied = this.#declared({ tieWordEmbeddings: false });
    return areEmbeddingsTied(untied, this.#family, table, device, dtype);
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
    if (spec.tieWordEmbeddings && !(await this.#isTied(table, device))) {
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
    const { spec } = this;
    const declared = this.declare(spec, rank, worldSize);
    const { files, sources, totalBytes } = await parameterSources(
      declared,
      spec,
      this.#family,
      table,
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
