/** The arguments of `uniproc serve`. */
import type { ParseArgsConfig } from 'node:util';
import { ConfigError } from '../errors';
import { MAX_TIMER } from '../timer';
import type { EngineArgs } from '../executor/createConfig';
import type { CreateArgs } from '../createArgs';
import { engineArgsOf, parseFlags } from './engineFlags';
import type { HandlerOptions } from './handlerOptions';
import type { NodeServerOptions } from './nodeServer';

export const USAGE = `Usage: uniproc serve [options] [MODEL...]

Serves models by OpenAI's and Anthropic's APIs over HTTP (docs/server.md). MODEL is a checkpoint's
folder, a GGUF file, or its name on the Hugging Face hub, organisation/name, for a GGUF file of it
organisation/name:Q4_K_M; default: the small model of the package.

Options:
  --host HOST               address to listen on (default 127.0.0.1)
  --port PORT               port to listen on; 0: any free port (default 8000)
  --served-model-name NAME  name of the model for clients; repeat it for more names of one model, or
                            for one name of each model (default: the folder's name)
  --tool-call-parser NAME   notation of tool calls (docs/tools.md; default: found from the template)
  --reasoning-parser NAME   notation of reasoning (docs/tools.md; default: found from the template)
  --revision REVISION       branch, tag or commit of a model on the hub (default main)
  --api-key KEY             key that requests under /v1 must have; repeat it for several (default: the
                            variable UNIPROC_API_KEY, or none)
  --allowed-origin ORIGIN   origin that may call from a web page; repeat it for several (default none)
  --max-body-bytes N        maximum bytes of a request's body (default 4194304)
  --max-connections N       maximum connections (default 4096)
  --request-timeout S       maximum seconds of a generation (default no limit)
  --header-timeout S        seconds for a request's headers, and as many for its body (default 30)
  --idle-timeout S          seconds that a connection may be idle (default 65)
  --write-timeout S         seconds that a client may leave an answer unread (default 60)
  --no-ui                   no page at /
  --drain-timeout S         seconds that running requests have after SIGTERM or SIGINT (default 30)
  --help                    print this text

The engine's options (docs/options.md) are options here, in kebab case: --max-model-len 4096,
--enforce-eager, --no-enable-prefix-caching.
`;

export interface ServeArguments {
  /** Folders or names on the hub; undefined: the package's model. */
  models: readonly (string | undefined)[];
  /** Names by model. */
  names: readonly (readonly string[])[];
  revision: string | undefined;
  /** Options of LLM.create for replies. */
  reply: Pick<CreateArgs, 'toolCallParser' | 'reasoningParser'>;
  engine: EngineArgs;
  handler: HandlerOptions;
  server: NodeServerOptions;
  drainTimeoutMs: number;
}

const OWN = {
  host: { type: 'string' },
  port: { type: 'string' },
  'served-model-name': { type: 'string', multiple: true },
  revision: { type: 'string' },
  'tool-call-parser': { type: 'string' },
  'reasoning-parser': { type: 'string' },
  'api-key': { type: 'string', multiple: true },
  'allowed-origin': { type: 'string', multiple: true },
  'max-body-bytes': { type: 'string' },
  'max-connections': { type: 'string' },
  'request-timeout': { type: 'string' },
  'header-timeout': { type: 'string' },
  'idle-timeout': { type: 'string' },
  'write-timeout': { type: 'string' },
  'drain-timeout': { type: 'string' },
  'no-ui': { type: 'boolean' },
  help: { type: 'boolean', short: 'h' },
} as const satisfies ParseArgsConfig['options'];

/** Null for --help. Throws ConfigError. */
export function parseServeArguments(
  args: readonly string[],
  env: NodeJS.ProcessEnv = process.env,
): ServeArguments | null {
  const { values, positionals } = parseFlags('serve', args, OWN);
  if (values.help === true) return null;
  const own = values as Partial<Record<keyof typeof OWN, string>>;
  const integer = (name: keyof typeof OWN, fallback: number, min: number, max: number) =>
    numberOf(name, own[name], fallback, { min, max, isWhole: true });
  const seconds = (name: keyof typeof OWN, fallback: number) =>
    Math.ceil(1000 * numberOf(name, own[name], fallback, SECONDS));
  const list = (name: keyof typeof OWN) => values[name] as string[] | undefined;
  const models = positionals.length > 0 ? positionals : [undefined];
  const keys = list('api-key') ?? (env.UNIPROC_API_KEY ? [env.UNIPROC_API_KEY] : []);
  return {
    models,
    names: namesOf(models.length, list('served-model-name') ?? []),
    revision: own.revision,
    reply: {
      toolCallParser: own['tool-call-parser'],
      reasoningParser: own['reasoning-parser'],
    },
    engine: engineArgsOf(values),
    handler: {
      apiKeys: keys,
      allowedOrigins: list('allowed-origin') ?? [],
      ui: values['no-ui'] !== true,
      maxBodyBytes: integer('max-body-bytes', 2 ** 22, 1, 2 ** 29),
      ...(own['request-timeout'] !== undefined && {
        requestTimeoutMs: seconds('request-timeout', 0),
      }),
    },
    server: {
      host: own.host ?? '127.0.0.1',
      port: integer('port', 8000, 0, 65_535),
      maxConnections: integer('max-connections', 4096, 1, 2 ** 20),
      headerTimeoutMs: seconds('header-timeout', 30),
      idleTimeoutMs: seconds('idle-timeout', 65),
      writeTimeoutMs: seconds('write-timeout', 60),
    },
    drainTimeoutMs: seconds('drain-timeout', 30),
  };
}

interface Range {
  min: number;
  max: number;
  isWhole: boolean;
}

const SECONDS: Range = { min: 0.001, max: Math.floor(MAX_TIMER / 2000), isWhole: false };

function numberOf(
  name: string,
  value: string | undefined,
  fallback: number,
  { min, max, isWhole }: Range,
): number {
  if (value === undefined) return fallback;
  const number = Number(value);
  const isAllowed = number >= min && number <= max && (!isWhole || Number.isInteger(number));
  if (value.trim() !== '' && isAllowed) return number;
  const kind = isWhole ? 'an integer' : 'a number';
  throw new ConfigError(`--${name} is ${value}; it must be ${kind} from ${min} to ${max}`);
}

function namesOf(numModels: number, names: readonly string[]): readonly (readonly string[])[] {
  if (numModels === 1) return [names];
  if (names.length > 0 && names.length !== numModels) {
    throw new ConfigError(
      `--served-model-name is given ${names.length} times for ${numModels} models; give it once for each`,
    );
  }
  return Array.from({ length: numModels }, (_, i) => names.slice(i, i + 1));
}
