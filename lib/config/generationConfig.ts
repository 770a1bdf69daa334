/** A checkpoint's generation_config.json: default sampling parameters and end-of-sequence ids. */
import path from 'node:path';
import { z } from 'zod';
import { CheckpointError } from '../errors';
import { fileExists, readJsonObject } from './jsonFile';
import { SamplingParams } from './samplingParams';
import { parseFields } from './schema';
import { eosTokenId } from '../model/families/family';
import { checkTokenIds } from '../model/transformerConfig';
import type { GenerationDefaults } from './uniprocConfig';

export interface GenerationConfig {
  defaults: GenerationDefaults;
  /** null when the file does not name them. */
  eosTokenIds: number[] | null;
}

const schema = z.looseObject({
  temperature: z.number().min(0).nullish().describe('a number of at least 0, or null'),
  top_p: z.number().gt(0).max(1).nullish().describe('a number above 0 and up to 1, or null'),
  top_k: z.int().min(-1).nullish().describe('an integer of at least -1, or null'),
  min_p: z.number().min(0).max(1).nullish().describe('a number from 0 to 1, or null'),
  repetition_penalty: z.number().gt(0).nullish().describe('a number above 0, or null'),
  max_new_tokens: z.int().min(1).nullish().describe('an integer of at least 1, or null'),
  eos_token_id: eosTokenId,
});

/**
 * Reads `folder`/generation_config.json, which is optional. As in vLLM its sampling values apply
 * regardless of `do_sample`. Throws CheckpointError.
 */
export async function readGenerationConfig(
  folder: string,
  vocabSize: number,
): Promise<GenerationConfig> {
  const file = path.join(folder, 'generation_config.json');
  if (!(await fileExists(file))) return { defaults: {}, eosTokenIds: null };
  return parseGenerationConfig(file, await readJsonObject(file), vocabSize);
}

/** Parses `given`, the content of `file`. Throws CheckpointError. */
export function parseGenerationConfig(
  file: string,
  given: Record<string, unknown>,
  vocabSize: number,
): GenerationConfig {
  const json = parseFields(schema, given, (message) => new CheckpointError(file, message));
  const eosTokenIds = json.eos_token_id == null ? null : [json.eos_token_id].flat();
  checkTokenIds(file, 'eos_token_id', eosTokenIds ?? [], vocabSize);
  const values = {
    temperature: json.temperature,
    topP: json.top_p,
    topK: json.top_k,
    minP: json.min_p,
    repetitionPenalty: json.repetition_penalty,
    maxTokens: json.max_new_tokens,
  };
  const defaults = Object.fromEntries(
    Object.entries(values).filter(([, value]) => value != null),
  ) as GenerationDefaults;
  try {
    // SamplingParams has the limits; report the file, not the request.
    new SamplingParams(defaults);
  } catch (cause) {
    throw new CheckpointError(file, (cause as Error).message, { cause });
  }
  return { defaults, eosTokenIds };
}
