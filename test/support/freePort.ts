/** Ports for servers that a test starts later. */
import { createServer } from 'node:net';

/**
 * Below the ports that systems give to servers and connections which name none: another process of the
 * tests could be given a port of those before the server is there. Each of jest's workers has its own.
 */
const FIRST_PORT = 12_000;
const MAX_WORKERS = 20;
const PORTS_PER_WORKER = 1000;

/** Differs from file to file, whose processes may still be ending. */
let next = Math.floor(Math.random() * PORTS_PER_WORKER);

/** A TCP port that is free now, and that no other test is given. */
export async function freePort(): Promise<number> {
  const worker = (Number(process.env.JEST_WORKER_ID ?? 1) - 1) % MAX_WORKERS;
  for (;;) {
    const port = FIRST_PORT + worker * PORTS_PER_WORKER + (next++ % PORTS_PER_WORKER);
    if (await isFree(port)) return port;
  }
}

function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once('error', () => resolve(false));
    server.listen(port, () => server.close(() => resolve(true)));
  });
}
