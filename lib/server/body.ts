/** Reads and parses a request's JSON body within a bound of bytes. */
import { entriesOf, isJsonObject, parseInPieces } from '../config/largeJson';
import { slicedWork } from '../slicedWork';
import { badRequest, HttpError } from './httpError';

/** The fields of a JSON object; null counts as absent. */
export type Fields = Readonly<Record<string, unknown>>;

/** Bytes up to which a body is parsed at once: well below a millisecond. */
const PARSED_AT_ONCE = 1 << 16;

/** Fields of a body, and members of a field: they are copied at once. */
const MAX_FIELDS = 1024;
const MAX_MEMBERS = 2 ** 16;

/**
 * Rejects with HttpError: 415 for another content type, 413 for more than `maxBytes`, 400 for what is not
 * a JSON object or has too many fields. Reads no more than `maxBytes`.
 */
export async function readJson(request: Request, maxBytes: number): Promise<Fields> {
  const contentType = request.headers.get('content-type') ?? '';
  if (!/^application\/(?:[\w.-]+\+)?json\s*(?:;|$)/i.test(contentType)) {
    throw new HttpError(
      415,
      "unsupported media type: only 'application/json' is allowed as content-type",
    );
  }
  const text = await readText(request, maxBytes);
  const value = await parse(text);
  if (!isJsonObject(value)) throw badRequest('the body must be a JSON object');
  // A large object is parsed as a Map.
  const numFields = value instanceof Map ? value.size : Object.keys(value).length;
  if (numFields > MAX_FIELDS) {
    throw badRequest(`the body has ${numFields} fields; the limit is ${MAX_FIELDS}`);
  }
  return Object.fromEntries(
    Array.from(entriesOf(value), ([name, field]) => [
      name,
      field instanceof Map ? objectOf(name, field as Map<string, unknown>) : field,
    ]),
  );
}

function objectOf(name: string, members: ReadonlyMap<string, unknown>): Fields {
  if (members.size <= MAX_MEMBERS) return Object.fromEntries(members);
  const shown = name.slice(0, 64);
  throw badRequest(`${shown} has ${members.size} members; the limit is ${MAX_MEMBERS}`, shown);
}

async function readText(request: Request, maxBytes: number): Promise<string> {
  const tooLarge = () =>
    new HttpError(413, `the body has more than ${maxBytes} bytes, the server's limit`);
  const announced = Number(request.headers.get('content-length') ?? 0);
  if (announced > maxBytes) throw tooLarge();
  if (request.body === null) return '';
  const decoder = new TextDecoder('utf-8', { fatal: true });
  const reader = request.body.getReader() as ReadableStreamDefaultReader<Uint8Array>;
  let numBytes = 0;
  let text = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    numBytes += value.byteLength;
    if (numBytes > maxBytes) {
      await reader.cancel();
      throw tooLarge();
    }
    text += decode(() => decoder.decode(value, { stream: true }));
  }
  return text + decode(() => decoder.decode());
}

function decode(read: () => string): string {
  try {
    return read();
  } catch {
    throw badRequest('the body is not UTF-8');
  }
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch (error) {
    throw badRequest(`the body is not JSON: ${(error as Error).message}`);
  }
}

async function parse(text: string): Promise<unknown> {
  if (text.length <= PARSED_AT_ONCE) return parseJson(text);
  let value: unknown;
  const pieces = parseInPieces(text, parseJson);
  function* parsing(): Generator<void, void> {
    value = yield* pieces;
  }
  await slicedWork.finish(parsing());
  return value;
}
