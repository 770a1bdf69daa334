/** The supported architectures by their name in config.json. */
import type { Family } from './families/family';
import { gemma2 } from './families/gemma2';
import { gemma3 } from './families/gemma3';
import { gemma4 } from './families/gemma4';
import { glm4Moe } from './families/glm4Moe';
import { gptOss } from './families/gptOss';
import { granite } from './families/granite';
import { llama } from './families/llama';
import { llama4 } from './families/llama4';
import { ministral } from './families/ministral';
import { ministral3 } from './families/ministral3';
import { mistral } from './families/mistral';
import { mixtral } from './families/mixtral';
import { olmo2 } from './families/olmo2';
import { olmo3 } from './families/olmo3';
import { phi3 } from './families/phi3';
import { qwen2 } from './families/qwen2';
import { qwen2Moe } from './families/qwen2Moe';
import { qwen3 } from './families/qwen3';
import { qwen3Moe } from './families/qwen3Moe';
import { smolLm3 } from './families/smolLm3';

export const FAMILIES: ReadonlyMap<string, Family> = new Map([
  ['LlamaForCausalLM', llama],
  ['Llama4ForCausalLM', llama4],
  ['MistralForCausalLM', mistral],
  ['MinistralForCausalLM', ministral],
  ['Ministral3ForCausalLM', ministral3],
  ['MixtralForCausalLM', mixtral],
  ['Qwen2ForCausalLM', qwen2],
  ['Qwen2MoeForCausalLM', qwen2Moe],
  ['Qwen3ForCausalLM', qwen3],
  ['Qwen3MoeForCausalLM', qwen3Moe],
  ['Phi3ForCausalLM', phi3],
  ['SmolLM3ForCausalLM', smolLm3],
  ['Glm4MoeForCausalLM', glm4Moe],
  ['GptOssForCausalLM', gptOss],
  ['GraniteForCausalLM', granite],
  ['Gemma2ForCausalLM', gemma2],
  ['Gemma3ForCausalLM', gemma3],
  ['Gemma4ForCausalLM', gemma4],
  ['Olmo2ForCausalLM', olmo2],
  ['Olmo3ForCausalLM', olmo3],
]);

/** Throws RangeError for an unsupported architecture. */
export function familyOf(architecture: string): Family {
  const family = FAMILIES.get(architecture);
  if (!family) throw new RangeError(`no family for architecture ${architecture}`);
  return family;
}
