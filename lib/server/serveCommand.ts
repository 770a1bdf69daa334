/** `uniproc serve`: loads models, serves them until a signal, drains and ends. */
import { ConfigError } from '../errors';
import { LLM } from '../llm';
import { AwakeModels } from './awakeModels';
import { createHandler } from './handler';
import { NodeServer } from './nodeServer';
import { modelNameOf } from './servedModels';
import { parseServeArguments, type ServeArguments, USAGE } from './serveArguments';

const SIGNALS = ['SIGTERM', 'SIGINT'] as const;

/** Resolves once the server was told to end and has ended. Rejects with ConfigError or as LLM.create. */
export async function runServe(args: readonly string[]): Promise<void> {
  const parsed = parseServeArguments(args);
  if (parsed === null) {
    process.stdout.write(USAGE);
    return;
  }
  // The server outlives the reader of its output.
  process.stdout.on('error', () => {});
  const llms = await loadAll(parsed);
  try {
    await serveUntilSignal(llms, parsed);
  } finally {
    await Promise.all([...llms.values()].map((llm) => llm.shutdown()));
  }
}

/** The models by every name of each. */
async function loadAll({
  models,
  names,
  revision,
  reply,
  engine,
}: ServeArguments): Promise<Map<string, LLM>> {
  const loaded: LLM[] = [];
  const byName = new Map<string, LLM>();
  try {
    // One after another: each takes its share of the memory, and earlier ones sleep where it is short.
    for (const [i, model] of models.entries()) {
      const create = () => LLM.create({ ...engine, ...reply, model, revision });
      const llm = await new AwakeModels(loaded).withRoom(create);
      loaded.push(llm);
      for (const name of names[i].length > 0 ? names[i] : [modelNameOf(llm)]) {
        if (byName.has(name)) {
          throw new ConfigError(
            `two models have the name ${name}; give each a name with --served-model-name`,
          );
        }
        byName.set(name, llm);
      }
    }
    return byName;
  } catch (error) {
    await Promise.all(loaded.map((llm) => llm.shutdown()));
    throw error;
  }
}

async function serveUntilSignal(
  llms: ReadonlyMap<string, LLM>,
  { handler: options, server: serverOptions, drainTimeoutMs }: ServeArguments,
): Promise<void> {
  const handler = createHandler({ models: Object.fromEntries(llms) }, options);
  const server = await NodeServer.listen(handler, serverOptions);
  process.stdout.write(`serving ${[...llms.keys()].join(', ')} on ${server.url}\n`);
  const cut = new AbortController();
  await new Promise<void>((resolve) => {
    let numSignals = 0;
    const stop = () => {
      if (++numSignals === 1) resolve();
      else cut.abort();
    };
    for (const signal of SIGNALS) process.on(signal, stop);
  });
  process.stdout.write('shutting down: waiting for running requests\n');
  await server.drain(drainTimeoutMs, cut.signal);
}
