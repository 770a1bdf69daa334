/**
 * Replays the recorded traffic of PyTorch's clients and servers (recorded.json, made by record.py)
 * against our server and our client: every byte must match.
 */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { Query, type SocketReader } from '../../lib/distributed/tcpStoreProtocol';
import type { TCPStore } from '../../lib/distributed/tcpStore';
import { StoreTimeoutError } from '../../lib/errors';
import { clientOf, RawClient, serve, serveAfterHandshake } from './support';

/**
 * One event, in order: the client, and the bytes that it sent or received in hexadecimal, or a call's
 * method and arguments, or that call's result ("timeout" on a timeout).
 */
type RecordedEvent =
  | [client: number, what: 'sent' | 'received', bytes: string]
  | [client: number, what: 'began', call: [method: string, ...args: unknown[]]]
  | [client: number, what: 'done', value: unknown];

const { recorded } = JSON.parse(readFileSync(path.join(__dirname, 'recorded.json'), 'utf8')) as {
  recorded: { name: string; server: string; events: RecordedEvent[] }[];
};

const numClients = (events: RecordedEvent[]) => 1 + Math.max(...events.map(([client]) => client));

/** VALIDATE and PING with the client's pid. */
const HANDSHAKE = /^00cef7853c0d[0-9a-f]{8}$/;

/** Each PyTorch method on our client, with the result converted to PyTorch's. */
const CALLS: Record<string, (store: TCPStore, ...args: never[]) => Promise<unknown>> = {
  set: (store, key: string, value: string) => store.set(key, value).then(() => null),
  get: (store, key: string) => store.get(key).then(String),
  add: (store, key: string, amount: number) => store.add(key, amount),
  compare_set: (store, key: string, expected: string, desired: string) =>
    store.compareSet(key, expected, desired).then(String),
  check: (store, keys: string[]) => store.check(keys),
  wait: (store, keys: string[], seconds?: number) =>
    store.wait(keys, seconds === undefined ? undefined : seconds * 1000).then(
      () => null,
      (error: unknown) => (error instanceof StoreTimeoutError ? 'timeout' : error),
    ),
  append: (store, key: string, value: string) => store.append(key, value).then(() => null),
  multi_get: (store, keys: string[]) => store.multiGet(keys).then((values) => values.map(String)),
  multi_set: (store, keys: string[], values: string[]) =>
    store.multiSet(keys.map((key, i) => [key, values[i]] as const)).then(() => null),
  num_keys: (store) => store.numKeys(),
  delete_key: (store, key: string) => store.deleteKey(key),
};

it('every request type that we support was recorded', () => {
  const methods = recorded.flatMap(({ events }) =>
    events.flatMap(([, what, detail]) => (what === 'began' ? [detail[0]] : [])),
  );
  expect([...new Set(methods)].sort()).toEqual(Object.keys(CALLS).sort());
});

describe.each(recorded)('$name, with a server $server', ({ events }) => {
  it("our server answers PyTorch's client as PyTorch's server did", async () => {
    const server = await serve();
    const clients: RawClient[] = [];
    for (let i = 0; i < numClients(events); i++) clients.push(await RawClient.connect(server));
    for (const [client, what, detail] of events) {
      if (what === 'sent') clients[client].send(Buffer.from(detail, 'hex'));
      if (what === 'received') {
        const answer = await clients[client].reader.bytes(detail.length / 2);
        expect(answer.toString('hex')).toBe(detail);
      }
    }
    // No further bytes were sent.
    for (const client of clients) await client.ping();
  });

  it("our client sends the same requests as PyTorch's, and returns the same results", async () => {
    const readers: SocketReader[] = [];
    const sockets: { write(bytes: Buffer): unknown }[] = [];
    const server = await serveAfterHandshake((socket, reader) => {
      sockets.push(socket);
      readers.push(reader);
    });
    const stores: TCPStore[] = [];
    for (let i = 0; i < numClients(events); i++) stores.push(await clientOf(server));
    const handshakes = events.slice(0, 2 * stores.length);
    expect(handshakes.filter(([, what]) => what === 'sent').map(([, , bytes]) => bytes)).toEqual(
      stores.map(() => expect.stringMatching(HANDSHAKE) as string),
    );

    const calls: Promise<unknown>[] = [];
    for (const [client, what, detail] of events.slice(handshakes.length)) {
      if (what === 'began') {
        const [method, ...args] = detail;
        calls[client] = CALLS[method](stores[client], ...(args as never[]));
      } else if (what === 'sent') {
        const request = await readers[client].bytes(detail.length / 2);
        expect(request.toString('hex')).toBe(detail);
      } else if (what === 'received') {
        sockets[client].write(Buffer.from(detail, 'hex'));
      } else {
        expect(await calls[client]).toEqual(detail);
      }
    }
    // No further bytes were sent: the next request follows immediately.
    for (const [client, store] of stores.entries()) {
      const asking = store.numKeys();
      expect(await readers[client].u8()).toBe(Query.GETNUMKEYS);
      sockets[client].write(Buffer.alloc(8));
      expect(await asking).toBe(0);
    }
  });
});
