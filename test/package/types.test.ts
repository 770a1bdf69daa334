/** The package's declarations, as a program in TypeScript sees them. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import ts from 'typescript';
import { buildTypes, compile } from '../support/builtTypes';

const root = path.join(__dirname, '..', '..');
const app = mkdtempSync(path.join(tmpdir(), 'uniproc-types-'));

beforeAll(() => {
  mkdirSync(path.join(app, 'node_modules'));
  symlinkSync(root, path.join(app, 'node_modules', 'uniproc'));
  buildTypes();
});

afterAll(() => {
  rmSync(app, { recursive: true, force: true });
});

const program = `
import { expectTypeOf } from 'expect-type';
import {
  type ChatOptions,
  type ConfigOrArgs,
  type CreateArgs,
  type CreateOptions,
  createUniprocConfig,
  type EngineArgs,
  Executor,
  ExecutorWithExternalLauncher,
  Future,
  HostEvent,
  LLM,
  type ModelRunner,
  type ModelRunnerOutput,
  type ParallelConfig,
  type ReadyEvent,
  type RequestLimits,
  type RpcOptions,
  SamplingParams,
  type SamplingParamsOptions,
  type SchedulerOutput,
  type StepOptions,
  type StepOutput,
  UniProcExecutor,
  type UniprocConfig,
  Worker,
  WorkerBase,
} from 'uniproc';

declare class Mine extends WorkerBase {
  mine: number;
  initDevice(): void;
  loadModel(): void;
  getKvCacheSpec(): ReturnType<WorkerBase['getKvCacheSpec']>;
  determineAvailableMemory(): number;
  initializeFromConfig(): void;
  compileOrWarmUpModel(): number;
  executeModel(schedulerOutput: SchedulerOutput): StepOutput;
  sampleTokens(): null;
  checkHealth(): void;
  shutdown(): void;
}
class Awaiting extends Worker {
  extra = '';
  override async executeModel(schedulerOutput: SchedulerOutput) {
    return super.executeModel(schedulerOutput);
  }
}
declare class Own extends Executor {
  own: string;
  protected initExecutor(): Promise<void>;
  collectiveRpc<T = unknown>(...args: never[]): Future<T>[] & Promise<T[]>;
  shutdown(): Promise<void>;
}
class Recording extends UniProcExecutor {
  recorded = 0;
}

// The worker's class reaches driverWorker, inferred or given.
async function workers() {
  const plain = await LLM.create({ model: 'm' });
  expectTypeOf(plain).toEqualTypeOf<LLM>();
  expectTypeOf(plain.engine.executor.driverWorker.worker).toEqualTypeOf<Worker>();
  expectTypeOf(plain.engine.executor.driverWorker.worker.modelRunner).toEqualTypeOf<ModelRunner>();
  const mine = await LLM.create({ workerCls: Mine });
  expectTypeOf(mine.engine.executor.driverWorker.worker).toEqualTypeOf<Mine>();
  const named = await LLM.create<Mine>({ workerCls: { module: 'm', export: 'Mine' } });
  expectTypeOf(named.engine.executor.driverWorker.worker.mine).toBeNumber();
  const awaiting = await LLM.create({ workerCls: Awaiting });
  expectTypeOf(awaiting.engine.executor.driverWorker.worker.extra).toBeString();
  const [length] = await awaiting.engine.executor.collectiveRpc((w) => w.worker.extra.length);
  expectTypeOf(length).toBeNumber();
  const [future] = mine.engine.executor.collectiveRpc<string>('x', { nonBlock: true });
  expectTypeOf(future).toEqualTypeOf<Future<string>>();
  const own = await LLM.create({ distributedExecutorBackend: Own });
  expectTypeOf(own.engine.executor.own).toBeString();
  const recording = await LLM.create({ distributedExecutorBackend: Recording });
  expectTypeOf(recording.engine.executor.recorded).toBeNumber();
  const args: EngineArgs = { model: 'm' };
  expectTypeOf(await LLM.create(args)).toEqualTypeOf<LLM>();
  // @ts-expect-error: no worker
  await LLM.create({ workerCls: Date });
  // @ts-expect-error: no executor
  await LLM.create({ distributedExecutorBackend: 'mp' });
  // @ts-expect-error: no option
  await LLM.create({ modell: 'm' });
}

// Executors take options or a configuration.
async function executors(config: UniprocConfig) {
  expectTypeOf(await UniProcExecutor.create({ model: 'm' })).toEqualTypeOf<UniProcExecutor>();
  expectTypeOf(await UniProcExecutor.create(config)).toEqualTypeOf<UniProcExecutor>();
  const mine = await UniProcExecutor.create({ workerCls: Mine });
  expectTypeOf(mine.driverWorker.worker).toEqualTypeOf<Mine>();
  const given = await UniProcExecutor.create<Mine>(config);
  expectTypeOf(given.driverWorker.worker).toEqualTypeOf<Mine>();
  const rank = await ExecutorWithExternalLauncher.create({ workerCls: Awaiting, seed: 0 });
  expectTypeOf(rank).toEqualTypeOf<ExecutorWithExternalLauncher<Awaiting>>();
  expectTypeOf(await Recording.create(config)).toEqualTypeOf<Recording>();
  expectTypeOf(await createUniprocConfig({ workerCls: Mine })).toEqualTypeOf<UniprocConfig>();
  expectTypeOf<EngineArgs>().toExtend<ConfigOrArgs>();
}

// The only static method of SamplingParams is the one for users.
expectTypeOf<keyof typeof SamplingParams>().toEqualTypeOf<'prototype' | 'fromDefaults'>();

// A host event is what an output's ready is.
expectTypeOf<HostEvent>().toExtend<ReadyEvent>();
expectTypeOf(new HostEvent().signal()).toBeVoid();
class Logged extends HostEvent {
  override signal() {
    super.signal();
  }
}
expectTypeOf<Logged>().toExtend<HostEvent>();
expectTypeOf<ModelRunnerOutput>().toExtend<StepOutput>();

// No public option is unknown or any.
type Vague<T> = { [K in keyof T]-?: unknown extends T[K] ? K : never }[keyof T];
expectTypeOf<Vague<CreateArgs>>().toBeNever();
expectTypeOf<Vague<EngineArgs>>().toBeNever();
expectTypeOf<Vague<ParallelConfig>>().toBeNever();
expectTypeOf<Vague<RequestLimits>>().toBeNever();
expectTypeOf<Vague<SamplingParamsOptions>>().toBeNever();
expectTypeOf<Vague<ChatOptions>>().toBeNever();
expectTypeOf<Vague<CreateOptions>>().toBeNever();
expectTypeOf<Vague<RpcOptions>>().toBeNever();
expectTypeOf<Vague<StepOptions>>().toBeNever();

export { executors, workers };
`;

test.each(['commonjs.cts', 'module.mts'])('hold in %s', (file) => {
  compile(app, { [file]: program });
});

test('declare nothing that index.ts does not export', () => {
  const file = path.join(root, 'dist', 'index.d.ts');
  const source = ts.createSourceFile(file, readFileSync(file, 'utf8'), ts.ScriptTarget.Latest);
  const isExported = (node: ts.Statement) =>
    ts.canHaveModifiers(node) &&
    ts.getModifiers(node)?.some(({ kind }) => kind === ts.SyntaxKind.ExportKeyword) === true;
  const inClause = source.statements
    .filter(ts.isExportDeclaration)
    .flatMap(({ exportClause }) =>
      exportClause && ts.isNamedExports(exportClause) ? [...exportClause.elements] : [],
    )
    .map(({ name, propertyName }) => (propertyName ?? name).text);
  const hidden = source.statements
    .filter((node) => !isExported(node))
    .flatMap((node) => {
      if (ts.isVariableStatement(node)) {
        return node.declarationList.declarations.map(({ name }) => name.getText(source));
      }
      const { name } = node as { name?: ts.Identifier };
      return name ? [name.text] : [];
    })
    .filter((name) => !inClause.includes(name));
  // The options without the bounds on W and E that the exported EngineArgs adds.
  expect(hidden).toEqual(['EngineArgs']);
});
