/** The supported architectures by their name in config.json. */
import type { Family } from './families/family';
import { llama } from './families/llama';
import { mistral } from './families/mistral';
import { qwen2 } from './families/qwen2';
import { qwen3 } from './families/qwen3';
import { qwen3Moe } from './families/qwen3Moe';

export const FAMILIES: ReadonlyMap<string, Family> = new Map([
  ['LlamaForCausalLM', llama],
  ['MistralForCausalLM', mistral],
  ['Qwen2ForCausalLM', qwen2],
  ['Qwen3ForCausalLM', qwen3],
  ['Qwen3MoeForCausalLM', qwen3Moe],
]);

/** Throws RangeError for an unsupported architecture. */
export function familyOf(architecture: string): Family {
  const family = FAMILIES.get(architecture);
  if (!family) throw new RangeError(`no family for architecture ${architecture}`);
  return family;
}
