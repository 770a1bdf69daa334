#!/usr/bin/env node
/** The `uniproc` command. */
import { launch, parseLaunchArguments, USAGE } from './distributed/launcher';
import { ConfigError, RankFailedError, UniprocError } from './errors';

const DOCTOR_USAGE = `Usage: uniproc doctor

Prints the driver, the GPUs, the CUDA backend and its libraries, the processor, the memory and the
addon, on which device LLM.create({}) would run, and how to get what is missing.
Exits with 1 if the addon cannot be loaded or a visible GPU cannot be used, otherwise with 0.
`;

const SERVE_USAGE = `Usage: uniproc serve [options] [MODEL...]

Serves models by OpenAI's and Anthropic's APIs over HTTP: uniproc serve --help
`;

const PULL_USAGE = `Usage: uniproc pull [--revision REVISION] MODEL

Downloads a model, organisation/name, from the Hugging Face hub into the cache that Python's
huggingface_hub uses, and prints its folder; of organisation/name:Q4_K_M that GGUF file. What an
earlier download left is resumed.
`;

const CHAT_USAGE = `Usage: uniproc chat [options] [MODEL]

Chats with a model in the terminal: uniproc chat --help
`;

const INSPECT_USAGE = `Usage: uniproc inspect [options] MODEL

Prints what a model is and needs, from its headers: uniproc inspect --help
`;

const HELP = ['help', '--help', '-h'];

async function main([command = 'help', ...args]: string[]): Promise<void> {
  if (HELP.includes(command))
    process.stdout.write(
      [SERVE_USAGE, CHAT_USAGE, PULL_USAGE, INSPECT_USAGE, USAGE, DOCTOR_USAGE].join('\n'),
    );
  else if (command === 'launch') await runLaunch(args);
  else if (command === 'doctor') await runDoctor(args);
  else if (command === 'serve') await runServe(args);
  else if (command === 'pull') await runPull(args);
  else if (command === 'chat') await runChat(args);
  else if (command === 'inspect') await runInspect(args);
  else {
    throw new ConfigError(
      `unknown command ${command}; the commands are serve, chat, pull, inspect, launch and doctor: uniproc --help`,
    );
  }
}

async function runServe(args: readonly string[]): Promise<void> {
  // Loaded here, so that the launcher does not load the engine.
  // eslint-disable-next-line @typescript-eslint/no-require-imports
  const server = require('./server/serveCommand') as typeof import('./server/serveCommand');
  await server.runServe(args);
}

const asksForHelp = (args: readonly string[]) => args.some((argument) => HELP.includes(argument));

async function runChat(args: readonly string[]): Promise<void> {
  // eslint-disable-next-line @typescript-eslint/no-require-imports
  const command = require('./chatCommand') as typeof import('./chatCommand');
  if (asksForHelp(args)) process.stdout.write(command.CHAT_USAGE);
  else await command.runChat(args);
}

async function runInspect(args: readonly string[]): Promise<void> {
  // eslint-disable-next-line @typescript-eslint/no-require-imports
  const command = require('./inspectCommand') as typeof import('./inspectCommand');
  process.stdout.write(
    asksForHelp(args) ? command.INSPECT_USAGE : await command.inspectModel(args),
  );
}

async function runPull(args: readonly string[]): Promise<void> {
  if (asksForHelp(args)) {
    process.stdout.write(PULL_USAGE);
    return;
  }
  // eslint-disable-next-line @typescript-eslint/no-require-imports
  const { pullCommand } = require('./pullCommand') as typeof import('./pullCommand');
  process.stdout.write(`${await pullCommand(args)}\n`);
}

async function runLaunch(args: readonly string[]): Promise<void> {
  const options = parseLaunchArguments(args);
  if (options === null) process.stdout.write(USAGE);
  else await launch(options);
}

async function runDoctor(args: readonly string[]): Promise<void> {
  if (asksForHelp(args)) {
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
