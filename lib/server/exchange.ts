/** One request to the server, from its parsed body to the end of its answer. */
import { setMaxListeners } from 'node:events';
import type { RequestOptions } from '../config/requestOptions';
import type { Fields } from './body';
import type { HandlerSettings } from './handlerOptions';
import type { ServedModel } from './servedModels';
import { type SseOptions, sseResponse } from './sse';

/** Where an exchange tells that it goes on after its response was made. */
export interface ExchangeLoad {
  begin(): void;
  end(): void;
}

export class Exchange {
  readonly id = crypto.randomUUID().replaceAll('-', '');
  /** Seconds since the Unix epoch. */
  readonly created = Math.floor(Date.now() / 1000);
  private readonly controller = new AbortController();

  constructor(
    readonly fields: Fields,
    readonly model: ServedModel,
    readonly settings: HandlerSettings,
    request: Request,
    private readonly load: ExchangeLoad,
  ) {
    // Each stream of a list of prompts listens.
    setMaxListeners(0, this.signal);
    const { signal } = request;
    const abort = () => this.abort(signal.reason);
    if (signal.aborted) abort();
    else signal.addEventListener('abort', abort, { once: true });
  }

  /** Aborted once the client has left. */
  get signal(): AbortSignal {
    return this.controller.signal;
  }

  private abort(reason: unknown): void {
    this.controller.abort(reason ?? new Error('the client closed the connection'));
  }

  /** The engine's options of every call: the client's, the server's time limit and the abort. */
  get callOptions(): RequestOptions {
    const { priority, cache_salt: cacheSalt } = this.fields;
    return {
      signal: this.signal,
      timeoutMs: this.settings.requestTimeoutMs,
      // Checked by the engine.
      ...(priority != null && { priority: priority as number }),
      ...(cacheSalt != null && { cacheSalt: cacheSalt as string }),
    };
  }

  /** Responds with events; the exchange lasts until the last is sent or the client leaves. */
  async stream(
    events: AsyncGenerator<string, void>,
    dialect: Pick<SseOptions, 'errorEvents' | 'heartbeat'>,
  ): Promise<Response> {
    const { heartbeatMs } = this.settings;
    let isOpen = true;
    const ended = () => {
      if (isOpen) this.load.end();
      isOpen = false;
    };
    this.load.begin();
    try {
      const cancel = () => this.abort(undefined);
      return await sseResponse(events, { ...dialect, heartbeatMs, cancel, ended });
    } catch (error) {
      ended();
      throw error;
    }
  }
}
