/** A handler on node:http: requests and responses of one web to the other. */
import { setMaxListeners } from 'node:events';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { Readable } from 'node:stream';
import type { Handler } from './handler';
import { HttpError, httpErrorOf, openAiErrorBody } from './httpError';
import { jsonResponse } from './jsonResponse';

export interface NodeListenerOptions {
  /**
   * Maximum milliseconds that a client may leave an answer unread before its connection is closed.
   * @defaultValue `60000`
   */
  writeTimeoutMs?: number;
}

/** A listener for the event `request` of node:http, or middleware of Express. */
export type NodeListener = (request: IncomingMessage, response: ServerResponse) => void;

const WRITE_TIMEOUT_MS = 60_000;

/**
 * Mounts a handler in node:http, Express or Fastify. A client that goes away aborts its request; a body
 * is read and an answer written no faster than the other side takes it.
 */
export function toNodeListener(
  handler: Handler,
  { writeTimeoutMs = WRITE_TIMEOUT_MS }: NodeListenerOptions = {},
): NodeListener {
  return (request, response) => {
    const controller = new AbortController();
    void serve(handler, request, response, controller, writeTimeoutMs);
  };
}

/**
 * Answers one request; resolves once the answer is written or the connection is gone. Aborting
 * `controller` ends the request.
 * @internal
 */
export async function serve(
  handler: Handler,
  incoming: IncomingMessage,
  outgoing: ServerResponse,
  controller: AbortController,
  writeTimeoutMs: number,
): Promise<void> {
  const { socket } = incoming;
  const gone = new AbortController();
  const leave = () => {
    if (outgoing.writableFinished) return;
    gone.abort();
    controller.abort(new Error('the client closed the connection'));
  };
  outgoing.on('close', leave);
  // A response behind another one of its connection (pipelining) is not closed with the connection.
  setMaxListeners(0, socket);
  socket.on('close', leave);
  // An error of the connection closes it, which is handled above.
  outgoing.on('error', () => {});
  incoming.on('error', () => {});
  try {
    const answer = await answerOf(handler, incoming, controller.signal);
    await respond(answer, incoming, outgoing, gone.signal, writeTimeoutMs);
  } finally {
    socket.off('close', leave);
  }
}

async function respond(
  { status, headers, body }: Response,
  incoming: IncomingMessage,
  outgoing: ServerResponse,
  gone: AbortSignal,
  writeTimeoutMs: number,
): Promise<void> {
  if (gone.aborted || outgoing.destroyed) {
    await body?.cancel();
    return;
  }
  // The connection's next request would wait behind what is left of a body that nobody reads.
  if (!incoming.complete) outgoing.shouldKeepAlive = false;
  outgoing.writeHead(status, Object.fromEntries(headers));
  if (body === null || incoming.method === 'HEAD') {
    await body?.cancel();
    outgoing.end();
    return;
  }
  // Clients see a stream's head before its first event.
  outgoing.flushHeaders();
  await write(body, outgoing, gone, writeTimeoutMs);
}

async function answerOf(
  handler: Handler,
  incoming: IncomingMessage,
  signal: AbortSignal,
): Promise<Response> {
  try {
    return await handler(requestOf(incoming, signal));
  } catch (error) {
    const failure = httpErrorOf(error);
    return jsonResponse(openAiErrorBody(failure), failure.status);
  }
}

/** Throws HttpError 400 for an address or a header that a Request cannot have. */
function requestOf(incoming: IncomingMessage, signal: AbortSignal): Request {
  const { method = 'GET', url = '/', rawHeaders } = incoming;
  try {
    const headers = new Headers();
    for (let i = 0; i < rawHeaders.length; i += 2) headers.append(rawHeaders[i], rawHeaders[i + 1]);
    const hasBody = method !== 'GET' && method !== 'HEAD';
    // The host is the client's claim, and no endpoint uses it.
    return new Request(new URL(url, 'http://localhost'), {
      method,
      headers,
      signal,
      ...(hasBody && { body: Readable.toWeb(incoming) as ReadableStream, duplex: 'half' }),
    });
  } catch {
    throw new HttpError(400, 'the request line or a header is malformed');
  }
}

/** Writes a body as fast as the client reads it, until the client is gone. */
async function write(
  body: ReadableStream<Uint8Array>,
  outgoing: ServerResponse,
  gone: AbortSignal,
  writeTimeoutMs: number,
): Promise<void> {
  const reader = body.getReader();
  // Ends a pending read, too.
  const cancel = () => {
    reader.cancel().catch(() => {});
  };
  gone.addEventListener('abort', cancel, { once: true });
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (gone.aborted) break;
      if (done) {
        outgoing.end();
        return;
      }
      if (!outgoing.write(value) && !(await isDrained(outgoing, gone, writeTimeoutMs))) break;
    }
  } catch {
    // The body failed after its head was sent: only a cut tells the client.
  }
  outgoing.destroy();
  cancel();
}

/** Whether the client reads what was written within `timeoutMs`; false once it is gone. */
function isDrained(
  outgoing: ServerResponse,
  gone: AbortSignal,
  timeoutMs: number,
): Promise<boolean> {
  if (gone.aborted) return Promise.resolve(false);
  return new Promise((resolve) => {
    const settle = (isRead: boolean) => {
      clearTimeout(timer);
      outgoing.off('drain', read);
      gone.removeEventListener('abort', stop);
      resolve(isRead);
    };
    const read = () => settle(true);
    const stop = () => settle(false);
    const timer = setTimeout(stop, timeoutMs);
    outgoing.once('drain', read);
    gone.addEventListener('abort', stop, { once: true });
  });
}
