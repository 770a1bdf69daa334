/** Loads classes that a config references as `{ module, export }`. */
import { createRequire } from 'node:module';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { ConfigError } from '../errors';

type Class = abstract new (...args: never[]) => object;

/**
 * Loads a ClassReference; undefined if it is none. Modules are resolved as by `require` from the
 * working directory: a path or package name, CommonJS or ES module. Rejects with ConfigError if the
 * module or export does not exist or is no class.
 */
export async function loadClass(reference: unknown): Promise<Class | undefined> {
  if (typeof reference === 'function') return reference as unknown as Class;
  const { module, export: name } = (reference ?? {}) as Record<string, unknown>;
  if (typeof module !== 'string' || typeof name !== 'string') return undefined;
  const exported = (await loadModule(module))[name];
  if (typeof exported !== 'function') {
    throw new ConfigError(`${module} exports no class ${name}`);
  }
  return exported as unknown as Class;
}

async function loadModule(module: string): Promise<Record<string, unknown>> {
  const require = createRequire(path.join(process.cwd(), 'index.js'));
  try {
    try {
      return require(module) as Record<string, unknown>;
    } catch (error) {
      if (!IS_ES_MODULE.has((error as NodeJS.ErrnoException).code ?? '')) throw error;
      return (await import(pathToFileURL(require.resolve(module)).href)) as Record<string, unknown>;
    }
  } catch (cause) {
    throw new ConfigError(`${module} cannot be loaded: ${(cause as Error).message}`, { cause });
  }
}

/** Codes with which `require` refuses ES modules. */
const IS_ES_MODULE = new Set(['ERR_REQUIRE_ESM', 'ERR_REQUIRE_ASYNC_MODULE']);
