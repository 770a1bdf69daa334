/** The option `quantization`. */
import { ConfigError } from '../errors';
import { quantizedAtLoad } from '../model/quantization';
import type { ModelConfig } from './uniprocConfig';

/** The model, to be quantized when it is loaded. Throws ConfigError if it is quantized already. */
export function withQuantization(
  model: ModelConfig,
  method: 'fp8' | 'int4' | undefined,
): ModelConfig {
  if (method === undefined) return model;
  const { quantization, gguf } = model.transformer;
  if (gguf !== null) {
    throw new ConfigError(
      `quantization is '${method}', but ${model.path} is a GGUF file, whose types are kept; leave ` +
        'the option out',
    );
  }
  if (quantization !== null) {
    throw new ConfigError(
      `quantization is '${method}', but the model in ${model.path} is quantized already, by ` +
        `${quantization.method}; leave the option out`,
    );
  }
  return {
    ...model,
    transformer: { ...model.transformer, quantization: quantizedAtLoad(method) },
  };
}
