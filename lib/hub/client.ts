/** HTTP requests to the Hugging Face hub, with retries and typed errors. */
import { Readable } from 'node:stream';
import { json } from 'node:stream/consumers';
import { setTimeout as pause } from 'node:timers/promises';
import { z } from 'zod';
import {
  HubGatedError,
  HubNotFoundError,
  HubUnauthorizedError,
  HubUnreachableError,
} from '../errors';
import { isError, messageOf } from '../realm';
import type { HubEnvironment } from './environment';
import type { HubFile } from './files';

/** Attempts of a request, and milliseconds before the second; each later wait is twice as long. */
const MAX_ATTEMPTS = 5;
const FIRST_WAIT_MS = 250;
/** Maximum milliseconds that a Retry-After is waited for. */
const MAX_WAIT_MS = 30_000;
/** Milliseconds for the head of an answer. */
const HEAD_TIMEOUT_MS = 30_000;

const repositorySchema = z.object({
  sha: z.string().regex(/^[0-9a-f]{40}$/),
  siblings: z.array(
    z.object({
      rfilename: z.string(),
      size: z.int().min(0),
      blobId: z.string().regex(/^[0-9a-f]{40}$/),
      lfs: z.object({ sha256: z.string().regex(/^[0-9a-f]{64}$/) }).nullish(),
    }),
  ),
});

export interface Revision {
  /** The commit, 40 hex digits. */
  commit: string;
  files: readonly HubFile[];
}

/** Whether a path stays inside its folder on this machine. */
const isInside = (path: string) =>
  !path.split('/').some((part) => part === '' || part === '.' || part === '..') &&
  !/[\\\0]/.test(path);

export class HubClient {
  constructor(
    private readonly environment: HubEnvironment,
    private readonly model: string,
    private readonly signal: AbortSignal | undefined,
  ) {}

  /** The commit that `revision` (a branch, tag or commit) names, and its files. */
  async revision(revision: string): Promise<Revision> {
    const { endpoint } = this.environment;
    const url = `${endpoint}/api/models/${this.model}/revision/${encodeURIComponent(revision)}?blobs=true`;
    const response = await this.get(url, revision, this.signal);
    const answer = await json(bodyOf(response, this.signal)).catch(() => null);
    this.signal?.throwIfAborted();
    const parsed = repositorySchema.safeParse(answer);
    if (!parsed.success) {
      throw new HubUnreachableError(
        this.model,
        `the answer of ${endpoint} is not a hub's: ${parsed.error.issues[0].message}`,
      );
    }
    const { sha, siblings } = parsed.data;
    const files = siblings
      .filter(({ rfilename }) => isInside(rfilename))
      .map(({ rfilename, size, blobId, lfs }): HubFile => {
        const large = lfs ?? null;
        return large === null
          ? { path: rfilename, size, id: blobId, hash: 'git' }
          : { path: rfilename, size, id: large.sha256, hash: 'sha256' };
      });
    return { commit: sha, files };
  }

  /** The bytes of a file from `start` on: status 206, or 200 with all bytes. */
  file(
    commit: string,
    { path }: HubFile,
    start: number,
    signal: AbortSignal | undefined,
  ): Promise<Response> {
    const name = path.split('/').map(encodeURIComponent).join('/');
    const url = `${this.environment.endpoint}/${this.model}/resolve/${commit}/${name}`;
    return this.get(url, commit, signal, start > 0 ? { range: `bytes=${start}-` } : {});
  }

  /** Follows redirects; the token is not sent to another origin. Retries what may pass. */
  private async get(
    url: string,
    revision: string,
    signal: AbortSignal | undefined,
    headers: Record<string, string> = {},
  ): Promise<Response> {
    const { token } = this.environment;
    const authorization: Record<string, string> =
      token === null ? {} : { authorization: `Bearer ${token}` };
    for (let attempt = 1; ; attempt++) {
      let wait = FIRST_WAIT_MS * 2 ** (attempt - 1);
      let failure: HubUnreachableError;
      try {
        // Compressed bytes could not be resumed.
        const identity = { 'accept-encoding': 'identity', 'user-agent': 'uniproc' };
        const response = await fetchHead(
          url,
          { ...identity, ...authorization, ...headers },
          signal,
        );
        if (response.ok) return response;
        await response.body?.cancel();
        failure = this.refusal(response, revision);
        const after = 1000 * Number(response.headers.get('retry-after'));
        if (after > 0) wait = Math.min(after, MAX_WAIT_MS);
      } catch (error) {
        signal?.throwIfAborted();
        if (!isNetworkError(error)) throw error;
        failure = this.unreachable(error);
      }
      if (attempt === MAX_ATTEMPTS) throw failure;
      await pause(wait, undefined, { signal }).catch(() => {
        signal?.throwIfAborted();
      });
    }
  }

  /** Throws the error of a status that no retry changes; returns that of another. */
  private refusal(response: Response, revision: string): HubUnreachableError {
    const { endpoint, token } = this.environment;
    const { status } = response;
    const code = response.headers.get('x-error-code');
    const hasToken = token !== null;
    if (code === 'GatedRepo' || status === 403) {
      throw new HubGatedError(this.model, `${endpoint}/${this.model}`, hasToken);
    }
    if (status === 401) throw new HubUnauthorizedError(this.model, hasToken);
    if (status === 404) {
      const what = code === 'RepoNotFound' ? 'there is no such model' : `there is no ${revision}`;
      throw new HubNotFoundError(this.model, `${what} on ${endpoint}`);
    }
    const message = `${endpoint} answers with status ${status}`;
    if (status !== 408 && status !== 429 && status < 500) {
      throw new HubUnreachableError(this.model, message);
    }
    return new HubUnreachableError(this.model, `${message}; try again later`);
  }

  private unreachable(error: unknown): HubUnreachableError {
    const cause = (error as Error).cause as { code?: string } | undefined;
    const reason = cause?.code ?? messageOf(error);
    return new HubUnreachableError(
      this.model,
      `${this.environment.endpoint} cannot be reached (${reason}); check the network, or set ` +
        'HF_HUB_OFFLINE=1 if the model is in the cache',
      { cause: error },
    );
  }
}

/** Only the wait for the answer's head is limited: a body may take hours, and ends by `bodyOf`. */
async function fetchHead(
  url: string,
  headers: Record<string, string>,
  signal: AbortSignal | undefined,
): Promise<Response> {
  const controller = new AbortController();
  const abort = () => controller.abort(signal?.reason);
  signal?.throwIfAborted();
  signal?.addEventListener('abort', abort, { once: true });
  const late = () => controller.abort(new DOMException('no answer', 'TimeoutError'));
  const timer = setTimeout(late, HEAD_TIMEOUT_MS);
  try {
    return await fetch(url, { headers, signal: controller.signal });
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener('abort', abort);
  }
}

/** The bytes of an answer as they come; the signal ends a wait for them. */
export function bodyOf({ body }: Response, signal: AbortSignal | undefined): Readable {
  return body === null ? Readable.from([]) : Readable.fromWeb(body, { signal });
}

/** Whether fetch says that the connection failed, or no answer came in time. Errors have any realm. */
export const isNetworkError = (error: unknown): boolean =>
  isError(error) && ['TypeError', 'TimeoutError'].includes(error.name);
