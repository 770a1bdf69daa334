/** Reads the native model's spec from a checkpoint's folder. */
import type { DType, ModelSpec } from '../../lib/native';
import { native } from '../../lib/native';
import type { Family } from '../../lib/model/families/family';
import { ParameterNames } from '../../lib/model/parameterNames';
import { weightFormats } from '../../lib/model/quantization';
import { familyOf } from '../../lib/model/registry';
import { readTensorTable, type TensorTable } from '../../lib/model/safetensors';
import { readTransformerConfig } from '../../lib/model/transformerConfig';

export interface CheckpointModel {
  spec: ModelSpec;
  family: Family;
  table: TensorTable;
}

export async function readModel(
  folder: string,
  dtype: DType = 'float32',
): Promise<CheckpointModel> {
  const { architecture, spec, quantization } = await readTransformerConfig(folder);
  const family = familyOf(architecture);
  const table = await readTensorTable(folder);
  const plain: ModelSpec = { ...spec, dtype, weightFormats: {} };
  const names = new ParameterNames(family, table, spec.tieWordEmbeddings);
  const declared = native().declareParameters(plain, 0, 1);
  const formats = await weightFormats(quantization, declared, names);
  return { spec: { ...plain, weightFormats: formats }, family, table };
}
