/** Server-sent events (WHATWG HTML, section 9.2), written as their reader takes them. */
import { type HttpError, httpErrorOf } from './httpError';

/** One event; `name` only in dialects that name their events. */
export function sseEvent(data: unknown, name?: string): string {
  const text = typeof data === 'string' ? data : JSON.stringify(data);
  return name === undefined ? `data: ${text}\n\n` : `event: ${name}\ndata: ${text}\n\n`;
}

export interface SseOptions {
  /** Milliseconds without an event after which `heartbeat` is sent. */
  heartbeatMs: number;
  /** Text of a heartbeat; default: a comment. */
  heartbeat?: string;
  /** Text that ends a stream after an error. */
  errorEvents: (error: HttpError) => string;
  /** The reader has left: ends the call, so that a pending read of `events` rejects. */
  cancel: () => void;
  /** Called once, when nothing more will be sent. */
  ended: () => void;
}

const HEADERS = {
  'content-type': 'text/event-stream; charset=utf-8',
  'cache-control': 'no-cache',
  // Proxies such as nginx would hold events back.
  'x-accel-buffering': 'no',
};

const IS_LATE = Symbol('late');

/**
 * Responds with `events`, reading one when the body's reader wants one. Waits for the first event or one
 * heartbeat's time, so that a refused request rejects here and gets a status; later errors are events.
 */
export async function sseResponse(
  events: AsyncGenerator<string, void>,
  options: SseOptions,
): Promise<Response> {
  const { heartbeatMs, heartbeat = ': heartbeat\n\n', errorEvents, cancel, ended } = options;
  const encoder = new TextEncoder();
  let pending: Promise<IteratorResult<string, void>> | null = events.next();
  let isLate = (await within(pending, heartbeatMs)) === IS_LATE;
  const body = new ReadableStream<Uint8Array>(
    {
      pull: async (controller) => {
        try {
          pending ??= events.next();
          const result = isLate ? IS_LATE : await within(pending, heartbeatMs);
          isLate = false;
          if (result === IS_LATE) {
            controller.enqueue(encoder.encode(heartbeat));
            return;
          }
          pending = null;
          if (result.done !== true) {
            controller.enqueue(encoder.encode(result.value));
            return;
          }
          controller.close();
          ended();
        } catch (error) {
          controller.enqueue(encoder.encode(errorEvents(httpErrorOf(error))));
          controller.close();
          ended();
        }
      },
      cancel: () => {
        pending?.catch(() => {});
        cancel();
        ended();
      },
    },
    // Reads nothing ahead: the engine merges what is not read.
    { highWaterMark: 0 },
  );
  return new Response(body, { headers: HEADERS });
}

/** The promise's result, or IS_LATE after `ms`; the promise stays pending. */
async function within<T>(promise: Promise<T>, ms: number): Promise<T | typeof IS_LATE> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<typeof IS_LATE>((resolve) => {
    timer = setTimeout(() => resolve(IS_LATE), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
