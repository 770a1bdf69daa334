/** The models of a handler, by the names under which clients ask for them. */
import path from 'node:path';
import type { UniprocConfig } from '../config/uniprocConfig';
import { ConfigError } from '../errors';
import { nameOfSnapshot } from '../hub/cache';
import type { LLM } from '../llm';
import { isOptionsObject } from '../realm';
import { AwakeModels } from './awakeModels';
import { HttpError } from './httpError';
import { ModelMetrics } from './modelMetrics';

/** The parts of an LLM, with any executor and worker, that a handler uses. */
export interface ServableLLM extends Pick<
  LLM,
  | 'tokenizer'
  | 'generate'
  | 'chat'
  | 'stream'
  | 'chatStream'
  | 'embed'
  | 'stats'
  | 'startup'
  | 'checkHealth'
  | 'events'
  | 'sleep'
  | 'wakeUp'
> {
  readonly engine: {
    readonly config: UniprocConfig;
    readonly executor: { readonly isSleeping: boolean };
    readonly numUnfinishedRequests: number;
  };
}

/** What `createHandler` serves: one LLM, named after its folder, or several by name. */
export type Served = ServableLLM | { readonly models: Readonly<Record<string, ServableLLM>> };

export interface ServedModel {
  readonly name: string;
  readonly llm: ServableLLM;
  readonly metrics: ModelMetrics;
  /** Seconds since the Unix epoch at which the handler was created. */
  readonly created: number;
}

export class ServedModels {
  /** Never empty. */
  readonly all: readonly ServedModel[];

  /** Throws ConfigError unless there is a model. */
  constructor(served: Served) {
    const created = Math.floor(Date.now() / 1000);
    const entries = Object.entries(modelsOf(served));
    if (entries.length === 0) throw new ConfigError('createHandler: there is no model to serve');
    const distinct = new Set(Object.values(modelsOf(served)));
    const awake = new AwakeModels(distinct);
    // A model may have several names; its requests are counted once, under the first.
    const models = new Map<ServableLLM, Pick<ServedModel, 'llm' | 'metrics'>>();
    this.all = entries.map(([name, llm]) => {
      const own = models.get(llm) ?? {
        // A program that puts its only model to sleep does not want it woken.
        llm: distinct.size > 1 ? awake.waking(llm) : llm,
        metrics: new ModelMetrics(name, llm),
      };
      models.set(llm, own);
      return { name, created, ...own };
    });
  }

  /** Without a name, the first model. Throws HttpError 404. */
  find(name: unknown): ServedModel {
    if (name === undefined || name === null) return this.all[0];
    const model = this.all.find((each) => each.name === name);
    if (model !== undefined) return model;
    const shown = typeof name === 'string' ? name.slice(0, 200) : typeof name;
    throw new HttpError(404, `The model \`${shown}\` does not exist.`, 'model');
  }
}

function isLLM(value: unknown): value is ServableLLM {
  // By its methods, for an LLM of another copy of the package.
  if (typeof value !== 'object' || value === null) return false;
  const { engine, chatStream } = value as Partial<ServableLLM>;
  return typeof engine === 'object' && typeof chatStream === 'function';
}

/** Its name on the hub, if it comes from the hub's cache, else its folder's name. */
export function modelNameOf({ engine }: Pick<ServableLLM, 'engine'>): string {
  const { path: folder } = engine.config.model;
  return nameOfSnapshot(folder) ?? path.basename(folder);
}

function modelsOf(served: Served): Readonly<Record<string, ServableLLM>> {
  if (isLLM(served)) return { [modelNameOf(served)]: served };
  const { models } = (isOptionsObject(served) ? served : {}) as { models?: unknown };
  if (!isOptionsObject(models)) {
    throw new ConfigError('createHandler takes an LLM or { models: { name: LLM } }');
  }
  const other = Object.keys(models).find((name) => !isLLM(models[name]));
  if (other !== undefined) throw new ConfigError(`createHandler: models.${other} is not an LLM`);
  return models as Readonly<Record<string, ServableLLM>>;
}
