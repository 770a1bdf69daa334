/** Names of a checkpoint's tensors. */
import type { TransformerSpec } from '../config/uniprocConfig';
import { slicedWork } from '../slicedWork';
import type { Family } from './families/family';
import { FAMILIES } from './registry';
import type { TensorTable } from './safetensors';
import type { Parameter } from './spec';
import { MODULE_SUFFIXES } from './storedTensors';

/** The experts that have a tensor of this parameter; a single null without experts. */
export function* expertsOf({ experts }: Parameter): Generator<number | null> {
  if (experts === null) yield null;
  else for (let expert = 0; expert < experts.size; expert++) yield expert;
}

/** Tensor names of a checkpoint by parameter. */
export class ParameterNames {
  readonly #modulesByName = new Map<string, string[]>();

  constructor(
    readonly family: Family,
    readonly table: TensorTable,
    private readonly isTied: boolean,
  ) {}

  /** The tensor of a weight or bias that is not quantized. */
  tensorOf(parameter: Parameter, expert: number | null = null): string {
    return `${this.baseOf(parameter, expert)}.${parameter.part}`;
  }

  /** The name of a parameter's module, of which its tensors add their suffix. */
  baseOf({ layer, module }: Parameter, expert: number | null = null): string {
    // A tied embedding may be in the files under the head's name only.
    const isUnderHead = module === 'embedding' && this.isTied && !this.has('embedding');
    const name = this.family.modules[isUnderHead && this.has('head') ? 'head' : module];
    return name.replace('{layer}', `${layer}`).replace('{expert}', `${expert}`);
  }

  /** The modules that are rows of the parameter's tensor, usually its own alone. */
  modulesInTensorOf({ module }: Parameter): string[] {
    const name = this.family.modules[module];
    const known = this.#modulesByName.get(name);
    if (known) return known;
    const modules = Object.keys(this.family.modules).filter(
      (each) => this.family.modules[each] === name,
    );
    this.#modulesByName.set(name, modules);
    return modules;
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

/** The table with the names of the family's modules. Rejects with CheckpointError. */
export async function renamedTensors(
  family: Family,
  table: TensorTable,
  spec: TransformerSpec,
): Promise<TensorTable> {
  let { tensors } = table;
  function* rename() {
    if (family.renameTensors) tensors = yield* family.renameTensors(table, spec);
  }
  await slicedWork.finish(rename());
  return { ...table, tensors };
}

/** Tensor names of all families' modules. */
const MODULE_TENSORS = new RegExp(
  `^(${[...new Set([...FAMILIES.values()].flatMap(({ modules }) => Object.values(modules)))]
    .map((module) => module.replaceAll('.', '\\.').replace(/\{(layer|expert)\}/g, '\\d+'))
    .join('|')})\\.(${MODULE_SUFFIXES.join('|')})$`,
);

export function isModuleTensor(name: string): boolean {
  return MODULE_TENSORS.test(name);
}
