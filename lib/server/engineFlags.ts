/** The engine's options as flags of the commands that load a model. */
import { parseArgs, type ParseArgsConfig } from 'node:util';
import type { z } from 'zod';
import { engineArgsSchema } from '../config/engineArgs';
import { suggestName } from '../config/suggest';
import { ConfigError } from '../errors';
import type { EngineArgs } from '../executor/createConfig';

const kebabCase = (name: string) => name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);

const camelCase = (flag: string) =>
  flag.replace(/-([a-z])/g, (_, letter: string) => letter.toUpperCase());

type FlagKind = 'string' | 'number' | 'boolean';

/** Engine options that a command line can hold, by their flag. */
const ENGINE_FLAGS: ReadonlyMap<string, { name: string; kind: FlagKind }> = new Map(
  Object.entries(engineArgsSchema.shape).flatMap(([name, schema]) => {
    const kind = kindOf(schema);
    return kind === null || name === 'model' ? [] : [[kebabCase(name), { name, kind }]];
  }),
);

function kindOf(schema: z.ZodOptional): FlagKind | null {
  const { type } = (schema.unwrap() as z.ZodType).def;
  if (type === 'enum' || type === 'string') return 'string';
  return type === 'number' || type === 'boolean' ? type : null;
}

export type Values = Readonly<Record<string, string | boolean | (string | boolean)[] | undefined>>;

/** The flags of `uniproc <command>`: its `own`, and the engine's. Throws ConfigError. */
export function parseFlags(
  command: string,
  args: readonly string[],
  own: NonNullable<ParseArgsConfig['options']>,
): { values: Values; positionals: string[] } {
  const options = { ...own };
  for (const [flag, { kind }] of ENGINE_FLAGS) {
    options[flag] = { type: kind === 'boolean' ? 'boolean' : 'string' };
    if (kind === 'boolean') options[`no-${flag}`] = { type: 'boolean' };
  }
  checkNames(command, args, Object.keys(options));
  try {
    return parseArgs({ args: [...args], options, allowPositionals: true });
  } catch (cause) {
    throw new ConfigError(`${(cause as Error).message}; see uniproc ${command} --help`, { cause });
  }
}

function checkNames(command: string, args: readonly string[], known: readonly string[]): void {
  for (const argument of args) {
    if (argument === '--') return;
    const name = /^--([^=]+)/.exec(argument)?.[1];
    if (name === undefined || known.includes(name)) continue;
    const meant = suggestName(name, known.map(camelCase));
    const advice =
      meant === null ? `see uniproc ${command} --help` : `did you mean --${kebabCase(meant)}?`;
    throw new ConfigError(`unknown option --${name}; ${advice}`);
  }
}

/** The engine's options among the flags. */
export function engineArgsOf(values: Values): EngineArgs {
  const args: Record<string, unknown> = {};
  for (const [flag, { name, kind }] of ENGINE_FLAGS) {
    const value = values[flag];
    if (value !== undefined) {
      // The engine names a wrong value.
      args[name] = kind === 'number' && !Number.isNaN(Number(value)) ? Number(value) : value;
    }
    if (values[`no-${flag}`] === true) args[name] = false;
  }
  return args;
}
