/** Activations by their names in transformers' ACT2FN. */
import { show } from '../config/schema';
import { UnsupportedModelError } from '../errors';
import type { ModelSpec } from './spec';

const ACTIVATIONS: ReadonlyMap<string, ModelSpec['activation']> = new Map([
  ['silu', 'silu'],
  ['swish', 'silu'],
  ['gelu', 'gelu'],
  ['gelu_python', 'gelu'],
  ['gelu_new', 'geluTanh'],
  ['gelu_fast', 'geluTanh'],
  ['gelu_accurate', 'geluTanh'],
  ['gelu_pytorch_tanh', 'geluTanh'],
  ['gelu_python_tanh', 'geluTanh'],
]);

/** The activation that `key` of config.json names. Throws UnsupportedModelError for another. */
export function readActivation(file: string, key: string, name: string): ModelSpec['activation'] {
  const activation = ACTIVATIONS.get(name);
  if (activation) return activation;
  throw new UnsupportedModelError(
    file,
    `${key} ${show(name)} is not supported; supported: ${[...ACTIVATIONS.keys()].join(', ')}`,
  );
}
