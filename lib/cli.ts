#!/usr/bin/env node
/** The `uniproc` command. */
import { launch, parseLaunchArguments, USAGE } from './distributed/launcher';
import { diagnose, DOCTOR_USAGE } from './doctor';
import { ConfigError, RankFailedError, UniprocError } from './errors';

const HELP = ['help', '--help', '-h'];

async function main([command = 'help', ...args]: string[]): Promise<void> {
  if (HELP.includes(command)) process.stdout.write(`${USAGE}\n${DOCTOR_USAGE}`);
  else if (command === 'launch') await runLaunch(args);
  else if (command === 'doctor') await runDoctor(args);
  else {
    throw new ConfigError(
      `unknown command ${command}; the commands are launch and doctor: uniproc --help`,
    );
  }
}

async function runLaunch(args: readonly string[]): Promise<void> {
  const options = parseLaunchArguments(args);
  if (options === null) process.stdout.write(USAGE);
  else await launch(options);
}

async function runDoctor(args: readonly string[]): Promise<void> {
  if (args.some((argument) => HELP.includes(argument))) {
    process.stdout.write(DOCTOR_USAGE);
    return;
  }
  if (args.length > 0) throw new ConfigError(`uniproc doctor takes no arguments, not ${args[0]}`);
  const { text, isHealthy } = await diagnose();
  process.stdout.write(text);
  if (!isHealthy) process.exitCode = 1;
}

main(process.argv.slice(2)).catch((error: unknown) => {
  if (!(error instanceof UniprocError)) throw error;
  process.stderr.write(`uniproc: ${error.message}\n`);
  const otherwise = error instanceof ConfigError ? 2 : 1;
  process.exitCode = error instanceof RankFailedError ? error.exitCode : otherwise;
});
