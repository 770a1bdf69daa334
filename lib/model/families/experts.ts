/** The experts' keys of config.json. */
import { show } from '../../config/schema';
import { CheckpointError } from '../../errors';
import type { ExpertsSpec } from '../spec';
import type { ConfigJson } from './family';

/** transformers 5 writes num_local_experts, transformers 4 num_experts (of Mixtral: the former too). */
function readNumExperts(file: string, json: ConfigJson, byDefault: number): number {
  const { num_experts: count, num_local_experts: local } = json;
  if (count !== local && typeof count === 'number' && typeof local === 'number') {
    throw new CheckpointError(
      file,
      `num_experts is ${count} and num_local_experts ${local}; both name the same number`,
    );
  }
  return local ?? count ?? byDefault;
}

/** null if no layer has experts. */
export function readExperts(
  file: string,
  json: ConfigJson,
  defaultNumExperts: number,
): ExpertsSpec | null {
  const numExperts = readNumExperts(file, json, defaultNumExperts);
  const step = json.decoder_sparse_step ?? 1;
  const dense = new Set(json.mlp_only_layers);
  const layers = Array.from(
    { length: json.num_hidden_layers },
    (_, layer) => numExperts > 0 && !dense.has(layer) && (layer + 1) % step === 0,
  );
  if (!layers.includes(true)) return null;
  const required = (key: 'num_experts_per_tok' | 'moe_intermediate_size'): number => {
    const value = json[key] ?? null;
    if (value !== null) return value;
    throw new CheckpointError(file, `${key} is ${show(value)}; it must be a positive integer`);
  };
  const numExpertsPerToken = required('num_experts_per_tok');
  if (numExpertsPerToken > numExperts) {
    throw new CheckpointError(
      file,
      `num_experts_per_tok is ${numExpertsPerToken}; it must be at most num_experts, ${numExperts}`,
    );
  }
  return {
    numExperts,
    numExpertsPerToken,
    intermediateSize: required('moe_intermediate_size'),
    normTopkProb: json.norm_topk_prob ?? false,
    sigmoidScores: false,
    scoreBias: false,
    scalesInput: false,
    numGroups: 1,
    numChosenGroups: 1,
    weightScale: 1,
    routerBias: false,
    routerNorm: false,
    expertScales: false,
    bias: false,
    sharedIntermediateSize: 0,
    sharedGate: false,
    besideMlp: false,
    layers,
  };
}

/** Of a family with experts in every layer, which config.json calls its local ones. */
export function readLocalExperts(
  file: string,
  json: ConfigJson,
  defaultNumExperts: number,
): ExpertsSpec {
  const experts = readExperts(
    file,
    {
      ...json,
      moe_intermediate_size: json.intermediate_size,
      norm_topk_prob: true,
      decoder_sparse_step: 1,
      mlp_only_layers: null,
    },
    defaultNumExperts,
  );
  if (experts) return experts;
  throw new CheckpointError(file, 'num_local_experts is 0; it must be a positive integer');
}
