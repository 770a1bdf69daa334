/**
 * A Hugging Face hub on loopback with one model, as its HTTP interface is documented: revisions, files by
 * redirect to another origin for large ones, ranges, error codes. It can be told to misbehave.
 */
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

export const MODEL = 'org/tiny';
export const COMMIT = '0123456789abcdef0123456789abcdef01234567';

export const sha256 = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex');
export const gitId = (bytes: Buffer) =>
  createHash('sha1').update(`blob ${bytes.length}\0`).update(bytes).digest('hex');

/** Files of the repository: large ones are stored apart, as with Git LFS. */
export type Files = Readonly<Record<string, Buffer>>;
const isLarge = (name: string) => /\.(?:safetensors|gguf)$/.test(name);

export interface Misbehaviour {
  /** Answers with this status and error code, in order, before it behaves. */
  refusals?: { status: number; code?: string; headers?: Record<string, string> }[];
  /** Cuts the connection after this many bytes of each large file, this many times. */
  cut?: { afterBytes: number; times: number };
  /** Ends answers for large files early and without an error, so many times; they have no length. */
  empty?: { afterBytes: number; times: number };
  /** Sends the first bytes of each large file, then nothing. */
  stallsAfterBytes?: number;
  /** Paths in the listing in place of the files' own. */
  renames?: Readonly<Partial<Record<string, string>>>;
  /** Sends other bytes of the same number. */
  isCorrupt?: boolean;
  /** Ignores ranges. */
  ignoresRanges?: boolean;
  /** Bytes of large files per millisecond. */
  bytesPerMs?: number;
}

export class Hub {
  /** Requests, with what they were sent. */
  readonly requests: { url: string; range?: string; authorization?: string; host: string }[] = [];
  misbehaviour: Misbehaviour = {};
  private readonly front: Server;
  /** Serves large files, from another origin. */
  private readonly storage: Server;

  private constructor(private readonly files: Files) {
    this.front = createServer((request, response) => this.answer(request, response));
    this.storage = createServer((request, response) => this.store(request, response));
  }

  static async start(files: Files): Promise<Hub> {
    const hub = new Hub(files);
    for (const server of [hub.front, hub.storage]) {
      server.listen(0, '127.0.0.1');
      await once(server, 'listening');
    }
    return hub;
  }

  get url(): string {
    return urlOf(this.front);
  }

  /** Bytes of large files that were asked for, by range. */
  get ranges(): (string | undefined)[] {
    return this.requests.filter(({ url }) => url.startsWith('/blob/')).map(({ range }) => range);
  }

  close(): void {
    for (const server of [this.front, this.storage]) {
      server.closeAllConnections();
      server.close();
    }
  }

  private note(request: IncomingMessage): void {
    const { range, authorization, host = '' } = request.headers;
    this.requests.push({ url: request.url ?? '', range, authorization, host });
  }

  private answer(request: IncomingMessage, response: ServerResponse): void {
    this.note(request);
    const refusal = this.misbehaviour.refusals?.shift();
    if (refusal !== undefined) {
      const code = refusal.code === undefined ? {} : { 'x-error-code': refusal.code };
      response.writeHead(refusal.status, { ...code, ...refusal.headers }).end('{}');
      return;
    }
    const url = decodeURIComponent(request.url ?? '');
    const revision = /^\/api\/models\/org\/tiny\/revision\/(.+)\?blobs=true$/.exec(url)?.[1];
    if (revision === 'main' || revision === 'pr/1' || revision === COMMIT) {
      response.end(JSON.stringify(this.listing()));
      return;
    }
    const name = new RegExp(`^/${MODEL}/resolve/${COMMIT}/(.+)$`).exec(url)?.[1] ?? '';
    const bytes = (this.files as Partial<Files>)[name];
    if (bytes === undefined) {
      const code = url.includes(MODEL) ? 'RevisionNotFound' : 'RepoNotFound';
      response.writeHead(404, { 'x-error-code': code }).end('{}');
    } else if (isLarge(name)) {
      response.writeHead(302, { location: `${urlOf(this.storage)}/blob/${name}` }).end();
    } else {
      response.end(bytes);
    }
  }

  private listing(): object {
    const { renames = {} } = this.misbehaviour;
    const siblings = Object.entries(this.files).map(([rfilename, bytes]) => ({
      rfilename: renames[rfilename] ?? rfilename,
      size: bytes.length,
      blobId: gitId(bytes),
      ...(isLarge(rfilename) && { lfs: { sha256: sha256(bytes), size: bytes.length } }),
    }));
    return { id: MODEL, sha: COMMIT, siblings };
  }

  private store(request: IncomingMessage, response: ServerResponse): void {
    this.note(request);
    const { cut, isCorrupt = false, ignoresRanges = false, bytesPerMs } = this.misbehaviour;
    const whole = this.files[(request.url ?? '').replace('/blob/', '')];
    const range = ignoresRanges ? undefined : request.headers.range;
    const start = Number(/^bytes=(\d+)-$/.exec(range ?? '')?.[1] ?? 0);
    const bytes = isCorrupt ? Buffer.alloc(whole.length - start, 7) : whole.subarray(start);
    const { empty, stallsAfterBytes } = this.misbehaviour;
    if (empty !== undefined && empty.times > 0) {
      empty.times--;
      response.writeHead(range === undefined ? 200 : 206).end(bytes.subarray(0, empty.afterBytes));
      return;
    }
    response.writeHead(range === undefined ? 200 : 206, { 'content-length': bytes.length });
    if (cut !== undefined && cut.times > 0) {
      cut.times--;
      response.write(bytes.subarray(0, cut.afterBytes), () => response.destroy());
    } else if (stallsAfterBytes !== undefined) {
      response.write(bytes.subarray(0, stallsAfterBytes));
    } else if (bytesPerMs === undefined) {
      response.end(bytes);
    } else {
      trickle(response, bytes, bytesPerMs * 10);
    }
  }
}

const urlOf = (server: Server) => `http://127.0.0.1:${(server.address() as AddressInfo).port}`;

function trickle(response: ServerResponse, bytes: Buffer, step: number): void {
  let start = 0;
  const timer = setInterval(() => {
    response.write(bytes.subarray(start, (start += step)));
    if (start < bytes.length && !response.destroyed) return;
    clearInterval(timer);
    response.end();
  }, 10);
}
