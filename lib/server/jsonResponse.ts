/** JSON answers. */

export function jsonResponse(
  value: unknown,
  status = 200,
  headers: Readonly<Record<string, string>> = {},
): Response {
  return new Response(JSON.stringify(value), {
    status,
    headers: { 'content-type': 'application/json', ...headers },
  });
}

/** By default, items converted and written in one turn of the event loop. */
const PIECE = 256;

/** A list of a JSON answer that is converted while it is written: its items may be many and large. */
export class LazyList {
  constructor(
    readonly length: number,
    /** Items from `start` to `end`, exclusive. */
    readonly slice: (start: number, end: number) => readonly unknown[],
    /** Items written in one turn of the event loop. */
    readonly piece = PIECE,
  ) {}
}

/**
 * An answer that is written in pieces, one for each read of its reader; `value` is plain data with
 * LazyLists in it.
 */
export function jsonInPieces(value: object): Response {
  const pieces = write(value);
  const encoder = new TextEncoder();
  const body = new ReadableStream<Uint8Array>(
    {
      pull: async (controller) => {
        await new Promise(setImmediate);
        const { done, value: piece } = pieces.next();
        if (done === true) controller.close();
        else controller.enqueue(encoder.encode(piece));
      },
    },
    { highWaterMark: 0 },
  );
  return new Response(body, { headers: { 'content-type': 'application/json' } });
}

/** The text of `value`, cut at its LazyLists. */
function* write(value: object): Generator<string, void> {
  const lists: LazyList[] = [];
  // Random, so that no text of a model contains it.
  const mark = crypto.randomUUID();
  const text = JSON.stringify(value, (_, each: unknown) => {
    if (!(each instanceof LazyList)) return each;
    lists.push(each);
    return mark;
  });
  const parts = text.split(JSON.stringify(mark));
  for (const [i, part] of parts.entries()) {
    yield part;
    if (i < lists.length) yield* writeList(lists[i]);
  }
}

function* writeList(list: LazyList): Generator<string, void> {
  for (let start = 0; start < list.length; start += list.piece) {
    const items = list.slice(start, Math.min(start + list.piece, list.length));
    const text = items.map((item) => JSON.stringify(item)).join(',');
    yield `${start === 0 ? '[' : ','}${text}`;
  }
  yield list.length === 0 ? '[]' : ']';
}
