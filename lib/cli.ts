#!/usr/bin/env node
/** The `uniproc` command. */
import { launch, parseLaunchArguments, USAGE } from './distributed/launcher';
import { ConfigError, RankFailedError, UniprocError } from './errors';

const HELP = ['help', '--help', '-h'];

async function main([command = 'help', ...args]: string[]): Promise<void> {
  if (HELP.includes(command)) {
    process.stdout.write(USAGE);
    return;
  }
  if (command !== 'launch') {
    throw new ConfigError(
      `unknown command ${command}; the only command is launch: uniproc launch --help`,
    );
  }
  const options = parseLaunchArguments(args);
  if (options === null) process.stdout.write(USAGE);
  else await launch(options);
}

main(process.argv.slice(2)).catch((error: unknown) => {
  if (!(error instanceof UniprocError)) throw error;
  process.stderr.write(`uniproc: ${error.message}\n`);
  const otherwise = error instanceof ConfigError ? 2 : 1;
  process.exitCode = error instanceof RankFailedError ? error.exitCode : otherwise;
});
