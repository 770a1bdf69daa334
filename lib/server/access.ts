/** Who may call: API keys and origins (CORS). */
import { createHash, timingSafeEqual } from 'node:crypto';
import { HttpError } from './httpError';

const digest = (text: string) => createHash('sha256').update(text).digest();

/** Checks API keys in time that does not depend on how much of a key is right. */
export class ApiKeys {
  private readonly digests: readonly Buffer[];

  constructor(keys: readonly string[]) {
    this.digests = keys.map(digest);
  }

  /** Throws HttpError 401. Only paths under /v1 need a key, as in vLLM. */
  check(request: Request, path: string): void {
    if (this.digests.length === 0 || !path.startsWith('/v1/')) return;
    const bearer = /^Bearer +(.+)$/i.exec(request.headers.get('authorization') ?? '');
    const given = digest(bearer?.[1] ?? request.headers.get('x-api-key') ?? '');
    let isKnown = false;
    for (const known of this.digests) isKnown = timingSafeEqual(known, given) || isKnown;
    if (!isKnown) {
      throw new HttpError(401, 'Unauthorized', null, { 'www-authenticate': 'Bearer' });
    }
  }
}

/** Headers that let a page of the request's origin read the answer; none if it may not. */
export function corsHeaders(
  request: Request,
  allowedOrigins: readonly string[],
): Record<string, string> {
  const origin = request.headers.get('origin');
  if (origin === null || allowedOrigins.length === 0) return {};
  if (!allowedOrigins.includes('*') && !allowedOrigins.includes(origin)) return { vary: 'origin' };
  return { 'access-control-allow-origin': origin, vary: 'origin' };
}

/** The answer to a preflight request. */
export function preflight(request: Request, cors: Readonly<Record<string, string>>): Response {
  const asked = request.headers.get('access-control-request-headers');
  return new Response(null, {
    status: 204,
    headers: {
      ...cors,
      'access-control-allow-methods': 'GET, POST',
      ...(asked !== null && { 'access-control-allow-headers': asked }),
      'access-control-max-age': '600',
    },
  });
}
