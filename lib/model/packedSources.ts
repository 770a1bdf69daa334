/** Sources in the form that the native model reads at once. */
import { slicedWork } from '../slicedWork';
import type { ParameterSource, StorageType, TensorLayout } from './spec';

/** In the order of native/base/types.h. */
const STORAGE_TYPES: readonly StorageType[] = [
  'float32',
  'float16',
  'bfloat16',
  'float8_e4m3',
  'int8',
  'uint4',
  'float4_e2m1',
  'q4_0',
  'q4_1',
  'q5_0',
  'q5_1',
  'q8_0',
  'q2_k',
  'q3_k',
  'q4_k',
  'q5_k',
  'q6_k',
  'iq4_nl',
  'iq4_xs',
  'mxfp4',
];
/** In the order of native/model/tensor_layout.h. */
const LAYOUTS: readonly TensorLayout[] = [
  'rows',
  'oneForAll',
  'transposed',
  'gptq',
  'gptqV2',
  'awq',
  'packedRows',
  'interleavedHeads',
];
/** Numbers per source, as in native/addon/model_values.cpp. */
const WIDTH = 10;

/**
 * Packs sources into Float64Array [numSources, 10]: parameter, expert or -1, file, offset, indices of
 * the storage type and the layout, rows of the tensor and the first of the parameter, strides of rows
 * and columns or 0. The addon would take a microsecond for each source that is an object, on the
 * JavaScript thread; a large model has tens of thousands.
 */
export async function packSources(sources: readonly ParameterSource[]): Promise<Float64Array> {
  const packed = new Float64Array(WIDTH * sources.length);
  function* pack() {
    for (const [i, source] of sources.entries()) {
      const { parameter, expert = -1, file, offset, layout = 'rows' } = source;
      const kinds = [STORAGE_TYPES.indexOf(source.dtype), LAYOUTS.indexOf(layout)];
      const rows = [source.wholeRows ?? 0, source.firstRow ?? 0];
      const strides = [source.strides?.row ?? 0, source.strides?.col ?? 0];
      packed.set([parameter, expert, file, offset, ...kinds, ...rows, ...strides], WIDTH * i);
      yield;
    }
  }
  await slicedWork.finish(pack());
  return packed;
}
