/** Loads a model's weights: from the checkpoint's files, or random ('dummy'). */
import { isDeepStrictEqual } from 'node:util';
import type { DType } from '../config/dtype';
import type { LoadProgress, UniprocConfig } from '../config/uniprocConfig';
import type { WeightBytes } from '../contract/workerSummary';
import { CheckpointError } from '../errors';
import { readCacheScales } from './cacheScales';
import type { Family } from './families/family';
import { ggufFamilyOf, isInterleaved } from './gguf/config';
import { ggufFormats } from './gguf/formats';
import { readGgufTable } from './gguf/table';
import { languageModelOf } from './languageModel';
import { packSources } from './packedSources';
import { embeddingTensors } from './pooling';
import { ParameterNames, renamedTensors } from './parameterNames';
import { areEmbeddingsTied, parameterSources, type TensorComparer } from './parameterSources';
import { type Schemes, schemesOf, weightFormats } from './quantization';
import { familyOf } from './registry';
import { readTensorTable, type TensorTable } from './safetensors';
import { slicedWork } from '../slicedWork';
import {
  type Fp8CacheSpec,
  type ModelSpec,
  type Parameter,
  STORED_BYTES,
  type StorageType,
  type WeightFormat,
} from './spec';

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

/** The type that a parameter has on the device. */
function storedTypeOf({ part, format }: Parameter, dtype: DType): StorageType {
  switch (part) {
    case 'scales':
      return format.type === 'float4_e2m1' ? 'int8' : 'float32';
    case 'zeros':
      return 'int8';
    case 'order':
      return 'float32'; // as wide as its integers
    default:
      return part === 'weight' ? format.type : dtype;
  }
}

export class ModelLoader {
  /** Whether the output head is the embedding; null before `examine`: as in config.json. */
  #embeddingsTied: boolean | null = null;
  #schemes: Schemes = new Map();
  #weightFormats: Record<string, WeightFormat> = {};
  /** Undefined if keys and values are cached in the model's type. */
  #fp8Cache: Fp8CacheSpec | undefined;
  /** The table that `examine` read, for the next `load`. */
  #table: TensorTable | null = null;
  readonly #family: Family;

  /** `declare` gives the parameters that a model's native blocks declare for one rank. */
  constructor(
    private readonly config: UniprocConfig,
    private readonly declare: (spec: ModelSpec, rank: number, worldSize: number) => Parameter[],
  ) {
    const { architecture, gguf } = config.model.transformer;
    this.#family = gguf === null ? familyOf(architecture) : ggufFamilyOf(architecture, gguf);
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
      ...(this.#fp8Cache && { fp8Cache: this.#fp8Cache }),
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
      const none = { source: '', files: [], tensors: new Map() };
      const names = new ParameterNames(this.#family, none, false);
      this.#setSchemes(await schemesOf(quantization, this.#declared(), names, false));
      this.#fp8Cache = await this.#readCacheScales(none);
      return;
    }
    const table = await this.#readTable(rank === 0 && this.#embeddingsTied === null);
    const isTied = await this.#isTied(table, device);
    const isNewlyUntied = this.#embeddingsTied !== false && spec.tieWordEmbeddings && !isTied;
    if (isNewlyUntied && rank === 0) warnOfUntiedEmbeddings(table);
    this.#embeddingsTied = isTied;
    const names = new ParameterNames(this.#family, table, isTied);
    if (model.transformer.gguf === null) {
      this.#setSchemes(await schemesOf(quantization, this.#declared(), names));
    } else {
      const { kind } = this.config.device;
      this.#weightFormats = await ggufFormats(this.#declared(), names, kind);
    }
    this.#fp8Cache = await this.#readCacheScales(table);
    this.#table = table;
  }

  #setSchemes(schemes: Schemes): void {
    this.#schemes = schemes;
    this.#weightFormats = weightFormats(schemes, this.#declared());
  }

  async #readCacheScales(table: TensorTable): Promise<Fp8CacheSpec | undefined> {
    const { cache, model } = this.config;
    if (cache.dtype !== 'float8_e4m3') return undefined;
    return readCacheScales(this.#family, table, model.transformer.spec.numLayers);
  }

  /** The headers of the files; of a multimodal model, of its language model's tensors. */
  async #readTable(warns = false): Promise<TensorTable> {
    const { path, transformer } = this.config.model;
    if (transformer.gguf !== null) {
      const table = await readGgufTable(path, transformer.spec);
      return { ...table, isInterleaved: isInterleaved(transformer.gguf) };
    }
    const stored = await readTensorTable(path);
    const whole = transformer.spec.poolsLastToken ? await ofEmbeddingModel(stored) : stored;
    const rename = (table: TensorTable) => renamedTensors(this.#family, table, transformer.spec);
    if (transformer.multimodal === null) return rename(whole);
    const { table, leftOut } = await languageModelOf(whole);
    if (warns && leftOut.size > 0) warnOfLeftOut(whole, transformer.multimodal, leftOut);
    return rename(table);
  }

  /** The whole model's parameters, without quantisation. */
  #declared(changes: Partial<ModelSpec> = {}): Parameter[] {
    return this.declare({ ...this.spec, ...changes, weightFormats: {} }, 0, 1);
  }

  async #isTied(table: TensorTable, device: TensorComparer): Promise<boolean> {
    const { dtype, transformer } = this.config.model;
    if (transformer.spec.poolsLastToken) return true; // there is no head
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
    const table = this.#table ?? (await this.#readTable());
    this.#table = null;
    await this.#fill(model, table, place, onProgress);
  }

  /**
   * Loads the weights again from the current files. Rejects with CheckpointError, also if the head was
   * tied and now differs from the embedding, or if the KV cache's scales differ.
   */
  async reload(model: LoadableModel, device: TensorComparer, place: Place): Promise<void> {
    const { load, model: config } = this.config;
    if (load.loadFormat === 'dummy') return model.loadDummy(config.seed);
    const table = await this.#readTable();
    const { spec } = this;
    if (spec.tieWordEmbeddings && !(await this.#isTied(table, device))) {
      throw new CheckpointError(
        table.source,
        'lm_head.weight was equal to the embedding when the model was loaded, but now differs; ' +
          'restore the files, or create the LLM again',
      );
    }
    if (!isDeepStrictEqual(await this.#readCacheScales(table), this.#fp8Cache)) {
      throw new CheckpointError(
        table.source,
        'the scales of the KV cache differ from those when the model was loaded; restore the files, ' +
          'or create the LLM again',
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
      this.#schemes,
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

async function ofEmbeddingModel(table: TensorTable): Promise<TensorTable> {
  let tensors = table.tensors;
  function* rename() {
    tensors = yield* embeddingTensors(table);
  }
  await slicedWork.finish(rename());
  return { ...table, tensors };
}

/** Warns of the parts of a multimodal model that languageModelOnly leaves out. */
function warnOfLeftOut(
  { source }: TensorTable,
  architecture: string,
  leftOut: ReadonlyMap<string, number>,
): void {
  const parts = [...leftOut].map(([module, count]) => `${module} (${count} tensors)`);
  process.emitWarning(
    `${source}: the language model of ${architecture} is loaded alone; left out: ${parts.join(', ')}`,
    { type: 'CheckpointWarning', code: 'UNIPROC_LANGUAGE_MODEL_ONLY' },
  );
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
