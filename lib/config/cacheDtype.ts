/** The option `kvCacheDtype`. */
import type { CacheDType } from './dtype';
import type { ModelConfig } from './uniprocConfig';

/**
 * Type of the KV cache: 'auto' is the checkpoint's, fp8 if its quantization names it, as in vLLM, and
 * otherwise the model's.
 */
export function cacheDtypeOf(
  { dtype, transformer }: ModelConfig,
  option: 'auto' | 'fp8' = 'auto',
): CacheDType {
  const isFp8 = option === 'fp8' || transformer.quantization?.cacheDtype === 'float8_e4m3';
  return isFp8 ? 'float8_e4m3' : dtype;
}
