/** Reads the native model's spec from a checkpoint's folder. */
import type { DType, ModelSpec } from '../../lib/native';
import { native } from '../../lib/native';
import type { Family } from '../../lib/model/families/family';
import { ParameterNames, renamedTensors } from '../../lib/model/parameterNames';
import { languageModelOf } from '../../lib/model/languageModel';
import {
  quantizedAtLoad,
  type Schemes,
  schemesOf,
  weightFormats,
} from '../../lib/model/quantization';
import { familyOf } from '../../lib/model/registry';
import { readTensorTable, type TensorTable } from '../../lib/model/safetensors';
import { readTransformerConfig } from '../../lib/model/transformerConfig';

export interface CheckpointModel {
  spec: ModelSpec;
  family: Family;
  table: TensorTable;
  /** Default: none. */
  schemes?: Schemes;
}

export async function readModel(
  folder: string,
  dtype: DType = 'float32',
  atLoad?: 'fp8' | 'int4',
): Promise<CheckpointModel> {
  const config = await readTransformerConfig(folder, true);
  const { architecture, multimodal, spec } = config;
  const quantization = atLoad ? quantizedAtLoad(atLoad) : config.quantization;
  const family = familyOf(architecture);
  const whole = await readTensorTable(folder);
  const own = multimodal === null ? whole : (await languageModelOf(whole)).table;
  const table = await renamedTensors(family, own, spec);
  const plain: ModelSpec = { ...spec, dtype, weightFormats: {} };
  const names = new ParameterNames(family, table, spec.tieWordEmbeddings);
  const declared = native().declareParameters(plain, 0, 1);
  const schemes = await schemesOf(quantization, declared, names);
  const formats = weightFormats(schemes, declared);
  return { spec: { ...plain, weightFormats: formats }, family, table, schemes };
}
