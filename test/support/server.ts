/** A handler over the package's small model, and its server on a free port of loopback. */
import { createHandler, type CreateArgs, type Handler, type HandlerOptions, LLM } from '../../lib';
import { NodeServer, type NodeServerOptions } from '../../lib/server/nodeServer';

export const loadStories = (args: CreateArgs = {}): Promise<LLM> =>
  LLM.create({ device: 'cpu', dtype: 'float32', ...args });

/** Posts `body` as JSON and returns the response. */
export const post = (
  handler: Handler,
  path: string,
  body: unknown,
  init: RequestInit = {},
): Promise<Response> =>
  handler(
    new Request(`http://localhost${path}`, {
      method: 'POST',
      body: typeof body === 'string' ? body : JSON.stringify(body),
      ...init,
      headers: { 'content-type': 'application/json', ...(init.headers as Record<string, string>) },
    }),
  );

export interface SseMessage {
  event: string | null;
  data: string;
}

/** The events and comments of a stream, which must be well-formed to the letter. */
export async function readEvents(
  response: Response,
): Promise<{ events: SseMessage[]; comments: string[] }> {
  expect(response.headers.get('content-type')).toBe('text/event-stream; charset=utf-8');
  const text = await response.text();
  expect(text.endsWith('\n\n')).toBe(true);
  const events: SseMessage[] = [];
  const comments: string[] = [];
  for (const block of text.slice(0, -2).split('\n\n')) {
    if (block.startsWith(':')) {
      comments.push(block);
      continue;
    }
    const [, event = null, data] = /^(?:event: (.+)\n)?data: (.+)$/.exec(block) ?? [];
    expect(data).toBeDefined();
    events.push({ event, data });
  }
  return { events, comments };
}

/** The parsed data of a stream of OpenAI's, which ends with [DONE]. */
export async function readChunks<T>(response: Response): Promise<T[]> {
  const { events } = await readEvents(response);
  expect(events.at(-1)?.data).toBe('[DONE]');
  return events.slice(0, -1).map(({ data }) => JSON.parse(data) as T);
}

export const SERVER: NodeServerOptions = {
  host: '127.0.0.1',
  port: 0,
  maxConnections: 1024,
  headerTimeoutMs: 10_000,
  idleTimeoutMs: 10_000,
  writeTimeoutMs: 10_000,
};

export interface RunningServer {
  llm: LLM;
  url: string;
  server: NodeServer;
  close: () => Promise<void>;
}

export async function startServer(
  args: CreateArgs = {},
  options: HandlerOptions = {},
  serverOptions: Partial<NodeServerOptions> = {},
): Promise<RunningServer> {
  const llm = await loadStories(args);
  const server = await NodeServer.listen(createHandler(llm, options), {
    ...SERVER,
    ...serverOptions,
  });
  const close = async () => {
    await server.drain(0, new AbortController().signal);
    await llm.shutdown();
  };
  return { llm, url: server.url, server, close };
}

/** Waits until `isTrue` returns true. */
export async function until(isTrue: () => boolean): Promise<void> {
  while (!isTrue()) await new Promise((resolve) => setTimeout(resolve, 2));
}
