#!/usr/bin/env node
/** The `uniproc` command. */
import { launch, parseLaunchArguments, USAGE } from './distributed/launcher';
import { ConfigError, RankFailedError, UniprocError } from './errors';

const DOCTOR_USAGE = `Usage: uniproc doctor

Prints the driver, the GPUs, the CUDA backend and its libraries, the processor, the memory and the
addon, on which device LLM.create({}) would run, and how to get what is missing.
Exits with 1 if the addon cannot be loaded or a visible GPU cannot be used, otherwise with 0.
`;

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
  // Loaded here, so that the launcher does not load the addon's interface.
  // eslint-disable-next-line @typescript-eslint/no-require-imports
  const { diagnose } = require('./doctor') as typeof import('./doctor');
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
