/** The server on node:http: clients that leave or do not read, limits, and the drain. */
import { once } from 'node:events';
import { request as httpRequest } from 'node:http';
import { connect, type Socket } from 'node:net';
import { setImmediate as nextTurn, setTimeout as pause } from 'node:timers/promises';
import { type FinishedRequest } from '../../lib';
import { type RunningServer, startServer, until } from '../support/server';

let running: RunningServer;

beforeAll(async () => {
  running = await startServer({}, {}, { writeTimeoutMs: 500 });
});

afterAll(() => running.close());

const long = { prompt: 'Once upon a time', max_tokens: 1000, ignore_eos: true };

const ask = (body: object, init: RequestInit = {}, url = running.url) =>
  fetch(`${url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
    ...init,
  });

/** A connection that has sent `text`. */
async function open(text: string, url = running.url): Promise<Socket> {
  const socket = connect(Number(new URL(url).port), '127.0.0.1');
  await once(socket, 'connect');
  socket.on('error', () => {});
  socket.write(text);
  return socket;
}

/** All that the server sends until it closes. */
async function readAll(socket: Socket): Promise<string> {
  let text = '';
  socket.on('data', (data) => (text += data.toString()));
  await once(socket, 'close');
  return text;
}

function rawPost(body: object): string {
  const text = JSON.stringify(body);
  return (
    'POST /v1/completions HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n' +
    `Content-Length: ${Buffer.byteLength(text)}\r\n\r\n${text}`
  );
}

test.each([true, false])('a client that leaves aborts its request (stream: %s)', async (stream) => {
  const { llm } = running;
  const ended: FinishedRequest[] = [];
  const listener = (request: FinishedRequest) => ended.push(request);
  llm.events.on('finished', listener);
  const controller = new AbortController();
  const asked = ask({ ...long, stream }, { signal: controller.signal }).catch(() => null);
  if (stream) {
    const response = await asked;
    await response?.body?.getReader().read();
  } else {
    await until(() => llm.stats().numRunningReqs === 1);
  }
  controller.abort();
  await asked;
  await until(() => ended.length > 0);
  llm.events.off('finished', listener);
  expect(ended).toHaveLength(1);
  expect(ended[0].finishReason).toBe('abort');
  expect(ended[0].numOutputTokens).toBeLessThan(500);
  expect(llm.stats().numRunningReqs).toBe(0);
});

test('a client that leaves while its body is sent costs nothing', async () => {
  const socket = await open(rawPost(long).slice(0, -10));
  socket.destroy();
  await pause(50);
  expect(running.llm.engine.numUnfinishedRequests).toBe(0);
});

test('a client that does not read its answer is not written to, then cut', async () => {
  // More than the buffers of both sockets hold.
  const body = { ...long, n: 64, max_tokens: 1000, logprobs: 20, stream: true };
  const socket = await open(rawPost(body));
  socket.pause();
  await until(() => running.llm.engine.numUnfinishedRequests > 0);
  await until(() => running.llm.engine.numUnfinishedRequests === 0);
  socket.destroy();
});

test('a request line or a header that is malformed is answered with 400, a flood with 431', async () => {
  expect(await readAll(await open('NONSENSE\r\n\r\n'))).toMatch(/^HTTP\/1\.1 400 /);
  const flood = `GET /health HTTP/1.1\r\nHost: here\r\n${'X-Flood: 0123456789\r\n'.repeat(2000)}\r\n`;
  expect(await readAll(await open(flood))).toMatch(/^HTTP\/1\.1 431 /);
  const odd = 'GET http://[ HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n';
  expect(await readAll(await open(odd))).toMatch(/^HTTP\/1\.1 400 /);
});

test('an oversized body is answered with 413, and the connection closed', async () => {
  const head =
    'POST /v1/completions HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n' +
    'Content-Length: 100000000\r\n\r\n';
  expect(await readAll(await open(head))).toMatch(/^HTTP\/1\.1 413 [^]*connection: close/i);
});

test('a body that nobody reads ends its connection, rather than hold up the next request', async () => {
  const body = 'a'.repeat(300_000);
  const head = `POST /nothing HTTP/1.1\r\nHost: here\r\nContent-Length: ${body.length}\r\n\r\n`;
  expect(await readAll(await open(head + body))).toMatch(/^HTTP\/1\.1 404 [^]*connection: close/i);
});

test('a client that leaves aborts the requests that wait behind another on its connection', async () => {
  const { engine } = running.llm;
  const socket = await open(rawPost({ ...long, stream: true }).repeat(12));
  await until(() => engine.numUnfinishedRequests === 12);
  socket.destroy();
  const { numOutputTokens: before } = running.llm.stats();
  await until(() => engine.numUnfinishedRequests === 0);
  expect(running.llm.stats().numOutputTokens - before).toBeLessThan(12 * 500);
});

test('a body that stalls is cut after twice the time for headers', async () => {
  const other = await startServer({}, {}, { headerTimeoutMs: 100 });
  const answer = await readAll(await open(rawPost(long).slice(0, -10), other.url));
  expect(answer).toMatch(/^HTTP\/1\.1 408 /);
  await other.close();
});

test('a full queue is answered with 503 and Retry-After', async () => {
  const other = await startServer({ maxNumSeqs: 1, maxQueuedRequests: 1 });
  const controller = new AbortController();
  const { signal } = controller;
  const asked = [0, 1].map(() => ask(long, { signal }, other.url).catch(() => null));
  await until(() => other.llm.engine.numUnfinishedRequests === 2);
  const refused = await ask(long, {}, other.url);
  expect([refused.status, refused.headers.get('retry-after')]).toEqual([503, '1']);
  expect(await refused.json()).toMatchObject({ error: { code: 503 } });
  controller.abort();
  await Promise.all(asked);
  await other.close();
});

describe('a drain', () => {
  test('lets running requests end and refuses new ones', async () => {
    const other = await startServer();
    const response = await ask({ ...long, stream: true }, {}, other.url);
    const agent = await open('', other.url);
    const drained = other.server.drain(60_000, new AbortController().signal);
    const text = await response.text();
    expect(text).toContain('"finish_reason":"length"');
    expect(text.endsWith('data: [DONE]\n\n')).toBe(true);
    await drained;
    await expect(ask(long, {}, other.url)).rejects.toThrow();
    agent.destroy();
    await other.llm.shutdown();
  });

  test('answers a request on an open connection with 503', async () => {
    const other = await startServer();
    const response = await ask({ ...long, stream: true }, {}, other.url);
    const socket = await open('GET /health HTTP/1.1\r\nHost: he', other.url);
    // The server, in this process, reads what has arrived.
    for (let i = 0; i < 20; i++) await nextTurn();
    const drained = other.server.drain(60_000, new AbortController().signal);
    socket.write('re\r\n\r\n');
    expect(await readAll(socket)).toMatch(/^HTTP\/1\.1 503 [^]*connection: close/i);
    await response.body?.cancel();
    await drained;
    await other.llm.shutdown();
  });

  test('cuts what runs after its time with an error event', async () => {
    const other = await startServer();
    const body = { ...long, n: 16, stream: true };
    const response = await ask(body, {}, other.url);
    const [text] = await Promise.all([
      response.text(),
      other.server.drain(1, new AbortController().signal),
    ]);
    expect(text).toContain('the server is shutting down');
    expect(text.endsWith('data: [DONE]\n\n')).toBe(true);
    await other.llm.shutdown();
  });
});

test('HEAD has the status and headers of GET, without a body', async () => {
  const response = await fetch(`${running.url}/v1/models`, { method: 'HEAD' });
  expect(response.status).toBe(200);
  expect(await response.text()).toBe('');
});

test('connections above the limit are closed', async () => {
  const other = await startServer({}, {}, { maxConnections: 1 });
  const held = await open('', other.url);
  const refused = await open('GET /health HTTP/1.1\r\n\r\n', other.url);
  expect(await readAll(refused)).toBe('');
  held.destroy();
  await other.close();
});

test('a request whose client sends Expect: 100-continue is answered', async () => {
  const request = httpRequest(`${running.url}/tokenize`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', expect: '100-continue' },
  });
  request.on('continue', () => request.end('{"prompt":"Once"}'));
  const [response] = (await once(request, 'response')) as [{ statusCode: number; resume(): void }];
  expect(response.statusCode).toBe(200);
  response.resume();
});
