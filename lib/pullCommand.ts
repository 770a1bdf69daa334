/** `uniproc pull`. */
import { parseArgs } from 'node:util';
import { ConfigError } from './errors';
import { nameOnHub } from './hub/modelName';
import { pull } from './hub/pull';
import { pullProgressBar } from './progressBar';

/** Resolves to the model's folder. Rejects with ConfigError or as `pull`. */
export async function pullCommand(args: readonly string[]): Promise<string> {
  const { values, positionals } = parse(args);
  if (positionals.length !== 1) {
    throw new ConfigError(`uniproc pull takes one model, not ${positionals.length}`);
  }
  const [model] = positionals;
  const name = await nameOnHub(model);
  if (name === null) {
    throw new ConfigError(`${model} is not a name on the hub; these are organisation/name`);
  }
  const { stderr } = process;
  return pull(name, {
    revision: values.revision,
    onProgress: stderr.isTTY ? pullProgressBar(stderr) : undefined,
  });
}

function parse(args: readonly string[]) {
  try {
    return parseArgs({
      args: [...args],
      options: { revision: { type: 'string' } },
      allowPositionals: true,
    });
  } catch (cause) {
    throw new ConfigError(`${(cause as Error).message}; see uniproc pull --help`, { cause });
  }
}
