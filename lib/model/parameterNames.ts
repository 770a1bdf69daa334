/** What a checkpoint calls the tensors of the parameters that a model declares. */
import type { Parameter } from '../native';
import type { Family } from './families/family';
import { FAMILIES } from './registry';
import type { TensorTable } from './safetensors';

/** The name that a matrix's scales have beside its '.weight'. */
export const SCALES_SUFFIX = 'weight_scale_inv';

const SUFFIXES = { weight: 'weight', bias: 'bias', scales: SCALES_SUFFIX } as const;

/** The indices of the experts that have a tensor each; null alone where there is a single tensor. */
export function* expertsOf({ experts }: Parameter): Generator<number | null> {
  if (experts === null) yield null;
  else for (let expert = 0; expert < experts.size; expert++) yield expert;
}

/** The names of one checkpoint's tensors. */
export class ParameterNames {
  constructor(
    readonly family: Family,
    readonly table: TensorTable,
    private readonly isTied: boolean,
  ) {}

  tensorOf({ layer, module, part }: Parameter, expert: number | null = null): string {
    // Tied, it may stand in the files under the head's name alone.
    const isUnderHead = module === 'embedding' && this.isTied && !this.has('embedding');
    const name = this.family.modules[isUnderHead && this.has('head') ? 'head' : module];
    return `${name.replace('{layer}', `${layer}`).replace('{expert}', `${expert}`)}.${SUFFIXES[part]}`;
  }

  /** A tensor that holds all experts of a layer, where the files have one; else undefined. */
  stackedExperts({ layer, module }: Parameter): string | undefined {
    const [prefix] = this.family.modules[module].replace('{layer}', `${layer}`).split('{expert}');
    return [...this.table.tensors.keys()].find(
      (name) => name.startsWith(prefix) && !/^\d/.test(name.slice(prefix.length)),
    );
  }

  private has(module: string): boolean {
    return this.table.tensors.has(`${this.family.modules[module]}.weight`);
  }
}

/** Names of tensors that change what a layer computes, of any family. */
const MODULE_TENSORS = new RegExp(
  `^(${[...new Set([...FAMILIES.values()].flatMap(({ modules }) => Object.values(modules)))]
    .map((module) => module.replaceAll('.', '\\.').replace(/\{(layer|expert)\}/g, '\\d+'))
    .join('|')})\\.(${Object.values(SUFFIXES).join('|')})$`,
);

export function isModuleTensor(name: string): boolean {
  return MODULE_TENSORS.test(name);
}
