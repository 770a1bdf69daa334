/** `uniproc serve`'s server: node:http with limits, and a drain that loses no running request. */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { ConfigError } from '../errors';
import { codeOf, log } from '../log';
import type { Handler } from './handler';
import { HttpError, openAiErrorBody } from './httpError';
import { jsonResponse } from './jsonResponse';
import { serve } from './nodeListener';

export interface NodeServerOptions {
  host: string;
  /** 0: any free port. */
  port: number;
  /** Connections at once; more are closed. */
  maxConnections: number;
  /** Milliseconds for a request's headers, and as many again for its body. */
  headerTimeoutMs: number;
  /** Milliseconds that a connection may be idle between requests. */
  idleTimeoutMs: number;
  /** Milliseconds that a client may leave an answer unread. */
  writeTimeoutMs: number;
}

/** Headers of a request that are kept; Node refuses more than 16 KiB of them with 431. */
const MAX_HEADERS = 100;
/** Milliseconds for the last words of requests that were cut. */
const CUT_MS = 1000;

export class NodeServer {
  private readonly running = new Map<AbortController, Promise<void>>();
  private isDraining = false;

  private constructor(
    private readonly server: Server,
    private readonly handler: Handler,
    private readonly options: NodeServerOptions,
  ) {
    server.on('request', (incoming, outgoing) => this.answer(incoming, outgoing));
  }

  /** Rejects with ConfigError if the address cannot be used. */
  static async listen(handler: Handler, options: NodeServerOptions): Promise<NodeServer> {
    const { host, port, maxConnections, headerTimeoutMs, idleTimeoutMs } = options;
    const server = createServer({
      headersTimeout: headerTimeoutMs,
      requestTimeout: 2 * headerTimeoutMs,
      keepAliveTimeout: idleTimeoutMs,
      connectionsCheckingInterval: Math.min(headerTimeoutMs, 5000),
    });
    server.maxConnections = maxConnections;
    server.maxHeadersCount = MAX_HEADERS;
    const own = new NodeServer(server, handler, options);
    await new Promise<void>((resolve, reject) => {
      server.once('error', (error: NodeJS.ErrnoException) => {
        reject(
          new ConfigError(`cannot listen on ${host}:${port}: ${error.code}`, { cause: error }),
        );
      });
      server.listen(port, host, resolve);
    });
    // Such as a connection that cannot be accepted; the others go on.
    server.on('error', (error) => log('server: %s', codeOf(error)));
    return own;
  }

  get url(): string {
    const { address, family, port } = this.server.address() as AddressInfo;
    return `http://${family === 'IPv6' ? `[${address}]` : address}:${port}`;
  }

  private answer(incoming: IncomingMessage, outgoing: ServerResponse): void {
    const controller = new AbortController();
    if (this.isDraining) outgoing.shouldKeepAlive = false;
    const handler = this.isDraining ? refuse : this.handler;
    const { writeTimeoutMs } = this.options;
    const done = serve(handler, incoming, outgoing, controller, writeTimeoutMs).finally(() => {
      this.running.delete(controller);
      // A connection that became idle would hold the drain up.
      if (this.isDraining) setImmediate(() => this.server.closeIdleConnections());
    });
    this.running.set(controller, done);
  }

  /**
   * Accepts nothing more, waits for the running requests, cuts those that run after `timeoutMs`, and
   * closes. Aborting `signal` cuts them at once.
   */
  async drain(timeoutMs: number, signal: AbortSignal): Promise<void> {
    this.isDraining = true;
    const closed = new Promise<void>((resolve) => this.server.close(() => resolve()));
    this.server.closeIdleConnections();
    const allDone = () => Promise.all(this.running.values());
    await Promise.race([allDone(), expired(timeoutMs, signal)]);
    for (const controller of this.running.keys()) {
      controller.abort(new Error('the server is shutting down'));
    }
    await Promise.race([allDone(), expired(CUT_MS)]);
    this.server.closeAllConnections();
    await closed;
  }
}

const refuse: Handler = () => {
  const error = new HttpError(503, 'the server is shutting down');
  return Promise.resolve(
    jsonResponse(openAiErrorBody(error), error.status, { 'retry-after': '1' }),
  );
};

/** Resolves after `ms` or once the signal is aborted; keeps no process alive. */
function expired(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal?.aborted) resolve();
    setTimeout(resolve, ms).unref();
    signal?.addEventListener('abort', () => resolve(), { once: true });
  });
}
