/** Names of a checkpoint's tensors. */
import type { Family } from './families/family';
import { FAMILIES } from './registry';
import type { TensorTable } from './safetensors';
import type { Parameter } from './spec';

/** Suffix of a matrix's scales, in place of 'weight'. */
export const SCALES_SUFFIX = 'weight_scale_inv';

const SUFFIXES = { weight: 'weight', bias: 'bias', scales: SCALES_SUFFIX } as const;

/** The experts that have a tensor of this parameter; a single null without experts. */
export function* expertsOf({ experts }: Parameter): Generator<number | null> {
  if (experts === null) yield null;
  else for (let expert = 0; expert < experts.size; expert++) yield expert;
}

/** Tensor names of a checkpoint by parameter. */
export class ParameterNames {
  constructor(
    readonly family: Family,
    readonly table: TensorTable,
    private readonly isTied: boolean,
  ) {}

  tensorOf({ layer, module, part }: Parameter, expert: number | null = null): string {
    // A tied embedding may be in the files under the head's name only.
    const isUnderHead = module === 'embedding' && this.isTied && !this.has('embedding');
    const name = this.family.modules[isUnderHead && this.has('head') ? 'head' : module];
    return `${name.replace('{layer}', `${layer}`).replace('{expert}', `${expert}`)}.${SUFFIXES[part]}`;
  }

  /** A tensor of the files that holds all experts of a layer, if any. */
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

/** Tensor names of all families' modules. */
const MODULE_TENSORS = new RegExp(
  `^(${[...new Set([...FAMILIES.values()].flatMap(({ modules }) => Object.values(modules)))]
    .map((module) => module.replaceAll('.', '\\.').replace(/\{(layer|expert)\}/g, '\\d+'))
    .join('|')})\\.(${Object.values(SUFFIXES).join('|')})$`,
);

export function isModuleTensor(name: string): boolean {
  return MODULE_TENSORS.test(name);
}
