/** `uniproc chat`: a conversation in a terminal. */
import { createInterface } from 'node:readline';
import { ConfigError, InvalidRequestError, RequestAbortedError } from './errors';
import { LLM } from './llm';
import { engineArgsOf, parseFlags } from './server/engineFlags';
import { modelNameOf } from './server/servedModels';
import type { ChatMessage } from './tokenizer/chatMessages';

export const CHAT_USAGE = `Usage: uniproc chat [options] [MODEL]

Chats with a model in the terminal; default: the small model of the package. MODEL is a checkpoint's
folder, or its name on the Hugging Face hub. /reset forgets the conversation, /exit and Ctrl-D leave,
Ctrl-C ends an answer.

Options: --revision REVISION, and the engine's (docs/options.md) in kebab case: --max-model-len 4096.
`;

const COMMANDS = '/reset forgets the conversation, /exit leaves; Ctrl-C ends an answer';

/** Resolves once the user has left. Rejects with ConfigError or as LLM.create. */
export async function runChat(args: readonly string[]): Promise<void> {
  const { values, positionals } = parseFlags('chat', args, { revision: { type: 'string' } });
  if (positionals.length > 1) {
    throw new ConfigError(`uniproc chat takes one model, not ${positionals.length}`);
  }
  const llm = await LLM.create({
    ...engineArgsOf(values),
    model: positionals[0],
    revision: values.revision as string | undefined,
  });
  try {
    await chat(llm, { input: process.stdin, output: process.stdout, isTerminal: isTerminal() });
  } finally {
    await llm.shutdown();
  }
}

const isTerminal = () => process.stdin.isTTY && process.stdout.isTTY;

export interface Terminal {
  input: NodeJS.ReadableStream;
  output: NodeJS.WritableStream;
  /** Prompts and hints are written, and keys are read one by one; else answers only. */
  isTerminal: boolean;
}

/** Answers the lines of `input` until it ends or says /exit. */
export async function chat(
  llm: Pick<LLM, 'chatStream' | 'engine'>,
  { input, output, isTerminal: isInteractive }: Terminal,
): Promise<void> {
  const lines = createInterface({ input, output, terminal: isInteractive, prompt: '> ' });
  const hint = (text: string) => isInteractive && output.write(`${text}\n`);
  let answering: AbortController | null = null;
  let isClosed = false;
  lines.once('close', () => (isClosed = true));
  // A prompt would resume an input that has ended.
  const prompt = () => isInteractive && !isClosed && lines.prompt();
  // The program goes on: a terminal in raw mode sends the key, another program the signal.
  const interrupt = () => {
    if (answering !== null) answering.abort();
    else if (isInteractive) {
      hint(`\n${COMMANDS}`);
      prompt();
    } else lines.close();
  };
  lines.on('SIGINT', interrupt);
  process.on('SIGINT', interrupt);
  const failures: NodeJS.ErrnoException[] = [];
  // Stays: a write that is under way may fail after the end.
  output.on('error', (error: Error) => {
    failures.push(error);
    answering?.abort();
    lines.close();
  });
  let messages: ChatMessage[] = [];
  hint(`${modelNameOf(llm)}: ${COMMANDS}`);
  prompt();
  try {
    for await (const line of lines) {
      const text = line.trim();
      if (text === '/exit' || failures.length > 0) break;
      if (text === '/reset') {
        messages = [];
        hint('the conversation is empty');
      } else if (text.startsWith('/')) {
        hint(COMMANDS);
      } else if (text !== '') {
        answering = new AbortController();
        messages.push({ role: 'user', content: text });
        const answer = await write(llm, messages, answering.signal, output);
        if (answer === null) messages.pop();
        else messages.push({ role: 'assistant', content: answer });
        answering = null;
      }
      prompt();
    }
  } finally {
    process.off('SIGINT', interrupt);
    lines.close();
  }
  // A reader of the answers may leave, as `head` does.
  if (failures.length > 0 && failures[0].code !== 'EPIPE') throw failures[0];
}

/** Control characters but tabs and newlines, by which a text could command the terminal. */
// eslint-disable-next-line no-control-regex
const CONTROL = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g;

/** Writes the answer as it is generated. Resolves to its text; null if the request was refused. */
async function write(
  llm: Pick<LLM, 'chatStream'>,
  messages: readonly ChatMessage[],
  signal: AbortSignal,
  output: NodeJS.WritableStream,
): Promise<string | null> {
  let answer = '';
  try {
    for await (const { text } of llm.chatStream(messages, undefined, { signal })) {
      answer += text;
      output.write(text.replace(CONTROL, ''));
    }
  } catch (error) {
    if (error instanceof InvalidRequestError) {
      output.write(`${error.message}\n`);
      return null;
    }
    if (!(error instanceof RequestAbortedError)) throw error;
  }
  output.write('\n');
  return answer;
}
