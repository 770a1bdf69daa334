/** Helpers of the store's tests. */
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import { TCPStore } from '../../lib/distributed/tcpStore';
import { Message, Query, SocketReader, VALIDATION } from '../../lib/distributed/tcpStoreProtocol';
import { TCPStoreServer } from '../../lib/distributed/tcpStoreServer';

export const HOST = '127.0.0.1';

/** Closed after each test in reverse order. */
const opened: (() => unknown)[] = [];

afterEach(async () => {
  for (const close of opened.splice(0).reverse()) await close();
});

/** Registers a resource to be closed after the test. */
export function closing<T extends { close: () => unknown }>(resource: T): T {
  opened.push(() => resource.close());
  return resource;
}

export async function serve(options: { stallTimeout?: number } = {}): Promise<TCPStoreServer> {
  return closing(await TCPStoreServer.listen({ host: HOST, port: 0, ...options }));
}

/** A client of a store on this machine. */
export async function clientOf({ port }: { port: number }, timeout = 200_000): Promise<TCPStore> {
  return closing(await TCPStore.connect({ host: HOST, port, timeout }));
}

/** Resolves when `condition` passes; fails with its last error. */
export async function eventually(condition: () => void | Promise<void>): Promise<void> {
  const deadline = Date.now() + 100_000;
  for (;;) {
    try {
      await condition();
      return;
    } catch (error) {
      if (Date.now() > deadline) throw error;
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }
}

/** A connection over which the test sends raw bytes. */
export class RawClient {
  readonly reader: SocketReader;
  /** Resolves when either side has closed the connection. */
  readonly ended: Promise<void>;

  private constructor(readonly socket: Socket) {
    this.reader = new SocketReader(socket);
    socket.on('error', () => {});
    this.ended = new Promise((resolve) => {
      socket.on('close', () => {
        this.reader.fail(new Error('the connection is over'));
        resolve();
      });
    });
  }

  static async connect({ port }: { port: number }): Promise<RawClient> {
    const socket = connect({ host: HOST, port, noDelay: true });
    const client = new RawClient(socket);
    await once(socket, 'connect');
    opened.push(() => socket.destroy());
    return client;
  }

  /** Connects and performs the handshake. */
  static async welcome(server: { port: number }): Promise<RawClient> {
    const client = await RawClient.connect(server);
    client.send(new Message(Query.VALIDATE).u32(VALIDATION).bytes());
    await client.ping();
    return client;
  }

  send(bytes: Uint8Array): void {
    this.socket.write(bytes);
  }

  /** Resolves when the server has processed all earlier requests. */
  async ping(number = 7): Promise<void> {
    this.send(new Message(Query.PING).u32(number).bytes());
    expect(await this.reader.u32()).toBe(number);
  }
}

/** A server with the given connection handler, for behaviour that no store has. */
export async function serveRaw(serveOne: (socket: Socket) => void): Promise<{ port: number }> {
  const sockets = new Set<Socket>();
  const server: Server = createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
    serveOne(socket);
  });
  server.listen(0, HOST);
  await once(server, 'listening');
  opened.push(async () => {
    for (const socket of sockets) socket.destroy();
    server.close();
    await once(server, 'close');
  });
  return { port: (server.address() as AddressInfo).port };
}

/** Answers the handshake, then passes each connection to `then`. */
export function serveAfterHandshake(then: (socket: Socket, reader: SocketReader) => void) {
  return serveRaw((socket) => {
    const reader = new SocketReader(socket);
    socket.on('close', () => reader.fail(new Error('the client has gone')));
    void (async () => {
      await reader.bytes(6);
      socket.write(await reader.bytes(4));
      then(socket, reader);
    })().catch(() => {});
  });
}
