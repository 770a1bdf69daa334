/** Sources in the form that the native model reads at once. */
import { slicedWork } from '../slicedWork';
import type { ParameterSource, StorageType } from './spec';

/** In the order of native/base/types.h. */
const STORAGE_TYPES: readonly StorageType[] = ['float32', 'float16', 'bfloat16', 'float8_e4m3'];
/** Numbers per source, as in native/addon/model_values.cpp. */
const WIDTH = 5;

/**
 * Packs sources into Float64Array [numSources, 5]: parameter, expert or -1, file, offset, index of
 * the storage type. The addon would take a microsecond for each source that is an object, on the
 * JavaScript thread; a large model has tens of thousands.
 */
export async function packSources(sources: readonly ParameterSource[]): Promise<Float64Array> {
  const packed = new Float64Array(WIDTH * sources.length);
  function* pack() {
    for (const [i, { parameter, expert = -1, file, offset, dtype }] of sources.entries()) {
      packed.set([parameter, expert, file, offset, STORAGE_TYPES.indexOf(dtype)], WIDTH * i);
      yield;
    }
  }
  await slicedWork.finish(pack());
  return packed;
}
