/** Every campaign, in the order in which they run. */
import type { Campaign, NativeCampaign } from '../campaign';
import { config, generationConfig } from './config';
import { control } from './control';
import { engine } from './engine';
import { gguf } from './gguf';
import { handshake, mesh } from './native';
import { safetensors, safetensorsIndex } from './safetensors';
import { sampler } from './sampler';
import { schemas } from './schema';
import { store } from './store';
import { tokenizer } from './tokenizer';

export const campaigns: readonly (Campaign | NativeCampaign)[] = [
  safetensors,
  safetensorsIndex,
  gguf,
  config,
  generationConfig,
  tokenizer,
  store,
  control,
  handshake,
  mesh,
  sampler,
  schemas,
  engine,
];
